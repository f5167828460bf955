//! Machines that stand still and start for whoever comes (`autostart`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use mashines_fleet::access::Standing;
use mashines_fleet::record::{Machine, MachineState, Role};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::control::{Call, Caller, Control};
use crate::directory::{Directory, is_alive, wakes};

/// How long a machine may take from the call to its guest's word that it is ready.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long control may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Between two calls, when the first was not heard or did not help.
const AGAIN: Duration = Duration::from_secs(5);

/// The machine, started: at once when it runs already.
///
/// # Errors
/// Why it did not start, in words for whoever waits.
pub async fn awake(
    control: &Control,
    directory: &watch::Receiver<Arc<Directory>>,
    machine: Arc<Machine>,
) -> Result<Arc<Machine>, String> {
    if wakes(&machine) { started(control, directory, machine).await } else { Ok(machine) }
}

/// The machine, started for somebody who may have it started.
///
/// # Errors
/// Why it did not start, in words for whoever waits.
pub async fn started(
    control: &Control,
    directory: &watch::Receiver<Arc<Directory>>,
    machine: Arc<Machine>,
) -> Result<Arc<Machine>, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut directory = directory.clone();
    let (mut asked, mut refused): (Option<Instant>, _) = (None, None);
    loop {
        let now = directory.borrow_and_update().named(machine.slug.as_str()).cloned();
        let Some(now) = now.filter(|now| now.id == machine.id && is_alive(now)) else {
            return Err(format!("machine {} was removed", machine.slug));
        };
        match now.state {
            MachineState::Started => return Ok(now),
            MachineState::Stopped if asked.is_none_or(|at| at.elapsed() >= AGAIN) => {
                asked = Some(Instant::now());
                refused = start(control, &now).await.err();
            }
            MachineState::Failed => {
                let because = now.reason.clone().unwrap_or_else(|| "for no known reason".to_owned());
                return Err(format!("machine {} did not start: {because}", now.slug));
            }
            MachineState::Created
            | MachineState::Starting
            | MachineState::Stopping
            | MachineState::Stopped
            | MachineState::Destroying
            | MachineState::Destroyed => (),
        }
        let again = Instant::now() + AGAIN;
        tokio::select! {
            changed = timeout_at(deadline, directory.changed()) => if !matches!(changed, Ok(Ok(()))) {
                let because = refused.unwrap_or_else(|| format!("it is still {}", now.state.word()));
                return Err(format!("machine {} did not start within {PATIENCE:?}: {because}", now.slug));
            },
            () = sleep_until(again.min(deadline)) => (),
        }
    }
}

/// Whoever may enter a machine may start it, so this is its owner's wish.
async fn start(control: &Control, machine: &Machine) -> Result<(), String> {
    let call = Call {
        method: Method::POST,
        path: format!("/v1/apps/{}/machines/{}/start", machine.app, machine.id),
        body: Bytes::new(),
        timeout: ANSWER,
        act_for: None,
    };
    tracing::info!(machine = %machine.slug, "starts for somebody at a door");
    let owner = Caller { account: machine.account.clone(), standing: Standing::As(Role::Operator) };
    control.on_behalf(&owner, call).await.map(drop).map_err(|error| error.to_string())
}
