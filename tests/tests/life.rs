//! A machine is launched, entered by every door, moved while people are in it, and is the same machine afterwards.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::{ECHO, Fleet};
use mashines_tests::figures;
use mashines_tests::guest::facts;
use mashines_tests::netns::{Place, SHARED_IPV4};
use mashines_tests::person::{COUNTER, Door};
use mashines_tests::run::wait_for;
use mashines_tests::stream::Stream;

const SLUG: &str = "shy-otter";

#[test]
fn a_machine_is_entered_by_every_door_and_lives_on_through_a_move_and_back() -> Result<()> {
    let fleet = Fleet::up("life", &mut |step| eprintln!("{step}"))?;
    let begun = Instant::now();
    let words =
        ["launch", "--name", SLUG, "--vcpu", "2", "--memory", "512M", "--volume", "data:1G", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    eprintln!("launched in {:.1} s at {}", begun.elapsed().as_secs_f64(), machine.ipv6);
    every_door_opens(&fleet, &machine)?;
    fleet.serve_echo_in(SLUG)?;
    fleet.person.sh(
        SLUG,
        Door::Ipv6,
        "head -c 3000000 /dev/urandom > /data/kept; sync; sha256sum /data/kept > /root/sum",
    )?;
    let mut session = fleet.person.session(SLUG, Door::Gateway, COUNTER)?;
    let echo = SocketAddr::from((machine.ipv6, ECHO));
    let stream =
        wait_for("the echo in the machine", Duration::from_secs(20), Duration::from_millis(300), || {
            Stream::start(&fleet.topology, Place::Client, echo, Duration::from_millis(50))
        })?;
    let before = facts(&fleet.person, SLUG, Door::Ipv6, &[])?;
    for to in ["there", "back"] {
        let from = fleet.place_of(SLUG)?;
        let migration = fleet.migrate(SLUG)?;
        ensure!(migration.step == MigrationStep::Completed, "{to}: {migration:?}");
        ensure!(fleet.place_of(SLUG)? == from.peer(), "the machine did not change its place");
        let figures = figures::of(&migration)?;
        eprintln!(
            "{to}: total {} ms, blackout {} us, {:?}",
            figures.total_us / 1000,
            figures.blackout_us,
            figures.spans
        );
        wait_for("the source to be cleared", Duration::from_secs(20), Duration::from_millis(200), || {
            ensure!(fleet.monitors(from)?.is_empty(), "a monitor is left at {}", from.name());
            Ok(())
        })?;
    }
    let after = facts(&fleet.person, SLUG, Door::Ipv6, &[])?;
    ensure!(after.boot_id == before.boot_id, "the machine booted anew");
    ensure!(after.uptime > before.uptime, "uptime fell");
    ensure!(after.processes == before.processes, "process 1 is another");
    let kept =
        fleet.person.sh(SLUG, Door::Ipv6, "echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum")?;
    ensure!(kept.contains("OK"), "the volume's file changed: {kept}");
    let blocks = stream.finish()?.blocks;
    ensure!(blocks > 100, "only {blocks} blocks came back");
    session.line(Duration::from_secs(5))?;
    let ticks = session.arrived().into_iter().map(|(_, line)| line);
    for (number, line) in (2..).zip(ticks) {
        ensure!(line == format!("tick {number}"), "tick {number} was {line:?}");
    }
    ensure!(session.alive(), "the session ended");
    Ok(())
}

fn every_door_opens(fleet: &Fleet, machine: &api::Machine) -> Result<()> {
    let name = format!("{SLUG}.mashine.dev");
    ensure!(fleet.person.dig(&name, "AAAA")? == [machine.ipv6.to_string()], "AAAA of {name}");
    let shared = fleet.person.dig(&name, "A")?;
    ensure!(shared.iter().all(|address| SHARED_IPV4.contains(&address.as_str())), "A of {name}: {shared:?}");
    let port = machine.ssh.as_ref().context("the machine has no shared port")?.port;
    for door in [Door::Ipv6, Door::Port(port), Door::Gateway, Door::Jump, Door::Ipv4, Door::Https] {
        let hostname =
            fleet.person.sh(SLUG, door, "hostname").with_context(|| fleet.person.line(SLUG, door))?;
        ensure!(hostname.trim() == SLUG, "{door:?} led to {hostname:?}");
    }
    let seen = fleet.person.sh(SLUG, Door::Ipv6, "nproc; findmnt -no FSTYPE /data")?;
    ensure!(seen == "2\next4\n", "the machine has other vCPUs or no volume: {seen:?}");
    let listed = fleet.person.lobby("ls --json")?;
    ensure!(listed.contains(machine.id.as_str()), "the lobby does not list the machine: {listed}");
    Ok(())
}
