//! Watching a monitor: its end, and what it says meanwhile.
//!
//! Two tasks a monitor. One waits for the process and deals with its end. The other asks for the status, often while something is
//! under way, and repairs what a monitor's own hooks could not do because netd was not there.

use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::host_api::{LocalMigrationState, LocalState, Side};
use mashines_vmm::api::{State, Status};
use tokio::sync::watch;

use crate::error::Result;
use crate::host::Host;
use crate::instance::Instance;
use crate::machine::{Held, Live, Machine};
use crate::network;
use crate::process::{Exit, Process, Running};

/// Between two looks while something is under way.
const BUSY: Duration = Duration::from_millis(100);

/// Between two looks at a machine that just runs.
const CALM: Duration = Duration::from_secs(1);

/// What netd was told of where the machine's address leads, by this task and for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Here,
    Away,
}

impl Host {
    /// Watches the monitor of the machine that is held, until its end.
    pub(crate) fn watch(self: &Arc<Self>, held: &Held, running: Running) -> Result<()> {
        let (told, exit) = watch::channel(None);
        let live = Live { process: running.process, killer: Arc::new(running.killer()?), exit };
        held.set_live(Some(live.clone()));
        let machine = Arc::clone(held.machine());
        tokio::spawn(wait(Arc::clone(self), Arc::clone(&machine), running, told));
        tokio::spawn(look(Arc::clone(self), machine, live));
        Ok(())
    }

    /// The source's address turns to the destination: what its monitor's hook has done already, unless netd was not there.
    pub(crate) async fn repair_source(&self, here: &Instance) -> Result<()> {
        let left = here.migration.as_ref().and_then(|id| self.find_move(id).ok());
        let Some(left) = left.filter(|m| m.side == Side::Source) else { return Ok(()) };
        self.netd.call(network::redirect(here.id(), here.epoch.next(), &left.peer)).await?;
        Ok(())
    }

    /// The machine's address leads here and is announced.
    async fn repair_here(&self, here: &Instance) -> Result<()> {
        self.netd.call(network::activate(here.id(), here.epoch)).await?;
        self.netd.call(network::announce(here.id(), here.epoch)).await?;
        Ok(())
    }
}

/// Waits for the end, tells it, then deals with it unless whoever ended it has done so.
async fn wait(
    host: Arc<Host>,
    machine: Arc<Machine>,
    mut running: Running,
    told: watch::Sender<Option<Exit>>,
) {
    let exit = running.exited().await;
    told.send_replace(Some(exit));
    let held = Held::new(&host, machine.id()).await;
    let mine = |live: &Live| live.process == running.process;
    if !held.machine().live().as_ref().is_some_and(mine) {
        return;
    }
    if let Err(e) = host.after_end(&held, exit).await {
        tracing::error!(machine = %machine.id(), "its monitor's end could not be dealt with: {e}");
    }
}

/// Asks for the status until the end.
async fn look(host: Arc<Host>, machine: Arc<Machine>, live: Live) {
    let mut told = Told::Nothing;
    loop {
        let pause = match look_once(&host, &machine, live.process, &mut told).await {
            Ok(pause) => pause,
            Err(e) => {
                tracing::debug!(machine = %machine.id(), "{e}");
                BUSY
            }
        };
        tokio::select! {
            () = live.gone() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look; answers when the next is due.
async fn look_once(
    host: &Arc<Host>,
    machine: &Machine,
    process: Process,
    told: &mut Told,
) -> Result<Duration> {
    let status = machine.monitor().status().await?;
    let ready = match machine.instance().map(|i| i.phase) {
        // Asked without the lock: a guest may take its time to answer.
        Some(LocalState::Starting) if status.state == State::Running && *told == Told::Here => {
            machine.agent().ready().await.unwrap_or(false)
        }
        Some(LocalState::Stopping) => {
            machine.remember_console().await;
            false
        }
        Some(_) | None => false,
    };
    let held = Held::new(host, machine.id()).await;
    // Another monitor may have come in this one's place while we waited.
    if held.machine().live().is_none_or(|live| live.process != process) {
        return Ok(CALM);
    }
    held.machine().set_status(Some(status.clone()));
    let going = host.look_at_move(held.machine()).await?;
    if let Some(going) = &going {
        host.follow_move(&held, going).await?;
    }
    let here = held.instance()?;
    let moving = going.is_some_and(|m| !m.settled && m.state != LocalMigrationState::Failed);
    match here.phase {
        LocalState::HandedOver if *told != Told::Away => {
            host.repair_source(&here).await?;
            *told = Told::Away;
        }
        LocalState::Starting | LocalState::Ready | LocalState::Stopping if runs(&status) => {
            if *told != Told::Here {
                host.repair_here(&here).await?;
                *told = Told::Here;
            }
            if ready && here.phase == LocalState::Starting {
                held.phase(LocalState::Ready, None).await?;
            }
        }
        LocalState::Starting
        | LocalState::Ready
        | LocalState::Stopping
        | LocalState::Incoming
        | LocalState::HandedOver
        | LocalState::Stopped
        | LocalState::Crashed => {}
    }
    let settled = matches!(here.phase, LocalState::Ready | LocalState::HandedOver) && !moving;
    Ok(if settled { CALM } else { BUSY })
}

/// Whether the guest belongs here and was started.
fn runs(status: &Status) -> bool {
    match status.state {
        State::Running | State::Paused => true,
        State::Incoming | State::Prepared | State::HandedOver | State::Stopped => false,
    }
}
