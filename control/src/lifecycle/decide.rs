//! The next step of a machine: a total function of the record and of what its host says.
//!
//! | wanted ↓ \ seen → | silent | absent | older epoch | starting / ready | stopped | crashed |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | started | tell | run, or ask when it was up | run (end it first when it runs) | note it | by policy | by policy |
//! | stopped | tell | note it | end it | stop | note it | note it |
//! | destroyed | wait | remove | remove | remove | remove | remove |
//!
//! While a migration is under way its saga is in charge, and nothing here acts.

use mashines_fleet::host_api::{LocalMachine, LocalState};
use mashines_fleet::id::{Epoch, HostId};
use mashines_fleet::record::{Desired, Machine, MachineState, Place, RestartWhen, UnixMs};

use crate::hosts::Seen;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    Wait,
    /// Boot it there in the place's epoch. Harmless when it runs there already.
    Run(Place),
    /// End the instance of this epoch there.
    Stop(HostId, Epoch),
    /// The host says that it has nothing, but said otherwise before: ask it now, since a report may be late.
    Ask(Place),
    /// Remove the instance and its root disk there; then the machine is gone.
    Remove(Place),
    /// It never had a place: it is gone at once.
    Forget,
    /// Write down what is seen.
    Note(Noted),
    /// It ended though it should run: start it again in the next epoch, or give up, by its policy.
    Ended {
        /// Why it ended, for people.
        reason: String,
        /// It crashed; otherwise the guest powered itself off.
        crashed: bool,
    },
}

/// What a machine's record should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The state.
    pub state: MachineState,
    /// Why, where a person should know.
    pub reason: Option<String>,
}

/// Restarts are paced: 1, 2, 4, … 30 s between them.
const LONGEST_PAUSE_MS: u64 = 30_000;

/// The next step.
pub fn decide(machine: &Machine, seen: &Seen, migrating: bool, now: UnixMs) -> Action {
    if migrating || machine.state == MachineState::Destroyed {
        return Action::Wait;
    }
    let Some(place) = &machine.place else {
        return match machine.desired {
            Desired::Destroyed => Action::Forget,
            // It gets its place in the same transaction that wants it started.
            Desired::Started | Desired::Stopped => Action::Wait,
        };
    };
    match machine.desired {
        Desired::Started => started(machine, place, seen, now),
        Desired::Stopped => stopped(machine, place, seen),
        Desired::Destroyed => destroyed(machine, place, seen),
    }
}

fn started(machine: &Machine, place: &Place, seen: &Seen, now: UnixMs) -> Action {
    let local = match seen {
        Seen::Silent => return silent(machine, place),
        Seen::Absent => {
            return match machine.state {
                MachineState::Created | MachineState::Starting | MachineState::Failed => {
                    run(machine, place, now)
                }
                MachineState::Started
                | MachineState::Stopping
                | MachineState::Stopped
                | MachineState::Destroying
                | MachineState::Destroyed => Action::Ask(place.clone()),
            };
        }
        Seen::Here(local) => local,
    };
    if local.epoch < place.epoch {
        return match local.state {
            LocalState::Starting | LocalState::Ready => Action::Stop(place.host.clone(), local.epoch),
            LocalState::Stopping | LocalState::Incoming => Action::Wait,
            LocalState::Stopped | LocalState::Crashed | LocalState::HandedOver => run(machine, place, now),
        };
    }
    if local.epoch > place.epoch {
        // Only control raises epochs: a report of a later one is of a machine that was told more than this record knows.
        return Action::Wait;
    }
    match local.state {
        LocalState::Starting => note(machine, MachineState::Starting, None),
        LocalState::Ready => note(machine, MachineState::Started, None),
        LocalState::Stopping => Action::Wait,
        LocalState::Stopped => ended(local, false),
        LocalState::Crashed => ended(local, true),
        // The remains of a move that is decided: the saga or the sweep clears them.
        LocalState::Incoming | LocalState::HandedOver => Action::Wait,
    }
}

fn stopped(machine: &Machine, place: &Place, seen: &Seen) -> Action {
    let local = match seen {
        Seen::Silent => return silent(machine, place),
        Seen::Absent => return note(machine, resting(machine), machine.reason.clone()),
        Seen::Here(local) => local,
    };
    match local.state {
        LocalState::Starting | LocalState::Ready => Action::Stop(place.host.clone(), local.epoch),
        LocalState::Stopping => note(machine, MachineState::Stopping, machine.reason.clone()),
        LocalState::Stopped | LocalState::Crashed | LocalState::HandedOver | LocalState::Incoming => {
            note(machine, resting(machine), machine.reason.clone())
        }
    }
}

/// How a machine rests that should not run.
fn resting(machine: &Machine) -> MachineState {
    match machine.state {
        MachineState::Failed => MachineState::Failed,
        MachineState::Created => MachineState::Created,
        MachineState::Starting
        | MachineState::Started
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Destroying
        | MachineState::Destroyed => MachineState::Stopped,
    }
}

fn destroyed(machine: &Machine, place: &Place, seen: &Seen) -> Action {
    match seen {
        Seen::Silent => note(machine, MachineState::Destroying, Some(no_answer(place))),
        Seen::Absent | Seen::Here(_) => Action::Remove(place.clone()),
    }
}

fn no_answer(place: &Place) -> String {
    format!("host {} does not answer", place.host)
}

/// The state stays, since nobody knows better; the reason tells.
fn silent(machine: &Machine, place: &Place) -> Action {
    match machine.state {
        MachineState::Created | MachineState::Starting | MachineState::Started | MachineState::Stopping => {
            note(machine, machine.state, Some(no_answer(place)))
        }
        MachineState::Stopped | MachineState::Failed | MachineState::Destroying | MachineState::Destroyed => {
            Action::Wait
        }
    }
}

fn note(machine: &Machine, state: MachineState, reason: Option<String>) -> Action {
    if machine.state == state && machine.reason == reason {
        return Action::Wait;
    }
    Action::Note(Noted { state, reason })
}

fn ended(local: &LocalMachine, crashed: bool) -> Action {
    let unknown = || if crashed { "the machine's monitor died" } else { "the guest powered itself off" };
    let reason = local.reason.clone().unwrap_or_else(|| unknown().to_owned());
    Action::Ended { reason, crashed }
}

/// Boots, unless it is a restart whose pause is not over.
fn run(machine: &Machine, place: &Place, now: UnixMs) -> Action {
    let restarts = recent_restarts(machine, now);
    let Some(last) = restarts.iter().max() else { return Action::Run(place.clone()) };
    let doublings = u32::try_from(restarts.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = 1000_u64.checked_shl(doublings).unwrap_or(u64::MAX).min(LONGEST_PAUSE_MS);
    if now < last.saturating_add(pause) { Action::Wait } else { Action::Run(place.clone()) }
}

/// Times of the automatic restarts within the last ten minutes.
pub fn recent_restarts(machine: &Machine, now: UnixMs) -> Vec<UnixMs> {
    let recent = machine.events.iter().filter(|event| event.kind == RESTART);
    recent.map(|event| event.timestamp).filter(|at| now.saturating_sub(*at) < 600_000).collect()
}

/// The kind of event that an automatic restart leaves.
pub const RESTART: &str = "restart";

/// Whether the policy wants a machine that ended to be started again.
pub fn restarts(machine: &Machine, crashed: bool, now: UnixMs) -> bool {
    let wanted = match machine.config.restart.policy {
        RestartWhen::No => false,
        RestartWhen::OnFailure => crashed,
        RestartWhen::Always => true,
    };
    let before = u32::try_from(recent_restarts(machine, now).len()).unwrap_or(u32::MAX);
    wanted && before < machine.config.restart.max_retries
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::MachineEvent;

    use super::*;
    use crate::testing::machine;

    fn local(epoch: u64, state: LocalState) -> Seen {
        let id = machine(None).id;
        Seen::Here(LocalMachine {
            id,
            epoch: Epoch(epoch),
            state,
            reason: None,
            cpu_time_us: 0,
            resident_bytes: 0,
        })
    }

    fn with(desired: Desired, state: MachineState) -> Machine {
        Machine { desired, state, ..machine(Some(("hosta", 3))) }
    }

    fn at3() -> Place {
        Place { host: "hosta".parse().unwrap(), epoch: Epoch(3) }
    }

    const STATES: [LocalState; 7] = [
        LocalState::Starting,
        LocalState::Ready,
        LocalState::Stopping,
        LocalState::Stopped,
        LocalState::Crashed,
        LocalState::Incoming,
        LocalState::HandedOver,
    ];

    #[test]
    fn a_new_machine_is_run_and_its_progress_is_noted() {
        let machine = with(Desired::Started, MachineState::Starting);
        assert_eq!(decide(&machine, &Seen::Absent, false, 0), Action::Run(at3()));
        assert_eq!(decide(&machine, &local(3, LocalState::Starting), false, 0), Action::Wait);
        let noted = decide(&machine, &local(3, LocalState::Ready), false, 0);
        assert_eq!(noted, Action::Note(Noted { state: MachineState::Started, reason: None }));
    }

    #[test]
    fn nothing_is_done_while_a_migration_is_under_way() {
        for desired in [Desired::Started, Desired::Stopped, Desired::Destroyed] {
            for state in STATES {
                let machine = with(desired, MachineState::Started);
                assert_eq!(decide(&machine, &local(3, state), true, 0), Action::Wait);
            }
        }
    }

    #[test]
    fn a_machine_that_was_up_is_never_started_on_a_late_report() {
        let machine = with(Desired::Started, MachineState::Started);
        assert_eq!(decide(&machine, &Seen::Absent, false, 0), Action::Ask(at3()));
    }

    #[test]
    fn an_older_instance_is_ended_before_the_new_one_runs() {
        let machine = with(Desired::Started, MachineState::Starting);
        let stop = Action::Stop("hosta".parse().unwrap(), Epoch(2));
        assert_eq!(decide(&machine, &local(2, LocalState::Ready), false, 0), stop);
        assert_eq!(decide(&machine, &local(2, LocalState::Crashed), false, 0), Action::Run(at3()));
        assert_eq!(decide(&machine, &local(4, LocalState::Ready), false, 0), Action::Wait);
    }

    #[test]
    fn a_machine_that_should_be_gone_is_never_run_nor_one_that_should_be_stopped() {
        for state in STATES {
            for epoch in [2, 3] {
                for desired in [Desired::Stopped, Desired::Destroyed] {
                    let action =
                        decide(&with(desired, MachineState::Started), &local(epoch, state), false, 0);
                    assert!(
                        !matches!(action, Action::Run(_) | Action::Ended { .. }),
                        "{desired:?} {state:?}: {action:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_silent_host_changes_no_state_but_is_told_once() {
        let machine = with(Desired::Started, MachineState::Started);
        let Action::Note(noted) = decide(&machine, &Seen::Silent, false, 0) else { panic!("told") };
        assert_eq!(noted.state, MachineState::Started);
        let machine = Machine { reason: noted.reason, ..machine };
        assert_eq!(decide(&machine, &Seen::Silent, false, 0), Action::Wait);
        let back = decide(&machine, &local(3, LocalState::Ready), false, 0);
        assert_eq!(back, Action::Note(Noted { state: MachineState::Started, reason: None }));
    }

    #[test]
    fn restarts_are_paced_and_counted() {
        let restart = |at| MachineEvent {
            kind: RESTART.to_owned(),
            status: String::new(),
            source: String::new(),
            timestamp: at,
            message: String::new(),
        };
        let mut machine = with(Desired::Started, MachineState::Starting);
        machine.events = vec![restart(1_000_000), restart(1_001_000), restart(1_003_000)];
        assert_eq!(decide(&machine, &Seen::Absent, false, 1_004_000), Action::Wait, "4 s after the third");
        assert_eq!(decide(&machine, &Seen::Absent, false, 1_007_000), Action::Run(at3()));
        machine.config.restart.max_retries = 3;
        assert!(!restarts(&machine, true, 1_007_000));
        assert!(restarts(&machine, true, 1_700_000), "ten minutes later they are forgotten");
        assert!(!restarts(&machine, false, 1_700_000), "powered off is no failure");
    }
}
