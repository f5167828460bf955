//! A guest that writes while it moves: one that can converge does; one that cannot ends throttled or where it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_tests::daemons::Fleet;
use mashines_tests::netns::Place;
use mashines_tests::run::wait_for;
use mashines_tests::{bench_guest, figures};
use serde_json::Value;

const PAGES_PER_MIB: u64 = 256;

#[test]
fn writers_converge_or_are_throttled_or_told_why_not() -> Result<()> {
    let fleet = Fleet::up("convergence", &mut |step| eprintln!("{step}"))?;
    let words =
        ["launch", "--name", "writer", "--image", "bench", "--vcpu", "1", "--memory", "256M", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    let ask = |line: &str| bench_guest::ask(&fleet.topology, Place::Client, machine.ipv6, line);
    let boot = bench_guest::boot_id(&fleet.topology, machine.ipv6)?;

    // What the issue names: 64 MiB at 20 MiB/s.
    start_writing(&ask, 64, 20)?;
    let moved = fleet.migrate("writer")?;
    let seen = figures::of(&moved)?;
    eprintln!(
        "64 MiB at 20 MiB/s: {} rounds, blackout {} us, throttle {} %",
        seen.rounds, seen.blackout_us, seen.throttle_percent
    );
    ensure!(moved.error.is_none(), "{:?}", moved.error);
    unharmed(&ask("status")?, &boot)?;

    // Faster than any link of the lab.
    ask("stop")?;
    let fastest = start_writing(&ask, 160, 100_000)?;
    eprintln!("as fast as it can: {fastest} MiB/s");
    ensure!(fastest > 50, "the guest writes no faster than a link could carry: nothing would be shown");
    throttled_or_told(&fleet, "as fast as it can", &[])?;
    unharmed(&ask("status")?, &boot)?;

    // No time to slow it down.
    throttled_or_told(&fleet, "with 2 s in all", &["--budget", "12ms", "--give-up", "2s"])?;
    unharmed(&ask("status")?, &boot)?;
    ask("stop")?;
    let calm = fleet.migrate("writer")?;
    ensure!(calm.error.is_none(), "the move after it: {:?}", calm.error);
    unharmed(&ask("status")?, &boot)
}

/// Moves the machine: that succeeds, or it stays and the error says that it did not converge.
fn throttled_or_told(fleet: &Fleet, what: &str, terms: &[&str]) -> Result<()> {
    let from = fleet.place_of("writer")?;
    let moved = fleet.migrate_with("writer", terms)?;
    let seen = figures::of(&moved)?;
    let (rounds, blackout, throttle) = (seen.rounds, seen.blackout_us, seen.throttle_percent);
    eprintln!("{what}: {rounds} rounds, blackout {blackout} us, throttle {throttle} %, {:?}", moved.error);
    if let Some(error) = &moved.error {
        ensure!(error.contains("converge"), "the error does not say that it did not converge: {error}");
        ensure!(fleet.place_of("writer")? == from, "it failed and moved all the same");
    }
    Ok(())
}

/// Starts the writer, waits until it has rewritten all of its memory, and measures how fast it goes, MiB/s. Its first round is
/// slow: each page of it is a fault in the guest and one in the host.
fn start_writing(ask: &impl Fn(&str) -> Result<Value>, mib: u64, mib_per_s: u64) -> Result<u64> {
    ask(&format!("write {mib} {mib_per_s}"))?;
    let pages = || -> Result<u64> { ask("status")?["writer"]["pages"].as_u64().context("no count of pages") };
    let (begun, first) =
        wait_for("a round of the writer", Duration::from_secs(60), Duration::from_millis(200), || {
            let written = pages()?;
            ensure!(written >= mib * PAGES_PER_MIB, "{written} pages so far");
            Ok((Instant::now(), written))
        })?;
    std::thread::sleep(Duration::from_secs(2));
    let millis = u64::try_from(begun.elapsed().as_millis())?;
    Ok((pages()? - first) * 1000 / millis / PAGES_PER_MIB)
}

/// Same boot, and every page that the writer checked held what it had written.
fn unharmed(state: &Value, boot: &str) -> Result<()> {
    ensure!(state["boot_id"].as_str() == Some(boot), "the guest booted anew: {state}");
    let wrong = state["writer"]["mismatches"].as_u64().context("the writer counts no mismatches")?;
    ensure!(wrong == 0, "{wrong} pages held other bytes than were written");
    Ok(())
}
