//! A machine of a single process, which brings no sshd: entered by every door, and moved with people in it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::Fleet;
use mashines_tests::deploy::get;
use mashines_tests::person::Door;
use mashines_tests::run::{run, wait_for};
use mashines_tests::through::{Forward, Upload};

const SLUG: &str = "lone-crane";
const MOVES: usize = 2;
/// Where the forwarded port is at the person's side.
const FORWARDED: u16 = 9017;
/// Where the image's own process listens.
const WEB: u16 = 8080;

#[test]
fn a_machine_without_sshd_is_entered_and_moved() -> Result<()> {
    let fleet = Fleet::up("single", &mut |step| eprintln!("{step}"))?;
    let words = ["launch", "--name", SLUG, "--image", "single-process", "--memory", "256M", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    every_door_leads_in(&fleet, &machine)?;
    sessions_live_on_through_moves(&fleet)?;
    the_server_comes_back_when_it_is_killed(&fleet)?;
    it_stays_away_when_it_is_not_wanted(&fleet)
}

fn every_door_leads_in(fleet: &Fleet, machine: &api::Machine) -> Result<()> {
    let port = machine.ssh.as_ref().context("the machine has no shared port")?.port;
    for door in [Door::Ipv6, Door::Port(port), Door::Gateway, Door::Jump, Door::Ipv4, Door::Https] {
        let page = fleet.person.sh(SLUG, door, "cat /srv/index.html")?;
        ensure!(page == "one process\n", "{door:?}: {page:?}");
    }
    let mut ssh = fleet.person.ssh(SLUG, Door::Gateway);
    let output = ssh.args(["--", "echo out; echo err >&2; exit 7"]).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.code() == Some(7) && output.stdout == b"out\n" && output.stderr == b"err\n",
        "{output:?}"
    );
    Ok(())
}

/// Sessions at a terminal by two doors, a forwarded port and an upload by sftp.
fn sessions_live_on_through_moves(fleet: &Fleet) -> Result<()> {
    let counter = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    let mut sessions = Vec::new();
    for door in [Door::Gateway, Door::Ipv6] {
        sessions.push(fleet.person.session(SLUG, door, counter)?);
    }
    let _forward = Forward::open(&fleet.person, SLUG, FORWARDED, WEB)?;
    let url = format!("http://127.0.0.1:{FORWARDED}/");
    let serves = || {
        let page = get(&fleet.topology, &url)?;
        ensure!(page == "one process\n", "{url} is {page:?}");
        Ok(())
    };
    wait_for("the forwarded port", Duration::from_secs(20), Duration::from_millis(300), serves)?;
    let mut upload = Upload::begin(&fleet.person, SLUG)?;
    let boot = fleet.person.sh(SLUG, Door::Ipv6, "cat /proc/sys/kernel/random/boot_id")?;
    for number in 1..=MOVES {
        ensure!(upload.goes_on()?, "the uploads were over before move {number}");
        let migration = fleet.migrate(SLUG)?;
        ensure!(migration.step == MigrationStep::Completed, "move {number}: {migration:?}");
        serves()?;
    }
    let uploads = upload.end(&fleet.person, SLUG)?;
    eprintln!("{uploads} uploads arrived whole");
    ensure!(
        fleet.person.sh(SLUG, Door::Ipv6, "cat /proc/sys/kernel/random/boot_id")? == boot,
        "the machine booted anew"
    );
    for session in &mut sessions {
        let mut lines: Vec<String> = session.arrived().into_iter().map(|(_, line)| line).collect();
        lines.push(session.line(Duration::from_secs(5))?);
        for (number, line) in (1..).zip(lines) {
            ensure!(line == format!("tick {number}"), "tick {number} was {line:?}");
        }
        ensure!(session.alive(), "a session ended");
    }
    Ok(())
}

fn the_server_comes_back_when_it_is_killed(fleet: &Fleet) -> Result<()> {
    let mut ssh = fleet.person.ssh(SLUG, Door::Ipv6);
    // The session ends with its server.
    let _ended = run(ssh.args(["--", "kill -9 $(pidof ssh)"]));
    wait_for("the server to come back", Duration::from_secs(60), Duration::from_millis(500), || {
        fleet.person.sh(SLUG, Door::Ipv6, "true").map(drop)
    })
}

fn it_stays_away_when_it_is_not_wanted(fleet: &Fleet) -> Result<()> {
    let slug = "mute-crane";
    let words = [
        "launch",
        "--name",
        slug,
        "--image",
        "single-process",
        "--memory",
        "256M",
        "--env",
        "MASHINES_SSH=off",
        "--wait",
    ];
    let machine: api::Machine = fleet.ask(&words)?;
    let page = get(&fleet.topology, &format!("http://[{}]:{WEB}/", machine.ipv6))?;
    ensure!(page == "one process\n", "{page:?}");
    let why = fleet.person.sh(slug, Door::Ipv6, "true").err().context("it is entered all the same")?;
    ensure!(format!("{why:#}").contains("refused"), "{why:#}");
    Ok(())
}
