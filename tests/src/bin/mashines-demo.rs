//! `mashines-demo up|down`: what `scripts/demo` runs, in the lab or on the machine itself.
//!
//! Brings a fleet up, launches a machine, goes in by every door, moves it while a counter, a TCP stream and a UDP probe
//! run, and reports one line per claim. The fleet stays up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mashines_fleet::api;
use mashines_tests::daemons::{ECHO, Fleet, end};
use mashines_tests::guest::{Facts, facts};
use mashines_tests::netns::Place;
use mashines_tests::person::{COUNTER, Door};
use mashines_tests::probe::{Probe, ProbeReport};
use mashines_tests::run::wait_for;
use mashines_tests::stream::{Stream, StreamReport};
use mashines_tests::{figures, lab};
use mashines_vmm::api::Figures;

const FLEET: &str = "demo";
const SLUG: &str = "shy-otter";

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("up") => up(),
        Some("down") => end(FLEET),
        _ => bail!("usage: mashines-demo up|down"),
    }
}

/// Progress, with the time since the start.
struct Progress(Instant);

impl Progress {
    fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

fn up() -> Result<()> {
    let progress = Progress(Instant::now());
    let fleet = Fleet::up(FLEET, &mut |step| progress.say(step))?;
    progress.say(&format!("$ mashines launch --name {SLUG} --vcpu 2 --memory 512M --volume data:1G"));
    let words =
        ["launch", "--name", SLUG, "--vcpu", "2", "--memory", "512M", "--volume", "data:1G", "--wait"];
    let machine: api::Machine = fleet.ask(&words)?;
    let mut claims = Claims::default();
    doors(&fleet, &machine, &progress, &mut claims)?;
    let seen = one_move(&fleet, &machine, &progress)?;
    seen.print();
    seen.judge(&mut claims);
    claims.print();
    print_what_to_try(&fleet, &machine);
    let all = claims.all_hold();
    fleet.leave();
    ensure!(all, "a claim FAILED");
    Ok(())
}

/// One line per claim, in the order they were judged.
#[derive(Default)]
struct Claims(Vec<(String, bool)>);

impl Claims {
    fn judge(&mut self, claim: impl Into<String>, holds: bool) {
        self.0.push((claim.into(), holds));
    }

    fn all_hold(&self) -> bool {
        self.0.iter().all(|(_, holds)| *holds)
    }

    fn print(&self) {
        println!("\nclaims");
        for (claim, holds) in &self.0 {
            println!("  {:<6} {claim}", if *holds { "ok" } else { "FAILED" });
        }
    }
}

fn doors(fleet: &Fleet, machine: &api::Machine, progress: &Progress, claims: &mut Claims) -> Result<()> {
    let port = machine.ssh.as_ref().context("the machine has no shared port")?.port;
    for (what, door) in [
        ("ssh by IPv6, straight to the machine", Door::Ipv6),
        ("ssh by the shared IPv4 port", Door::Port(port)),
        ("ssh through the gateway", Door::Gateway),
    ] {
        let line = fleet.person.line(SLUG, door);
        let answer = fleet.person.sh(SLUG, door, "uname -srn");
        match &answer {
            Ok(text) => progress.say(&format!("$ {line} uname -srn → {}", text.trim())),
            Err(e) => progress.say(&format!("$ {line} uname -srn → {e:#}")),
        }
        claims.judge(what, answer.is_ok_and(|text| text.contains(SLUG)));
    }
    Ok(())
}

/// A move as everyone involved saw it.
struct Seen {
    migration: api::Migration,
    figures: Figures,
    before: Facts,
    after: Facts,
    probe: ProbeReport,
    stream: StreamReport,
    ticks: Result<usize>,
}

fn one_move(fleet: &Fleet, machine: &api::Machine, progress: &Progress) -> Result<Seen> {
    fleet.serve_echo_in(SLUG)?;
    progress.say("a counter in an SSH session, a TCP stream of numbered blocks, a UDP probe every 2 ms");
    let mut session = fleet.person.session(SLUG, Door::Gateway, COUNTER)?;
    let address = SocketAddr::from((machine.ipv6, ECHO));
    let stream =
        wait_for("the echo in the machine", Duration::from_secs(10), Duration::from_millis(200), || {
            Stream::start(&fleet.topology, Place::Client, address, Duration::from_millis(10))
        })?;
    session.line(Duration::from_secs(10))?;
    let before = facts(&fleet.person, SLUG, Door::Ipv6, &[])?;
    let probe = Probe::start(&fleet.topology, Place::Client, address, Duration::from_millis(2))?;
    let to = fleet.place_of(SLUG)?.peer();
    progress.say(&format!("$ mashines migrate {SLUG} --to {}", to.name()));
    let migration = fleet.migrate(SLUG)?;
    std::thread::sleep(Duration::from_secs(1));
    let probe = probe.finish()?;
    let after = facts(&fleet.person, SLUG, Door::Ipv6, &[])?;
    let ticks = count_ticks(session.arrived().into_iter().map(|(_, line)| line));
    let stream = stream.finish()?;
    let figures = figures::of(&migration)?;
    Ok(Seen { migration, figures, before, after, probe, stream, ticks })
}

/// The counter's lines after the first: none is missing.
fn count_ticks(lines: impl Iterator<Item = String>) -> Result<usize> {
    let mut ticks = 1;
    for line in lines {
        ticks += 1;
        ensure!(line == format!("tick {ticks}"), "tick {ticks} was {line:?}");
    }
    Ok(ticks)
}

impl Seen {
    fn blackout(&self) -> Duration {
        Duration::from_micros(self.figures.blackout_us)
    }

    fn print(&self) {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let Self { figures, migration, before, after, probe, stream, .. } = self;
        println!("\nthe move from {} to {}", migration.source, migration.destination);
        println!(
            "  total                {:>10.1} ms, {} rounds",
            ms(Duration::from_micros(figures.total_us)),
            figures.rounds
        );
        println!("  blackout             {:>10.1} ms, of which", ms(self.blackout()));
        for (name, us) in &figures.spans {
            println!("    {name:<18} {:>10.1} ms", ms(Duration::from_micros(*us)));
        }
        println!(
            "  RAM sent             {:>10} KiB, {} pages of zeros not sent",
            figures.ram_bytes >> 10,
            figures.zero_pages
        );
        println!("  disk sent            {:>10} KiB", figures.disk_bytes >> 10);
        println!("  network gap          {:>10.1} ms as the probe saw it", ms(probe.largest_gap));
        println!("  longest stream stall {:>10.1} ms", ms(stream.largest_gap));
        println!("  packets lost         {:>10} of {}", probe.lost(), probe.sent);
        println!("  boot id              {} → {}", before.boot_id, after.boot_id);
        println!(
            "  uptime               {:.1} s → {:.1} s",
            before.uptime.as_secs_f64(),
            after.uptime.as_secs_f64()
        );
        println!("  guest's clock        {} ms off ours", after.clock_off_ms);
    }

    fn judge(&self, claims: &mut Claims) {
        claims.judge(
            "the machine runs on the other host",
            self.migration.error.is_none() && self.migration.done,
        );
        claims.judge("no UDP packet lost", self.probe.lost() == 0);
        claims.judge("the TCP stream went on, every byte right", self.stream.blocks > 0);
        let (allowed, words) = lab::allowed_stall(self.blackout());
        claims.judge(
            format!("no stream stood still for longer than {words}"),
            self.stream.largest_gap <= allowed,
        );
        let ticks = match &self.ticks {
            Ok(ticks) => format!("the SSH session's counter went on, all of {ticks} ticks in order"),
            Err(e) => format!("the SSH session's counter went on: {e:#}"),
        };
        claims.judge(ticks, self.ticks.is_ok());
        claims.judge("same boot", self.before.boot_id == self.after.boot_id);
        claims.judge("uptime went on", self.after.uptime > self.before.uptime);
        claims.judge("the guest's clock is within 50 ms", self.after.clock_off_ms.abs() <= 50);
    }
}

fn print_what_to_try(fleet: &Fleet, machine: &api::Machine) {
    let ssh = |door| {
        let words: Vec<String> =
            fleet.person.ssh(SLUG, door).get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        format!("{} ip {}", std::env::var("MASHINES_DEMO_ENTER").unwrap_or_default(), words.join(" "))
            .trim()
            .to_owned()
    };
    println!("\nthe fleet is up; try");
    println!("  {}", ssh(Door::Ipv6));
    if let Some(door) = &machine.ssh {
        println!("  {}", ssh(Door::Port(door.port)));
    }
    println!("  {}", ssh(Door::Gateway));
    println!("end it with\n  ./scripts/demo down");
}
