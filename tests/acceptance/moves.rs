//! A running machine moves to and fro under load, and nobody connected to it notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MigrationStep;
use mashines_tests::daemons::{ECHO, Fleet};
use mashines_tests::drops::Drops;
use mashines_tests::guest::{Facts, facts};
use mashines_tests::netns::{Place, Topology};
use mashines_tests::person::{COUNTER, Door, Session};
use mashines_tests::probe::Probe;
use mashines_tests::run::wait_for;
use mashines_tests::stream::Stream;
use mashines_tests::{disk, figures, lab};

const SLUG: &str = "shy-otter";
/// When `MASHINES_MOVES` does not say.
const MOVES: usize = 20;

#[test]
fn a_machine_lives_on_through_twenty_moves() -> Result<()> {
    let fleet = Fleet::up("moves", &mut |step| eprintln!("{step}"))?;
    let machine = launch(&fleet)?;
    fleet.serve_echo_in(SLUG)?;
    Drops::count_port(&fleet.topology, ECHO)?;
    let mut load = Load::start(&fleet, &machine)?;
    load.at_rest(&fleet)?;
    let first = load.facts(&fleet)?;
    let mut before = first.clone();
    let moves = std::env::var("MASHINES_MOVES").map_or(Ok(MOVES), |number| number.parse())?;
    for number in 1..=moves {
        before = load.through_one_move(&fleet, &machine, number, &first, before)?;
    }
    load.end(&fleet)?;
    disks_are_clean(&fleet, &machine)
}

fn launch(fleet: &Fleet) -> Result<api::Machine> {
    let words =
        ["launch", "--name", SLUG, "--vcpu", "2", "--memory", "512M", "--volume", "data:1G", "--wait"];
    let begun = Instant::now();
    let machine: api::Machine = fleet.ask(&words)?;
    eprintln!("launched in {:.1} s at {}", begun.elapsed().as_secs_f64(), machine.ipv6);
    Ok(machine)
}

/// Everything that goes on while the machine moves.
struct Load {
    session: Session,
    ticks: u64,
    pids: Vec<u32>,
    echo: SocketAddr,
    stream: Stream,
}

impl Load {
    fn start(fleet: &Fleet, machine: &api::Machine) -> Result<Self> {
        let sh = |script: &str| fleet.person.sh(SLUG, Door::Ipv6, script);
        // Two verified writers: each block carries a checksum that is read back and compared.
        for (name, dir) in [("root", "/var/tmp"), ("volume", "/data")] {
            sh(&format!(
                "systemd-run --quiet --unit=writer-{name} -p RemainAfterExit=yes fio --name={name} --directory={dir} --size=32m \
                 --rw=randwrite --bs=4k --rate=16k --time_based --runtime=3600 --verify=crc32c --verify_backlog=64 \
                 --verify_fatal=1 --fsync=64 --ioengine=psync"
            ))?;
        }
        let pids = sh("systemctl show -p MainPID --value echo writer-root writer-volume ssh | grep -v '^$'")?;
        let pids: Vec<u32> = pids.lines().map(str::parse).collect::<Result<_, _>>().context("the pids")?;
        let session = fleet.person.session(SLUG, Door::Gateway, COUNTER)?;
        let echo = SocketAddr::from((machine.ipv6, ECHO));
        let stream =
            wait_for("the echo in the machine", Duration::from_secs(10), Duration::from_millis(300), || {
                Stream::start(&fleet.topology, Place::Client, echo, Duration::from_millis(50))
            })?;
        Ok(Self { session, ticks: 0, pids, echo, stream })
    }

    /// What the probe sees while nothing moves: a lab that is full already shows here.
    fn at_rest(&self, fleet: &Fleet) -> Result<()> {
        let probe = self.probe(&fleet.topology)?;
        std::thread::sleep(Duration::from_secs(5));
        let probe = probe.finish()?;
        eprintln!("at rest: {probe}");
        Ok(())
    }

    fn facts(&self, fleet: &Fleet) -> Result<Facts> {
        facts(&fleet.person, SLUG, Door::Ipv6, &self.pids)
    }

    fn through_one_move(
        &mut self,
        fleet: &Fleet,
        machine: &api::Machine,
        number: usize,
        first: &Facts,
        before: Facts,
    ) -> Result<Facts> {
        let from = fleet.place_of(SLUG)?;
        let counted = Drops::look(&fleet.topology)?;
        let probe = self.probe(&fleet.topology)?;
        let stream = Stream::start(&fleet.topology, Place::Client, self.echo, Duration::from_millis(20))?;
        std::thread::sleep(Duration::from_millis(300));
        let migration = fleet.migrate(SLUG)?;
        std::thread::sleep(Duration::from_millis(500));
        let (probe, stream) = (probe.finish()?, stream.finish()?);
        let figures = figures::of(&migration)?;
        let blackout = Duration::from_micros(figures.blackout_us);
        let after = self.facts(fleet)?;
        eprintln!(
            "move {number} from {}: total {:.1} s, {} rounds, {} MiB, throttle {} %, blackout {:.1} ms, {probe}, \
             stream gap {:.1} ms, clock {} ms",
            from.name(),
            Duration::from_micros(figures.total_us).as_secs_f64(),
            figures.rounds,
            (figures.ram_bytes + figures.disk_bytes) >> 20,
            figures.throttle_percent,
            blackout.as_secs_f64() * 1e3,
            stream.largest_gap.as_secs_f64() * 1e3,
            after.clock_off_ms,
        );
        ensure!(migration.step == MigrationStep::Completed, "move {number}: {migration:?}");
        ensure!(fleet.place_of(SLUG)? == from.peer(), "the machine did not change its place");
        ensure!(fleet.machine(SLUG)?.ipv6 == machine.ipv6, "the address changed");
        ensure!(after.boot_id == first.boot_id, "the machine booted anew");
        ensure!(after.uptime > before.uptime, "uptime fell from {:?} to {:?}", before.uptime, after.uptime);
        ensure!(after.processes == first.processes, "processes changed: {first:?} {after:?}");
        ensure!(after.clock_off_ms.abs() <= 50, "the guest's clock is {} ms off", after.clock_off_ms);
        if probe.lost() > 0 {
            let drops = Drops::look(&fleet.topology)?.since(&counted);
            let inside = "grep Udp6 /proc/net/snmp6; tc -s qdisc show dev eth0; ip -s -6 neigh; cat /proc/net/stat/ndisc_cache";
            let said = fleet.person.sh(SLUG, Door::Ipv6, inside);
            eprintln!("the machine says:\n{}", said.unwrap_or_else(|error| format!("nothing: {error:#}")));
            bail!("lost packets {:?}; what passed and what was dropped meanwhile:\n{drops}", probe.missing);
        }
        let (allowed, _) = lab::allowed_stall(blackout);
        ensure!(stream.largest_gap <= allowed, "a stream stood still for {:?}", stream.largest_gap);
        self.session_goes_on()?;
        ensure!(fleet.monitors(from)?.is_empty(), "a monitor is left at {}", from.name());
        Ok(after)
    }

    fn probe(&self, topology: &Topology) -> Result<Probe> {
        Probe::start(topology, Place::Client, self.echo, Duration::from_millis(2))
    }

    /// Every tick of the counter arrived, in order, and new ones come.
    fn session_goes_on(&mut self) -> Result<()> {
        let mut lines: Vec<String> = self.session.arrived().into_iter().map(|(_, line)| line).collect();
        lines.push(self.session.line(Duration::from_secs(5))?);
        for line in lines {
            self.ticks += 1;
            ensure!(line == format!("tick {}", self.ticks), "tick {} was {line:?}", self.ticks);
        }
        Ok(())
    }

    fn end(mut self, fleet: &Fleet) -> Result<()> {
        self.session_goes_on()?;
        ensure!(self.session.alive(), "the session ended");
        let report = self.stream.finish()?;
        eprintln!("the long stream: {} blocks, largest gap {:?}", report.blocks, report.largest_gap);
        let sh = |script: &str| fleet.person.sh(SLUG, Door::Ipv6, script);
        let states = sh("systemctl is-active writer-root writer-volume")?;
        ensure!(states == "active\nactive\n", "a writer found a wrong checksum: {states}");
        Ok(())
    }
}

fn disks_are_clean(fleet: &Fleet, machine: &api::Machine) -> Result<()> {
    let place = fleet.place_of(SLUG)?;
    let _: serde_json::Value = fleet.ask(&["stop", SLUG, "--wait"])?;
    let state = fleet.state(place).join("host");
    let volume = machine.config.mounts.first().context("the machine has no volume")?;
    disk::fsck(&state.join(format!("volumes/{}.img", volume.volume)))?;
    let base = format!("/var/lib/mashines-images/{}/rootfs.img", machine.config.image);
    let overlay = state.join(format!("machines/{}/root.overlay", machine.id));
    let whole = state.join("flat.img");
    disk::flatten(base.as_ref(), &overlay, &whole)?;
    disk::fsck(&whole)?;
    let peer = fleet.state(place.peer()).join("host");
    ensure!(
        !peer.join(format!("machines/{}", machine.id)).exists(),
        "the other host still has files of the machine"
    );
    ensure!(
        !peer.join(format!("volumes/{}.img", volume.volume)).exists(),
        "the other host still has the volume"
    );
    Ok(())
}
