//! Moves that succeed, and failures that machines and people cause.

use std::sync::atomic::Ordering;

use super::super::machine::NetFrame;
use super::*;
use crate::api::Phase;

fn frame(byte: u8) -> NetFrame {
    NetFrame { device: 0, bytes: vec![byte; 60] }
}

#[test]
fn a_busy_machine_arrives_whole() {
    let rig = Rig::new(&Shape::default());
    lock_frames(&rig.source).extend([frame(1), frame(2)]);
    let incoming = rig.listen();
    let outgoing = rig.start(rig.request_out(incoming.address()));
    until("Completed", || outgoing.status().outcome.is_some());
    assert_eq!(outgoing.status().outcome, Some(Outcome::Completed), "{:?}", outgoing.status());
    // A frame that reaches the old tap after the hand-over.
    lock_frames(&rig.source).push_back(frame(3));
    let (out, into) = (outgoing.join(), incoming.join());
    assert_eq!(into.outcome, Some(Outcome::Completed));
    assert_eq!((out.phase, into.phase), (Phase::Running, Phase::Running));
    rig.assert_moved();
    assert!(rig.handed_over());
    assert_eq!(lock_frames(&rig.destination).iter().map(|f| f.bytes[0]).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(out.figures.frames, 3);
    assert!(out.figures.blackout_us > 0 && out.figures.rounds >= 1 && out.figures.zero_pages > 0);
    assert_eq!(rig.source.called("release"), 1);
    assert_eq!(rig.source.called("resume"), 0);
    assert!(!rig.source.logging.load(Ordering::SeqCst));
    let record = handover::read(&rig.state_dir("b"), handover::ACCEPTED).unwrap().unwrap();
    assert_eq!(record.next_epoch, 4);
}

#[test]
fn a_large_machine_goes_over_all_streams() {
    let shape =
        Shape { ram_pages: vec![6000], writes_per_second: 20_000, working_set: 6000, ..Shape::default() };
    let rig = Rig::new(&shape);
    let incoming = rig.listen();
    let status = rig.start(MigrateOut { streams: 4, ..rig.request_out(incoming.address()) }).join();
    assert_eq!(status.outcome, Some(Outcome::Completed));
    incoming.join();
    rig.assert_moved();
}

#[test]
fn the_calls_come_in_the_documented_order() {
    let rig = Rig::new(&Shape { writes_per_second: 0, ..Shape::default() });
    let incoming = rig.listen();
    rig.start(rig.request_out(incoming.address())).join();
    incoming.join();
    let calls = |machine: &FakeMachine| {
        let mut calls = machine.calls.lock().unwrap().clone();
        calls.dedup();
        calls
    };
    let source = calls(&rig.source);
    let blackout = source.iter().position(|call| *call == "pause").unwrap();
    assert_eq!(source[blackout..][..5], ["pause", "save", "last_harvest", "take_frames", "release"]);
    assert_eq!(source.last(), Some(&"stop_dirty_log"));
    let destination = calls(&rig.destination);
    assert_eq!(destination[..5], ["check_compatible", "load", "inject_frames", "prepared", "run"]);
}

#[test]
fn a_guest_that_writes_too_fast_is_throttled_and_released() {
    // A budget that leaves a millisecond for what is left to send, or twelve at most.
    let shape = Shape { ram_pages: vec![30_000], rewritten: 30_000, disk_blocks: vec![], ..Shape::default() };
    let rig = Rig::new(&shape);
    let incoming = rig.listen();
    let request = MigrateOut {
        throttle: true,
        budget_ms: 11,
        timeout_ms: 10_000,
        ..rig.request_out(incoming.address())
    };
    let status = rig.start(request).join();
    assert!(rig.source.highest_throttle.load(Ordering::SeqCst) > 0, "{status:?}");
    assert_eq!(status.figures.throttle_percent, rig.source.highest_throttle.load(Ordering::SeqCst));
    if status.outcome == Some(Outcome::Completed) {
        incoming.join();
        rig.assert_moved();
    } else {
        assert!(failure(&status).contains("did not converge"));
        rig.assert_stayed();
    }
}

#[test]
fn a_guest_that_does_not_converge_goes_on_with_a_reason() {
    let shape = Shape { ram_pages: vec![30_000], rewritten: 30_000, disk_blocks: vec![], ..Shape::default() };
    let rig = Rig::new(&shape);
    let incoming = rig.listen();
    let status = rig.start(MigrateOut { budget_ms: 11, ..rig.request_out(incoming.address()) }).join();
    let error = failure(&status);
    assert!(error.contains("did not converge") && error.contains("budget"), "{error}");
    rig.assert_stayed();
    assert_eq!(rig.source.called("pause"), 0);
    let error = failure(&incoming.join());
    assert!(error.contains("did not converge"), "{error}");
}

#[test]
fn a_failure_of_the_source_before_the_record_resumes_it() {
    for method in ["describe", "start_dirty_log", "harvest", "pause", "save", "last_harvest", "take_frames"] {
        let rig = Rig::new(&Shape::default());
        rig.source.fail(method);
        let incoming = rig.listen();
        let error = failure(&rig.start(rig.request_out(incoming.address())).join());
        assert!(error.contains(&format!("{method} failed on demand")), "{method}: {error}");
        rig.assert_stayed();
        if method != "describe" {
            failure(&incoming.join());
            assert_eq!(rig.destination.called("discard"), 1, "{method}");
        }
    }
}

#[test]
fn a_failure_of_the_destination_before_prepared_resumes_the_source_with_its_reason() {
    for method in ["check_compatible", "load", "inject_frames"] {
        let rig = Rig::new(&Shape::default());
        rig.destination.fail(method);
        let incoming = rig.listen();
        let error = failure(&rig.start(rig.request_out(incoming.address())).join());
        assert!(error.contains(&format!("{method} failed on demand")), "{method}: {error}");
        rig.assert_stayed();
        failure(&incoming.join());
        assert_eq!(rig.destination.called("discard"), 1);
    }
}

#[test]
fn a_destination_that_cannot_run_after_the_hand_over_leaves_nobody_running() {
    let rig = Rig::new(&Shape::default());
    rig.destination.fail("run");
    let incoming = rig.listen();
    let status = rig.start(rig.request_out(incoming.address())).join();
    assert!(matches!(status.outcome, Some(Outcome::Doubtful { .. })), "{status:?}");
    assert!(failure(&incoming.join()).contains("runs nowhere"));
    assert_eq!(rig.arena.runners(), 0);
    assert_eq!(rig.source.called("resume"), 0);
}

#[test]
fn an_incompatible_cpu_is_refused_before_any_page() {
    let rig = Rig::new(&Shape::default());
    rig.source.cpu.lock().unwrap().vendor = "AuthenticAMD".into();
    let incoming = rig.listen();
    let status = rig.start(rig.request_out(incoming.address())).join();
    let error = failure(&status);
    assert!(error.contains("AuthenticAMD"), "{error}");
    assert_eq!(status.figures.ram_bytes, 0);
    rig.assert_stayed();
}

#[test]
fn another_shape_of_machine_is_refused_by_name() {
    let rig = Rig::new(&Shape::default());
    let other = FakeMachine::new(&rig.arena, &Shape { disk_blocks: vec![64, 33], ..Shape::default() });
    let incoming = Incoming::listen(other, rig.request_in(), rig.instance("b", 4)).unwrap();
    let error = failure(&rig.start(rig.request_out(incoming.address())).join());
    assert!(error.contains("disk 1"), "{error}");
    rig.assert_stayed();
}

#[test]
fn another_migration_is_refused_and_the_right_one_still_comes_in() {
    let rig = Rig::new(&Shape::default());
    let incoming = rig.listen();
    let other = MigrateOut { migration_id: "another".into(), ..rig.request_out(incoming.address()) };
    let error = failure(&rig.start(other).join());
    assert!(error.contains("is expected here"), "{error}");
    rig.assert_stayed();
    let status = rig.start(rig.request_out(incoming.address())).join();
    assert_eq!(status.outcome, Some(Outcome::Completed));
    incoming.join();
    rig.assert_moved();
}

#[test]
fn a_stale_epoch_is_refused() {
    let rig = Rig::new(&Shape::default());
    let wrong = MigrateOut { next_epoch: 9, ..rig.request_out(([127, 0, 0, 1], 1).into()) };
    let refused = Outgoing::start(rig.source.clone(), wrong, rig.instance("a", 3));
    assert!(refused.is_err());
    let incoming = Incoming::listen(rig.destination.clone(), rig.request_in(), rig.instance("b", 5)).unwrap();
    let error = failure(&rig.start(rig.request_out(incoming.address())).join());
    assert!(error.contains("epoch"), "{error}");
    rig.assert_stayed();
}

#[test]
fn a_cancellation_takes_effect_in_every_phase_before_the_record() {
    for phase in ["handshake", "pre-copy", "stop-and-copy", "prepared"] {
        let rig = Rig::new(&Shape::default());
        let hold = rig.state_dir("a").join(format!("hold-{phase}"));
        std::fs::write(&hold, b"").unwrap();
        let incoming = rig.listen();
        let outgoing = rig.start(rig.request_out(incoming.address()));
        std::thread::sleep(Duration::from_millis(300));
        outgoing.cancel().unwrap();
        let asked = Instant::now();
        let error = failure(&outgoing.join());
        assert!(error.contains("cancelled"), "{phase}: {error}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{phase}");
        rig.assert_stayed();
        if phase == "prepared" {
            until("a destination in doubt", || incoming.resolve(false).is_ok());
        }
        if phase != "handshake" {
            failure(&incoming.join());
        }
    }
}

#[test]
fn a_cancellation_after_the_record_is_refused() {
    let rig = Rig::new(&Shape::default());
    std::fs::write(rig.state_dir("a").join("hold-handed-over"), b"").unwrap();
    let incoming = rig.listen();
    let outgoing = rig.start(rig.request_out(incoming.address()));
    until("the hand-over", || outgoing.status().phase == Phase::HandedOver);
    let error = outgoing.cancel().unwrap_err().to_string();
    assert!(error.contains("handed over"), "{error}");
    std::fs::remove_file(rig.state_dir("a").join("hold-handed-over")).unwrap();
    assert_eq!(outgoing.join().outcome, Some(Outcome::Completed));
    incoming.join();
    rig.assert_moved();
}

#[test]
fn a_directory_with_a_hand_over_record_takes_no_machine_in() {
    let rig = Rig::new(&Shape::default());
    std::fs::write(rig.state_dir("b").join(handover::HANDED_OVER), b"unreadable is no excuse").unwrap();
    let refused = Incoming::listen(rig.destination.clone(), rig.request_in(), rig.instance("b", 4));
    assert!(refused.is_err());
}

#[test]
fn a_record_that_cannot_be_written_resumes_the_source() {
    let rig = Rig::new(&Shape::default());
    std::fs::create_dir(rig.state_dir("a").join(handover::HANDED_OVER)).unwrap();
    let incoming = rig.listen();
    let error = failure(&rig.start(rig.request_out(incoming.address())).join());
    assert!(error.contains(handover::HANDED_OVER), "{error}");
    assert!(rig.source.is_running() && !rig.destination.is_running());
    failure(&incoming.join());
}

fn lock_frames(machine: &FakeMachine) -> std::sync::MutexGuard<'_, std::collections::VecDeque<NetFrame>> {
    machine.frames.lock().unwrap()
}
