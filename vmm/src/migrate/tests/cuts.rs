//! The link is cut at every record in turn: at most one runs, always, and the source resumes exactly if it has no record.

use super::proxy::{Cut, Proxy};
use super::*;
use crate::api::Phase;

/// Returns whether the cut was reached, that is whether the migration has that many records.
fn move_with(shape: &Shape, cut: Cut) -> bool {
    let rig = Rig::new(shape);
    let request = MigrateIn { timeout_ms: 2000, ..rig.request_in() };
    let incoming = Incoming::listen(rig.destination.clone(), request, rig.instance("b", 4)).unwrap();
    let proxy = Proxy::new(incoming.address(), cut);
    let outgoing = rig.start(MigrateOut { streams: 1, ..rig.request_out(proxy.address) });
    until("an outcome of the source", || outgoing.status().outcome.is_some());
    let outcome = outgoing.status().outcome.unwrap();
    let was_cut = proxy.was_cut();
    proxy.close();

    let handed_over = rig.handed_over();
    let stayed = matches!(outcome, Outcome::Failed { .. });
    assert_eq!(stayed, !handed_over, "{cut:?}: {outcome:?}");
    assert_eq!(rig.source.is_running(), stayed, "{cut:?}: {outcome:?}");
    if stayed && !was_cut {
        panic!("{cut:?}: failed without a cut: {outcome:?}");
    }
    // The authority asks the source and tells the destination, if that is in doubt. One that is still in its handshake waits
    // for a source until its own time is up, which is not waited for here.
    let in_handshake = || stayed && incoming.status().phase == Phase::Handshake;
    until("the end of the destination", || {
        incoming.resolve(handed_over).is_ok() || incoming.status().outcome.is_some() || in_handshake()
    });
    outgoing.join();
    if !in_handshake() {
        incoming.join();
    }
    assert!(!rig.arena.two_at_once.load(std::sync::atomic::Ordering::SeqCst), "{cut:?}: two ran at once");
    assert_eq!(rig.arena.runners(), 1, "{cut:?}: {outcome:?}");
    if handed_over {
        rig.assert_moved();
    } else {
        rig.assert_stayed();
    }
    was_cut
}

fn sweep(shape: &Shape, towards_destination: bool, step: usize) {
    let mut after = 0;
    while move_with(shape, Cut { after, towards_destination, close: true }) {
        after += step;
        assert!(after < 2000, "it never completes");
    }
    assert!(after > 5 * step.min(2), "the sweep ended at record {after}");
}

fn tiny() -> Shape {
    Shape { ram_pages: vec![12], disk_blocks: vec![8], writes_per_second: 200, working_set: 4, rewritten: 0 }
}

#[test]
fn a_cut_at_each_record_towards_the_destination_leaves_one_runner() {
    sweep(&tiny(), true, 1);
}

#[test]
fn a_cut_at_each_record_towards_the_source_leaves_one_runner() {
    sweep(&tiny(), false, 1);
}

#[test]
fn a_cut_within_parallel_streams_leaves_one_runner() {
    let shape = Shape {
        ram_pages: vec![1400],
        disk_blocks: vec![64],
        writes_per_second: 0,
        working_set: 1,
        rewritten: 0,
    };
    sweep(&shape, true, 23);
}

#[test]
fn a_link_that_goes_silent_in_the_blackout_costs_seconds_not_the_machine() {
    let rig = Rig::new(&tiny());
    std::fs::write(rig.state_dir("a").join("hold-stop-and-copy"), b"").unwrap();
    let incoming = rig.listen();
    // Silent from the start of the stop-and-copy: a handful of records towards the source have passed by then.
    let cut = Cut { after: usize::MAX, towards_destination: false, close: false };
    let proxy = Proxy::new(incoming.address(), cut);
    let outgoing = rig.start(rig.request_out(proxy.address));
    until("the stop-and-copy", || outgoing.status().phase == Phase::StopAndCopy);
    proxy.swallow();
    std::fs::remove_file(rig.state_dir("a").join("hold-stop-and-copy")).unwrap();
    let paused = Instant::now();
    let error = failure(&outgoing.join());
    assert!(error.contains("nothing moved for too long"), "{error}");
    assert!(paused.elapsed() < Duration::from_secs(9));
    rig.assert_stayed();
    proxy.close();
    failure(&incoming.join());
}

#[test]
fn a_prepared_destination_waits_for_the_authority_and_obeys_it() {
    for run in [true, false] {
        let rig = Rig::new(&tiny());
        // The source stops between `Prepared` and its record, then the link breaks.
        std::fs::write(rig.state_dir("a").join("hold-prepared"), b"").unwrap();
        let incoming = rig.listen();
        assert!(incoming.resolve(run).is_err(), "nothing to resolve yet");
        let proxy =
            Proxy::new(incoming.address(), Cut { after: usize::MAX, towards_destination: true, close: true });
        let outgoing = rig.start(rig.request_out(proxy.address));
        until("Prepared", || rig.destination.called("prepared") == 1);
        until("the source's hold", || outgoing.status().phase == Phase::Prepared);
        // As if the source's host had lost power: it neither resumes nor speaks.
        rig.source.fail("resume");
        proxy.close();
        failure(&outgoing.join());
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(incoming.status().outcome, None, "it guessed");
        assert!(!rig.destination.is_running());
        until("the verdict", || incoming.resolve(run).is_ok());
        let status = incoming.join();
        assert_eq!(rig.destination.is_running(), run);
        assert_eq!(status.outcome == Some(Outcome::Completed), run);
        assert_eq!(rig.destination.called("discard"), usize::from(!run));
    }
}
