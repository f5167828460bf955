//! `git push git@mashine.dev:web`: the repository is in the machine, so this leads there; where there is no machine yet, it makes one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use mashines_fleet::api::DEFAULT_APP;
use mashines_fleet::id::{AccountId, Slug};
use mashines_fleet::record::{Machine, MachineState};
use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use serde_json::json;
use tokio::time::timeout;

use super::bridge::{self, Held, STDERR};
use super::session::{self, Visit};
use crate::control::Call;
use crate::git::{GitCommand, Service, protocol};
use crate::route::{Destination, Door};

/// The program inside the machine that serves its repository.
const AGENT: &str = "/run/mashines/agent";

/// How long a new machine may take to be up.
const BOOT: Duration = Duration::from_secs(180);

/// Serves one command of git's. `protocol_asked` is the client's `GIT_PROTOCOL`.
pub async fn run(mut visit: Visit, channel: Channel<Msg>, command: GitCommand, protocol_asked: Option<&str>) {
    let GitCommand { service, machine: slug } = command;
    let entered = match visit.door(Destination::Git { machine: slug.as_str() }) {
        Door::Machine(machine) | Door::Port(machine, _) => Ok(machine),
        Door::Lobby(account) if service == Service::ReceivePack => {
            make(&visit, &channel, &account, &slug).await
        }
        Door::Lobby(_) => Err(format!("there is no machine {slug}; push to it, and there is one")),
        Door::Refuse(why) => Err(why),
    };
    let machine = match entered {
        Ok(machine) => machine,
        Err(why) => return bridge::refuse(&channel.split().1, &why).await,
    };
    let mut line = format!("{AGENT} git {}", service.name());
    if let Some(protocol) = protocol_asked.and_then(protocol) {
        line.push_str(&format!(" --protocol {protocol}"));
    }
    if service == Service::ReceivePack {
        line.push_str(&format!(" --by {}", visit.name()));
    }
    let held = Held::from([ChannelMsg::Exec { want_reply: false, command: line.into_bytes() }]);
    session::enter(visit, channel, machine, held).await;
}

/// Makes the machine that is pushed to, and waits until it is up.
async fn make(
    visit: &Visit,
    channel: &Channel<Msg>,
    account: &AccountId,
    slug: &Slug,
) -> Result<Arc<Machine>, String> {
    let body =
        json!({"name": slug, "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 512}}});
    let call = Call {
        method: Method::POST,
        path: format!("/v1/apps/{DEFAULT_APP}/machines"),
        body: Bytes::from(body.to_string()),
        timeout: Duration::from_secs(30),
        act_for: None,
    };
    // The one line of ours that git's user sees: it takes a while, and git itself is silent.
    let line = format!("mashines: there is no machine {slug} yet: it is being made\n");
    let _gone = channel.extended_data_bytes(STDERR, line.into_bytes()).await;
    let caller = visit.caller(account.clone())?;
    let made = visit.gateway.control.on_behalf(&caller, call).await;
    made.map_err(|error| format!("machine {slug} could not be made: {error}"))?;
    timeout(BOOT, up(visit, slug))
        .await
        .map_err(|_late| format!("machine {slug} is not up after {BOOT:?}; see: mashines show {slug}"))?
}

async fn up(visit: &Visit, slug: &Slug) -> Result<Arc<Machine>, String> {
    let mut directory = visit.gateway.directory.clone();
    loop {
        let machine = directory.borrow_and_update().named(slug.as_str()).cloned();
        match machine.as_ref().map(|machine| machine.state) {
            Some(MachineState::Started) => return machine.ok_or_else(String::new),
            Some(MachineState::Failed | MachineState::Destroying | MachineState::Destroyed) => {
                let why = machine.and_then(|machine| machine.reason.clone()).unwrap_or_default();
                return Err(format!("machine {slug} did not come up: {why}"));
            }
            Some(
                MachineState::Created
                | MachineState::Starting
                | MachineState::Stopping
                | MachineState::Stopped,
            )
            | None => (),
        }
        directory.changed().await.map_err(|_over| "this gateway is about to end".to_owned())?;
    }
}
