//! Getting a connection to a machine, whatever it is doing: running, moving, on its way up, or standing still and woken by who comes.
//!
//! Whoever waits does so in a bounded queue, until the port accepts, and not for some time that is thought to be enough.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mashines_fleet::record::services::Service;
use mashines_fleet::record::{Machine, MachineState};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::page::Page;
use super::sites::Site;
use super::{Edge, Settings};
use crate::directory::not_running;
use crate::metered::Metered;
use crate::{dial, wake};

/// How long a machine may take that is on its way up: until its port accepts.
const STARTING: Duration = Duration::from_secs(90);
/// How long a running machine may take to accept: a move's blackout fits into it, with a lost packet sent again.
const RUNNING: Duration = Duration::from_secs(10);
/// How long a running machine may refuse: a server that restarts.
const REFUSING: Duration = Duration::from_secs(2);
/// Between two tries at a port that refuses.
const RETRY: Duration = Duration::from_millis(50);

impl Edge {
    /// A connection to a service of the machine.
    ///
    /// # Errors
    /// The page for whoever came.
    pub async fn reach(&self, site: &Arc<Site>, service: &Service) -> Result<Metered, Page> {
        let machine = &site.machine;
        let port = service.internal_port;
        let address = SocketAddr::new(machine.net.ipv6.into(), port);
        let runs = machine.state == MachineState::Started;
        // The usual case takes no place in the queue.
        if runs {
            match timeout_at(Instant::now() + RUNNING, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.prepared(stream, machine),
                Ok(Err(error)) if dial::is_passing(&error) => (),
                Ok(Err(error)) => return Err(unreachable(machine, port, &error)),
                Err(_late) => return Err(silent(machine, port)),
            }
        }
        let _held = self.hold(machine)?;
        let patience = if runs { REFUSING } else { STARTING };
        let deadline = Instant::now() + patience;
        let machine = if runs { Arc::clone(machine) } else { self.up(machine, service).await? };
        let mut refused = None;
        loop {
            let begun = Instant::now();
            let error = match timeout_at(deadline, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.prepared(stream, &machine),
                Ok(Err(error)) if dial::is_passing(&error) => error,
                Ok(Err(error)) => return Err(unreachable(&machine, port, &error)),
                Err(_late) => {
                    // One that refused a moment ago is not silent: it is this side that came late to its last try.
                    let refused = refused.filter(|_| begun + RETRY > deadline);
                    let why = refused.map(|error| unreachable(&machine, port, &error));
                    return Err(why.unwrap_or_else(|| silent(&machine, port)));
                }
            };
            if let Some(why) = self.sites().machine(&machine.id).and_then(|now| not_running(&now.machine)) {
                return Err(stands(&why));
            }
            if Instant::now() + RETRY >= deadline {
                return Err(unreachable(&machine, port, &error));
            }
            refused = Some(error);
            sleep(RETRY).await;
        }
    }

    fn prepared(&self, stream: TcpStream, machine: &Machine) -> Result<Metered, Page> {
        dial::prepare(&stream).map_err(|error| unreachable(machine, 0, &error))?;
        Ok(Metered::new(stream, self.accounts.purse(&machine.account)))
    }

    /// A place among those that wait for a machine.
    fn hold(&self, machine: &Machine) -> Result<impl Sized + use<>, Page> {
        let Settings { holds, holds_per_machine, .. } = self.settings;
        let full = || {
            Page::machines(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Too many requests wait for machine {} to start", machine.slug),
                "Come again in a few seconds.",
            )
            .again_after(5)
        };
        let all = self.holds.enter(None, holds).ok_or_else(full)?;
        let own = self.holds.enter(Some(machine.id.clone()), holds_per_machine).ok_or_else(full)?;
        Ok((all, own))
    }

    /// The machine, started or on its way; woken when its owner wants that.
    async fn up(&self, machine: &Arc<Machine>, service: &Service) -> Result<Arc<Machine>, Page> {
        let stands_still = matches!(machine.state, MachineState::Stopped | MachineState::Stopping);
        if stands_still && service.autostart.unwrap_or(machine.config.autostart) {
            let woken = wake::started(&self.control, &self.directory, Arc::clone(machine)).await;
            return woken.map_err(|why| {
                Page::machines(
                    StatusCode::SERVICE_UNAVAILABLE,
                    capital(&why),
                    "Its owner sees more with: mashines show.",
                )
                .again_after(30)
            });
        }
        match not_running(machine) {
            // It would start at another door, and does not at this one.
            None if stands_still => Err(stands(&format!("machine {} is stopped", machine.slug))),
            None => Ok(Arc::clone(machine)),
            Some(why) => Err(stands(&why)),
        }
    }
}

/// It is not up, and nobody may start it from here.
fn stands(why: &str) -> Page {
    let (what, hint) = why.split_once("; ").unwrap_or((why, "its owner can start it with: mashines start"));
    Page::machines(StatusCode::SERVICE_UNAVAILABLE, capital(what), format!("Its owner can: {hint}."))
        .again_after(30)
}

fn unreachable(machine: &Machine, port: u16, error: &io::Error) -> Page {
    let slug = &machine.slug;
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Page::machines(
            StatusCode::BAD_GATEWAY,
            format!("Machine {slug} runs, but nothing listens on its port {port}"),
            format!(
                "Its owner can start a server there, on [::]:{port}, or name another internal_port in its services."
            ),
        );
    }
    Page::machines(
        StatusCode::BAD_GATEWAY,
        format!("Machine {slug} cannot be reached: {error}"),
        "Come again in a moment.",
    )
    .again_after(5)
}

fn silent(machine: &Machine, port: u16) -> Page {
    Page::machines(
        StatusCode::GATEWAY_TIMEOUT,
        format!("Machine {} does not answer on port {port}", machine.slug),
        "Its owner can look at its console with: mashines logs.",
    )
    .again_after(5)
}

/// A sentence begins with a capital.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
