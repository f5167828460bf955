//! People at the gateway of a real fleet: sign-up, sharing, a machine that starts for whoever comes, and everything that may go through a
//! session while the machine moves.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::{DOMAIN, ECHO, Fleet};
use mashines_tests::deploy::{Checkout, Requests, get, pushed};
use mashines_tests::netns::Place;
use mashines_tests::person::{COUNTER, Door, Person};
use mashines_tests::run::wait_for;
use mashines_tests::stream::Stream;
use mashines_tests::through::{Forward, Upload};

const SLUG: &str = "shy-otter";
/// That what people do lives on through.
const MOVES: usize = 10;
/// Where the forwarded port is at the person's side.
const FORWARDED: u16 = 9007;

#[test]
fn people_come_in_share_wake_and_stay_through_moves() -> Result<()> {
    let fleet = Fleet::up("people", &mut |step| eprintln!("{step}"))?;
    let words = ["launch", "--name", SLUG, "--memory", "512M", "--autostart", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    eprintln!("launched at {}", machine.ipv6);
    a_newcomer_signs_up_and_is_let_in(&fleet)?;
    an_address_and_a_key_name_the_machine(&fleet)?;
    sessions_live_on_through_moves(&fleet)?;
    pushes_replace_what_runs(&fleet, &machine)?;
    whoever_comes_starts_it(&fleet)
}

/// Another person, whom nobody knows, makes an account by coming to the lobby; then a machine is shared with it.
fn a_newcomer_signs_up_and_is_let_in(fleet: &Fleet) -> Result<()> {
    let directory = std::env::temp_dir().join("mashines-people-bob");
    let _none = std::fs::remove_dir_all(&directory);
    let bob = Person::new(&fleet.topology, &directory, DOMAIN)?;
    let known: serde_json::Value = fleet.ask(&["known-hosts"])?;
    bob.trust(known.get("known_hosts").and_then(serde_json::Value::as_str).context("no known_hosts")?)?;
    let told = bob.sign_up("bob")?;
    eprintln!("bob: {told}");
    let why = bob.sh(SLUG, Door::Gateway, "true").err().context("bob enters what is not his")?;
    ensure!(format!("{why:#}").contains("belongs to another account"), "{why:#}");
    let _: serde_json::Value = fleet.ask(&["share", SLUG, "bob", "--role", "operator"])?;
    wait_for("bob to be let in", Duration::from_secs(10), Duration::from_millis(300), || {
        bob.sh(SLUG, Door::Gateway, "hostname").map(drop)
    })?;
    let _: serde_json::Value = fleet.ask(&["unshare", SLUG, "bob"])?;
    wait_for("bob to be kept out again", Duration::from_secs(10), Duration::from_millis(300), || {
        ensure!(bob.sh(SLUG, Door::Gateway, "true").is_err(), "bob still enters");
        Ok(())
    })
}

/// Two machines of one account have two addresses, and each is entered by its own.
fn an_address_and_a_key_name_the_machine(fleet: &Fleet) -> Result<()> {
    let second = "coy-heron";
    let _: api::Machine = fleet.ask(&["launch", "--name", second, "--memory", "256M", "--wait"])?;
    for slug in [SLUG, second] {
        let hostname = fleet.person.sh(slug, Door::Ipv4, "hostname")?;
        ensure!(hostname.trim() == slug, "root@{slug}.{DOMAIN} over IPv4 led to {hostname:?}");
    }
    let _: serde_json::Value = fleet.ask(&["rm", second, "--yes", "--force"])?;
    Ok(())
}

/// A session at a terminal, a forwarded port and an upload, all through the gateway, while the machine goes to and fro.
fn sessions_live_on_through_moves(fleet: &Fleet) -> Result<()> {
    fleet.serve_echo_in(SLUG)?;
    let mut session = fleet.person.session(SLUG, Door::Gateway, COUNTER)?;
    let _forward = Forward::open(&fleet.person, SLUG, FORWARDED, ECHO)?;
    let echo = SocketAddr::from(([127, 0, 0, 1], FORWARDED));
    let stream = wait_for("the forwarded port", Duration::from_secs(20), Duration::from_millis(300), || {
        Stream::start(&fleet.topology, Place::Client, echo, Duration::from_millis(50))
    })?;
    let mut upload = Upload::begin(&fleet.person, SLUG)?;
    let checkout = Checkout::new(&fleet.topology, &fleet.person, "people")?;
    // It builds for as long as nobody says that it is enough.
    let slow = "build = \"until [ -e /tmp/enough ]; do echo building; sleep 1; done\"\nstatic = \"public\"\n";
    checkout.commit(&[("mashine.toml", slow), ("public/index.html", "first\n")])?;
    let push = checkout.push(SLUG)?;
    for number in 1..=MOVES {
        let begun = Instant::now();
        ensure!(upload.goes_on()?, "the uploads were over before move {number}");
        let migration = fleet.migrate(SLUG)?;
        ensure!(migration.step == MigrationStep::Completed, "move {number}: {migration:?}");
        eprintln!("move {number}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    fleet.person.sh(SLUG, Door::Ipv6, "touch /tmp/enough")?;
    let (accepted, told) = pushed(push)?;
    let lines = told.matches("building").count();
    ensure!(accepted && lines > MOVES, "the push through the moves: {told}");
    let uploads = upload.end(&fleet.person, SLUG)?;
    eprintln!("{uploads} uploads arrived whole");
    let report = stream.finish().context("the stream through the forwarded port")?;
    eprintln!("forwarded: {} blocks, longest silence {:?}", report.blocks, report.largest_gap);
    session.line(Duration::from_secs(5))?;
    let ticks = session.arrived().into_iter().map(|(_, line)| line);
    for (number, line) in (2..).zip(ticks) {
        ensure!(line == format!("tick {number}"), "tick {number} was {line:?}");
    }
    ensure!(session.alive(), "the session ended");
    Ok(())
}

/// A push replaces what runs without a failed request, one that does not build changes nothing, and a rollback brings back what was.
fn pushes_replace_what_runs(fleet: &Fleet, machine: &api::Machine) -> Result<()> {
    let url = format!("http://[{}]/", machine.ipv6);
    // In the machine at once; through the edge when its own connection to the old release has had its last request.
    let serves = |wanted: &str| {
        let inside =
            fleet.person.sh(SLUG, Door::Ipv6, "curl --silent --show-error --fail http://localhost/")?;
        ensure!(inside == wanted, "the machine serves {inside:?}, not {wanted:?}");
        wait_for("the release", Duration::from_secs(10), Duration::from_millis(300), || {
            let seen = get(&fleet.topology, &url)?;
            ensure!(seen == wanted, "{url} is {seen:?}, not {wanted:?}");
            Ok(())
        })
    };
    serves("first\n")?;
    let checkout = Checkout::new(&fleet.topology, &fleet.person, "people-second")?;
    let requests = Requests::begin(&fleet.topology, &url);
    checkout.commit(&[("index.html", "second\n")])?;
    let (accepted, told) = pushed(checkout.force_push(SLUG)?)?;
    ensure!(accepted, "{told}");
    serves("second\n")?;
    let answered = requests.end()?;
    eprintln!("{answered} requests were answered through the switch-over");
    checkout.commit(&[("mashine.toml", "build = \"echo compiling; false\"\nstatic = \".\"\n")])?;
    let (accepted, told) = pushed(checkout.push(SLUG)?)?;
    ensure!(!accepted && told.contains("compiling"), "a build that fails: {told}");
    serves("second\n")?;
    let _: serde_json::Value = fleet.ask(&["rollback", SLUG])?;
    serves("first\n")?;
    let fresh = "new-finch";
    let pages = Checkout::new(&fleet.topology, &fleet.person, "people-fresh")?;
    pages.commit(&[("index.html", "fresh\n")])?;
    let (accepted, told) = pushed(pages.push(fresh)?)?;
    ensure!(accepted && told.contains("it is being made"), "a push to a name that is not there: {told}");
    let made: api::Machine = fleet.ask(&["show", fresh])?;
    ensure!(
        get(&fleet.topology, &format!("http://[{}]/", made.ipv6))? == "fresh\n",
        "{fresh} serves something else"
    );
    let _: serde_json::Value = fleet.ask(&["rm", fresh, "--yes", "--force"])?;
    Ok(())
}

/// A stopped machine is up again for an exec session, whose output holds nothing of the waiting.
fn whoever_comes_starts_it(fleet: &Fleet) -> Result<()> {
    for door in [Door::Gateway, Door::Jump] {
        let _: serde_json::Value = fleet.ask(&["stop", SLUG, "--wait"])?;
        let begun = Instant::now();
        let mut ssh = fleet.person.ssh(SLUG, door);
        ssh.args(["-o", "ConnectTimeout=120"]);
        let mut child = ssh.args(["--", "hostname"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        let lines: Vec<String> = BufReader::new(output).lines().collect::<Result<_, _>>()?;
        ensure!(child.wait()?.success() && lines == [SLUG], "{door:?}: {lines:?}");
        eprintln!("{door:?} started it within {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}
