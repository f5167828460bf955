//! Every rule of `decide`, and each pair of states once.

use mashines_vmm::api::{Figures, Phase};

use super::*;
use crate::instance::tests::instance;

fn here(phase: LocalState, epoch: u64) -> Instance {
    Instance { phase, epoch: Epoch(epoch), ..instance() }
}

const ALL: [LocalState; 7] = [
    LocalState::Starting,
    LocalState::Ready,
    LocalState::Stopping,
    LocalState::Stopped,
    LocalState::Crashed,
    LocalState::Incoming,
    LocalState::HandedOver,
];

#[test]
fn a_fenced_epoch_never_starts() {
    assert!(start(Some(Epoch(4)), None, Epoch(4)).is_err());
    assert!(start(Some(Epoch(4)), None, Epoch(3)).is_err());
    assert_eq!(start(Some(Epoch(4)), None, Epoch(5)).unwrap(), Start::Boot);
}

#[test]
fn an_older_epoch_is_refused_whatever_is_here() {
    for phase in ALL {
        assert!(start(None, Some(&here(phase, 5)), Epoch(4)).is_err(), "{phase:?}");
    }
}

#[test]
fn a_repeated_start_is_answered_and_never_boots_twice() {
    for phase in ALL {
        match start(None, Some(&here(phase, 5)), Epoch(5)) {
            Ok(decision) => assert_eq!(decision, Start::Answer, "{phase:?}"),
            Err(_) => assert!(matches!(phase, LocalState::Incoming | LocalState::HandedOver)),
        }
    }
}

#[test]
fn a_later_epoch_boots_only_what_does_not_run() {
    for phase in ALL {
        let decision = start(None, Some(&here(phase, 5)), Epoch(6));
        let down = matches!(phase, LocalState::Stopped | LocalState::Crashed);
        assert_eq!(decision.is_ok(), down, "{phase:?}");
    }
}

#[test]
fn a_handed_over_machine_boots_again_only_past_the_destinations_epoch() {
    let gone = here(LocalState::HandedOver, 5);
    assert!(start(None, Some(&gone), Epoch(6)).is_err());
    assert_eq!(start(None, Some(&gone), Epoch(7)).unwrap(), Start::Boot);
}

#[test]
fn a_durable_hand_over_outweighs_every_exit() {
    let durable = Durable { handed_over: true, accepted: false };
    for phase in ALL {
        for exit in [Exit::Code(0), Exit::Code(3), Exit::Signal(9), Exit::Unseen] {
            assert_eq!(after_exit(phase, exit, durable, ""), AfterExit::HandedOver);
        }
    }
}

#[test]
fn an_exit_is_read_as_the_monitor_documents_it() {
    let after = |exit| after_exit(LocalState::Ready, exit, Durable::default(), "the last line");
    assert!(matches!(after(Exit::Code(0)), AfterExit::Stopped(Some(_))));
    assert_eq!(after(Exit::Code(3)), AfterExit::Reboot);
    for exit in [Exit::Code(1), Exit::Code(4), Exit::Signal(9), Exit::Unseen] {
        let AfterExit::Crashed(reason) = after(exit) else { panic!("{exit:?}") };
        assert!(reason.ends_with("the last line"), "{reason}");
    }
}

#[test]
fn a_machine_that_was_told_to_stop_has_stopped_however_its_monitor_ended() {
    for exit in [Exit::Code(0), Exit::Code(3), Exit::Signal(9), Exit::Unseen] {
        assert_eq!(after_exit(LocalState::Stopping, exit, Durable::default(), ""), AfterExit::Stopped(None));
    }
}

#[test]
fn a_destination_is_discarded_unless_it_accepted() {
    let lost = after_exit(LocalState::Incoming, Exit::Signal(9), Durable::default(), "");
    assert!(matches!(lost, AfterExit::Discard(_)));
    let accepted = Durable { handed_over: false, accepted: true };
    let crashed = after_exit(LocalState::Incoming, Exit::Signal(9), accepted, "");
    assert!(matches!(crashed, AfterExit::Crashed(_)));
}

fn status(outcome: Option<Outcome>) -> MigrationStatus {
    MigrationStatus {
        migration_id: "m".to_owned(),
        phase: Phase::PreCopy,
        outcome,
        figures: Figures::default(),
    }
}

#[test]
fn a_source_is_handed_over_by_its_record_alone_even_when_dead() {
    let durable = Durable { handed_over: true, accepted: false };
    let failed = status(Some(Outcome::Failed { error: "link".to_owned() }));
    let seen = SeenMove { alive: false, state: None, status: Some(&failed), durable };
    assert_eq!(source_state(seen).0, LocalMigrationState::HandedOver);
}

#[test]
fn a_source_that_died_before_the_hand_over_has_failed() {
    let seen = SeenMove { alive: false, state: None, status: None, durable: Durable::default() };
    assert_eq!(source_state(seen).0, LocalMigrationState::Failed);
    let silent = SeenMove { alive: true, ..seen };
    assert_eq!(source_state(silent).0, LocalMigrationState::Active);
}

#[test]
fn a_destination_runs_by_its_record_or_its_word() {
    let seen =
        SeenMove { alive: true, state: Some(State::Running), status: None, durable: Durable::default() };
    assert_eq!(destination_state(seen).0, LocalMigrationState::Running);
    let accepted = Durable { handed_over: false, accepted: true };
    let crashed = SeenMove { alive: false, state: None, status: None, durable: accepted };
    assert_eq!(destination_state(crashed).0, LocalMigrationState::Running);
    let lost = SeenMove { durable: Durable::default(), ..crashed };
    assert_eq!(destination_state(lost).0, LocalMigrationState::Failed);
}

#[test]
fn a_prepared_destination_says_so_until_it_is_resolved() {
    let seen =
        SeenMove { alive: true, state: Some(State::Prepared), status: None, durable: Durable::default() };
    assert_eq!(destination_state(seen).0, LocalMigrationState::Prepared);
    let waiting = SeenMove { state: Some(State::Incoming), ..seen };
    assert_eq!(destination_state(waiting).0, LocalMigrationState::Active);
}

#[test]
fn room_is_refused_with_what_is_short() {
    let capacity = Room { vcpus: 8, memory_mib: 1024, disk_mib: 10_000 };
    let promised = Room { vcpus: 4, memory_mib: 900, disk_mib: 0 };
    let asked = Room { vcpus: 4, memory_mib: 124, disk_mib: 10_000 };
    assert!(fits(capacity, promised, asked).is_ok());
    let error = fits(capacity, promised, Room { memory_mib: 125, ..asked }).unwrap_err();
    assert!(error.message.contains("125 MiB of memory"), "{error}");
}
