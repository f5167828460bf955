//! The decisions, apart from their doing: pure functions of records and of what was seen.
//!
//! The rules that keep a machine from running twice, all of them here:
//! - An epoch that ended on this host (its fence) never starts on it again.
//! - An instance whose hand-over is durable never runs again in its epoch, nor in the one that it was handed over to.
//! - Nothing here starts because a daemon or a host came back: only control's word starts a machine. A guest that reboots goes on
//!   in its own epoch, under the same monitor's lock.

use mashines_fleet::host_api::{LocalMigrationState, LocalState};
use mashines_fleet::id::Epoch;
use mashines_vmm::api::{MigrationStatus, Outcome, State};

use crate::error::{HostError, Result};
use crate::instance::Instance;
use crate::process::Exit;

/// The monitor's exit codes, as `mashines-vmm` documents them.
mod code {
    /// The guest powered off, or the monitor was told to end.
    pub const POWER_OFF: i32 = 0;
    /// The guest asked for a reset.
    pub const RESET: i32 = 3;
    /// A vCPU could not go on.
    pub const TRIPLE_FAULT: i32 = 4;
    /// A destination was discarded; nothing of it ever ran.
    pub const DISCARDED: i32 = 5;
}

/// What to do with a call that wants a machine to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Boot it.
    Boot,
    /// It was started in this epoch before: answer how it stands.
    Answer,
}

/// Whether a machine may start here in `asked`, given what is here of it and its fence.
pub fn start(fence: Option<Epoch>, here: Option<&Instance>, asked: Epoch) -> Result<Start> {
    if let Some(fence) = fence.filter(|fence| *fence >= asked) {
        return Err(HostError::conflict(format!(
            "epoch {asked} of the machine has ended on this host (up to {fence} has): a start needs a later one"
        )));
    }
    let Some(here) = here else { return Ok(Start::Boot) };
    let refuse = |why: &str| {
        let (id, epoch) = (here.id(), here.epoch);
        Err(HostError::conflict(format!(
            "machine {id} is here in epoch {epoch}, {why}; {asked} was asked for"
        )))
    };
    if here.epoch > asked {
        return refuse("a later one");
    }
    if here.epoch == asked {
        return match here.phase {
            LocalState::Incoming => refuse("as the destination of a move that is not over"),
            LocalState::HandedOver => refuse("handed over: it never runs here in it again"),
            LocalState::Starting
            | LocalState::Ready
            | LocalState::Stopping
            | LocalState::Stopped
            | LocalState::Crashed => Ok(Start::Answer),
        };
    }
    match here.phase {
        LocalState::Stopped | LocalState::Crashed => Ok(Start::Boot),
        LocalState::Starting | LocalState::Ready | LocalState::Stopping => {
            refuse("and still runs: stop it first")
        }
        LocalState::Incoming => refuse("as the destination of a move: cancel that first"),
        // The epoch after the handed-over one belongs to the destination. A later one is control's verdict that the
        // destination never ran and never will: the disks here are the machine again.
        LocalState::HandedOver if asked > here.epoch.next() => Ok(Start::Boot),
        LocalState::HandedOver => refuse("handed over to another host in the next"),
    }
}

/// Whether a machine may arrive here by a move, in `asked`. Unlike a start, it wants nothing of it to be here.
pub fn arrive(fence: Option<Epoch>, here: Option<&Instance>, asked: Epoch) -> Result<()> {
    if let Some(fence) = fence.filter(|fence| *fence >= asked) {
        return Err(HostError::conflict(format!(
            "epoch {asked} of the machine has ended on this host (up to {fence} has): a move needs a later one"
        )));
    }
    let Some(here) = here else { return Ok(()) };
    let why = match here.phase {
        LocalState::HandedOver => "as the source of an earlier move: finish that first",
        LocalState::Incoming => "as the destination of another move: cancel that first",
        LocalState::Starting | LocalState::Ready | LocalState::Stopping => {
            "and runs: it need not be moved here"
        }
        LocalState::Stopped | LocalState::Crashed => "and is down: remove it first if its disks are stale",
    };
    Err(HostError::conflict(format!("machine {} is on this host in epoch {}, {why}", here.id(), here.epoch)))
}

/// Whether a call about a running instance means the one that is here.
pub fn same_epoch(here: &Instance, asked: Epoch) -> Result<()> {
    if here.epoch == asked {
        return Ok(());
    }
    Err(HostError::conflict(format!(
        "machine {} is here in epoch {}, the call means epoch {asked}",
        here.id(),
        here.epoch
    )))
}

/// The monitor's durable records of one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durable {
    /// Source: the machine belongs to the destination.
    pub handed_over: bool,
    /// Destination: the machine belongs here.
    pub accepted: bool,
}

/// What follows from a monitor's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterExit {
    /// Down, as the guest or the owner wanted.
    Stopped(Option<String>),
    /// The guest rebooted: start it again in place.
    Reboot,
    /// Down, and nobody wanted that.
    Crashed(String),
    /// The machine is elsewhere; only disks are left here.
    HandedOver,
    /// A destination that never ran: take away what was prepared.
    Discard(String),
}

/// What follows when the monitor of an instance in `phase` ended. `log` are the last lines that it wrote.
pub fn after_exit(phase: LocalState, exit: Exit, durable: Durable, log: &str) -> AfterExit {
    if durable.handed_over || phase == LocalState::HandedOver {
        return AfterExit::HandedOver;
    }
    if exit == Exit::Code(code::DISCARDED) || (phase == LocalState::Incoming && !durable.accepted) {
        return AfterExit::Discard(describe(exit, log));
    }
    if phase == LocalState::Stopping {
        return AfterExit::Stopped(None);
    }
    match exit {
        Exit::Code(code::POWER_OFF) => AfterExit::Stopped(Some("the guest powered itself off".to_owned())),
        Exit::Code(code::RESET) => AfterExit::Reboot,
        Exit::Code(_) | Exit::Signal(_) | Exit::Unseen => AfterExit::Crashed(describe(exit, log)),
    }
}

fn describe(exit: Exit, log: &str) -> String {
    let what = match exit {
        Exit::Code(code::POWER_OFF) => "the monitor ended".to_owned(),
        Exit::Code(code::RESET) => "the guest reset the machine".to_owned(),
        Exit::Code(code::TRIPLE_FAULT) => {
            "the guest's CPU could not go on (triple fault: its kernel crashed hard)".to_owned()
        }
        Exit::Code(code::DISCARDED) => "the destination gave the move up".to_owned(),
        Exit::Code(other) => format!("the monitor failed with exit code {other}"),
        Exit::Signal(9) => {
            "the monitor was killed (SIGKILL: by an operator, or by the kernel for lack of memory)".to_owned()
        }
        Exit::Signal(other) => format!("the monitor was ended by signal {other}"),
        Exit::Unseen => "the monitor ended while the host's daemon was not running to hear how".to_owned(),
    };
    match log.trim() {
        "" => what,
        log => format!("{what}; the end of its log:\n{log}"),
    }
}

/// What is seen of one side of a move.
#[derive(Debug, Clone, Copy)]
pub struct SeenMove<'a> {
    /// The monitor's process lives.
    pub alive: bool,
    /// Where the monitor says that it stands, when it answered.
    pub state: Option<State>,
    /// What it says of this move, when it answered and knows it.
    pub status: Option<&'a MigrationStatus>,
    /// Its durable records.
    pub durable: Durable,
}

/// How the source's side stands, and what went wrong.
pub fn source_state(seen: SeenMove<'_>) -> (LocalMigrationState, Option<String>) {
    let outcome = seen.status.and_then(|s| s.outcome.as_ref());
    if seen.durable.handed_over || seen.state == Some(State::HandedOver) {
        return (LocalMigrationState::HandedOver, doubt(outcome));
    }
    match outcome {
        Some(Outcome::Failed { error }) => (LocalMigrationState::Failed, Some(error.clone())),
        // Both are only said after the hand-over's record.
        Some(Outcome::Completed | Outcome::Doubtful { .. }) => {
            (LocalMigrationState::HandedOver, doubt(outcome))
        }
        None if seen.alive => (LocalMigrationState::Active, None),
        None => {
            (LocalMigrationState::Failed, Some("the source's monitor ended before the hand-over".to_owned()))
        }
    }
}

/// How the destination's side stands, and what went wrong.
pub fn destination_state(seen: SeenMove<'_>) -> (LocalMigrationState, Option<String>) {
    // A destination writes its acceptance before its first instruction: with it, the machine is here, alive or crashed.
    if seen.durable.accepted {
        return (LocalMigrationState::Running, None);
    }
    if !seen.alive {
        let error = "the destination's monitor ended before the machine ran there";
        return (LocalMigrationState::Failed, Some(error.to_owned()));
    }
    match (seen.state, seen.status.and_then(|s| s.outcome.as_ref())) {
        (Some(State::Running | State::Paused), _) => (LocalMigrationState::Running, None),
        (
            Some(State::Incoming | State::Prepared | State::Stopped) | None,
            Some(Outcome::Failed { error }),
        ) => (LocalMigrationState::Failed, Some(error.clone())),
        (Some(State::Prepared), _) => (LocalMigrationState::Prepared, None),
        (Some(State::Stopped | State::HandedOver), _) => {
            (LocalMigrationState::Failed, Some("the destination's monitor discarded the instance".to_owned()))
        }
        (Some(State::Incoming) | None, _) => (LocalMigrationState::Active, None),
    }
}

fn doubt(outcome: Option<&Outcome>) -> Option<String> {
    match outcome {
        Some(Outcome::Doubtful { error }) => Some(error.clone()),
        Some(Outcome::Completed | Outcome::Failed { .. }) | None => None,
    }
}

/// What the machines of a host were promised, or what one asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// RAM, MiB.
    pub memory_mib: u64,
    /// Disk, MiB.
    pub disk_mib: u64,
}

/// Whether `asked` fits beside what was promised; the answer names what is short, by how much.
pub fn fits(capacity: Room, promised: Room, asked: Room) -> Result<()> {
    let short = [
        ("vCPUs", u64::from(capacity.vcpus), u64::from(promised.vcpus), u64::from(asked.vcpus)),
        ("MiB of memory", capacity.memory_mib, promised.memory_mib, asked.memory_mib),
        ("MiB of disk", capacity.disk_mib, promised.disk_mib, asked.disk_mib),
    ]
    .into_iter()
    .find(|(_, has, promised, asked)| *asked > 0 && promised.saturating_add(*asked) > *has);
    match short {
        None => Ok(()),
        Some((what, has, promised, asked)) => Err(HostError::no_room(format!(
            "no room on this host: {asked} {what} are asked for, {promised} of {has} are promised already"
        ))),
    }
}

#[cfg(test)]
mod tests;
