//! What a machine's record says after something happened to it.

use mashines_fleet::record::{Desired, Machine, MachineEvent, MachineState, UnixMs};

use super::decide::{RESTART, restarts};

/// How many events a record keeps.
const EVENTS: usize = 32;

/// Adds an event; the newest come first.
pub fn event(machine: &mut Machine, kind: &str, status: &str, source: &str, message: String, now: UnixMs) {
    let event = MachineEvent {
        kind: kind.to_owned(),
        status: status.to_owned(),
        source: source.to_owned(),
        timestamp: now,
        message,
    };
    machine.events.insert(0, event);
    machine.events.truncate(EVENTS);
    machine.updated_at = now;
}

/// It ended though it should run: starts it again in the next epoch, or leaves it down with the reason.
pub fn restart_or_stop(machine: &mut Machine, reason: String, crashed: bool, now: UnixMs) {
    let status = if crashed { "crashed" } else { "stopped" };
    event(machine, "exit", status, "host", reason.clone(), now);
    let again = restarts(machine, crashed, now);
    machine.reason = Some(reason.clone());
    match (&mut machine.place, again) {
        (Some(place), true) => {
            place.epoch = place.epoch.next();
            machine.state = MachineState::Starting;
            event(
                machine,
                RESTART,
                "started",
                "control",
                format!("started again by its restart policy: {reason}"),
                now,
            );
        }
        (_, false) | (None, true) => {
            machine.desired = if machine.config.auto_destroy { Desired::Destroyed } else { Desired::Stopped };
            machine.state = MachineState::Stopped;
        }
    }
}

#[cfg(test)]
mod tests {
    use mashines_fleet::id::Epoch;
    use mashines_fleet::record::RestartWhen;

    use super::*;
    use crate::testing::machine;

    #[test]
    fn a_crash_is_answered_with_the_next_epoch_and_a_power_off_with_rest() {
        let mut crashed = machine(Some(("hosta", 3)));
        restart_or_stop(&mut crashed, "triple fault".to_owned(), true, 5);
        assert_eq!((crashed.place.unwrap().epoch, crashed.desired), (Epoch(4), Desired::Started));
        let mut off = machine(Some(("hosta", 3)));
        restart_or_stop(&mut off, "powered off".to_owned(), false, 5);
        assert_eq!(
            (off.place.unwrap().epoch, off.desired, off.state),
            (Epoch(3), Desired::Stopped, MachineState::Stopped)
        );
        assert_eq!(off.reason.as_deref(), Some("powered off"));
    }

    #[test]
    fn a_machine_that_keeps_crashing_is_left_down_after_its_retries() {
        let mut machine = machine(Some(("hosta", 1)));
        machine.config.restart.max_retries = 4;
        for second in 0..10 {
            if machine.desired == Desired::Started {
                restart_or_stop(&mut machine, "it crashed".to_owned(), true, second * 1000);
            }
        }
        assert_eq!(machine.place.unwrap().epoch, Epoch(5));
        assert_eq!(machine.desired, Desired::Stopped);
    }

    #[test]
    fn a_one_shot_machine_is_gone_after_its_end() {
        let mut machine = machine(Some(("hosta", 1)));
        machine.config.restart.policy = RestartWhen::No;
        machine.config.auto_destroy = true;
        restart_or_stop(&mut machine, "done".to_owned(), false, 1);
        assert_eq!(machine.desired, Desired::Destroyed);
    }

    #[test]
    fn events_are_bounded() {
        let mut machine = machine(None);
        for n in 0..100 {
            event(&mut machine, "x", "y", "z", n.to_string(), n);
        }
        assert_eq!(machine.events.len(), EVENTS);
        assert_eq!(machine.events[0].message, "99");
    }
}
