//! A guest that writes while it moves: one that can converge does; one that cannot ends throttled or where it was.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_tests::daemons::Fleet;
use mashines_tests::netns::Place;
use mashines_tests::{bench_guest, figures};
use serde_json::Value;

#[test]
fn writers_converge_or_are_throttled_or_told_why_not() -> Result<()> {
    let fleet = Fleet::up("convergence", &mut |step| eprintln!("{step}"))?;
    let words =
        ["launch", "--name", "writer", "--image", "bench", "--vcpu", "1", "--memory", "256M", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    let ask = |line: &str| bench_guest::ask(&fleet.topology, Place::Client, machine.ipv6, line);
    let boot = bench_guest::boot_id(&fleet.topology, machine.ipv6)?;

    // What the issue names: 64 MiB at 20 MiB/s.
    ask("write 64 20")?;
    std::thread::sleep(Duration::from_secs(2));
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
    ask("write 160 100000")?;
    let from = fleet.place_of("writer")?;
    let wild = fleet.migrate("writer")?;
    match &wild.error {
        None => {
            let seen = figures::of(&wild)?;
            eprintln!(
                "as fast as it can: {} rounds, blackout {} us, throttle {} %",
                seen.rounds, seen.blackout_us, seen.throttle_percent
            );
        }
        Some(error) => {
            eprintln!("as fast as it can: {error}");
            ensure!(error.contains("converge"), "the error does not say that it did not converge: {error}");
            ensure!(fleet.place_of("writer")? == from, "it failed and moved all the same");
        }
    }
    unharmed(&ask("status")?, &boot)?;
    ask("stop")?;
    let calm = fleet.migrate("writer")?;
    ensure!(calm.error.is_none(), "the move after it: {:?}", calm.error);
    unharmed(&ask("status")?, &boot)
}

/// Same boot, and every page that the writer checked held what it had written.
fn unharmed(state: &Value, boot: &str) -> Result<()> {
    ensure!(state["boot_id"].as_str() == Some(boot), "the guest booted anew: {state}");
    let wrong = state["writer"]["mismatches"].as_u64().context("the writer counts no mismatches")?;
    ensure!(wrong == 0, "{wrong} pages held other bytes than were written");
    Ok(())
}
