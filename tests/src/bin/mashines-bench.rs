//! `mashines-bench migration [ROUNDS]`: ours and QEMU's live migration of the same guest, in turn, in the same lab.
//!
//! Both move a guest with one vCPU and 256 MiB between two namespaces, idle and while it rewrites 64 MiB at 20 MiB/s. Ours goes
//! through the whole fleet (API, saga, mTLS, overlay); QEMU's through its own `migrate` over plain TCP on one bridged segment.
//!
//! After each move the guest is also paused for as long as the move's blackout, where it is: an emulated CPU then still has the guest's code
//! translated, so that gap is what a blackout costs where no emulator is.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mashines_guest::config::{BUILTIN_BENCH, Config, NO_ROOT, Prefix};
use mashines_tests::bench_guest::{self, UDP_ECHO};
use mashines_tests::daemons::Fleet;
use mashines_tests::figures::{self, median};
use mashines_tests::lab;
use mashines_tests::monitor;
use mashines_tests::netns::{Place, Topology};
use mashines_tests::peer::{Qemu, QemuGuest, wire};
use mashines_tests::probe::{Probe, ProbeReport};
use mashines_tests::run::wait_for;
use serde_json::json;

const IMAGE: &str = "/var/lib/mashines-images/bench";
const MEMORY_MIB: u64 = 256;
const PEER_MAC: &str = "02:00:00:00:00:07";

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    match (words.next().as_deref(), words.next()) {
        (Some("migration"), rounds) => migration(rounds.map_or(Ok(5), |r| r.parse())?),
        _ => bail!("usage: mashines-bench migration [ROUNDS]"),
    }
}

/// One migration as its contender and the probe saw it. Times in milliseconds, traffic in MiB.
#[derive(Clone, Debug)]
struct Round {
    blackout: f64,
    gap: f64,
    /// The network gap of a pause as long as the blackout, without a move.
    gap_in_place: f64,
    lost: f64,
    total: f64,
    sent: f64,
}

/// A row of the report: its name and its value in a round.
type Row = (&'static str, fn(&Round) -> f64);

const ROWS: [Row; 6] = [
    ("blackout ms", |r| r.blackout),
    ("network gap ms", |r| r.gap),
    ("gap in place ms", |r| r.gap_in_place),
    ("packets lost", |r| r.lost),
    ("total ms", |r| r.total),
    ("MiB sent", |r| r.sent),
];

fn migration(rounds: usize) -> Result<()> {
    let mut ours = Ours::up()?;
    let mut theirs = Theirs::up()?;
    let mut met = true;
    for (load, command) in [("idle", "stop"), ("writer", "write 64 20")] {
        ours.guest_does(command)?;
        theirs.guest_does(command)?;
        let (mut our_rounds, mut their_rounds) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            eprintln!("{load}: round {round} of {rounds}");
            our_rounds.push(ours.round()?);
            their_rounds.push(theirs.round()?);
        }
        met &= report(load, &our_rounds, &their_rounds)?;
        ours.explain(load);
    }
    ensure!(met, "a goal was missed");
    Ok(())
}

/// Prints medians and ratios of one load, then a line per goal; whether all were met.
fn report(load: &str, ours: &[Round], theirs: &[Round]) -> Result<bool> {
    println!("\n{load}, {} rounds each, medians (min to max)", ours.len());
    println!("{:<16} {:>24} {:>24} {:>8}", "", "mashines", "QEMU", "ratio");
    for (name, value) in ROWS {
        let (a, b) = (spread(ours, value)?, spread(theirs, value)?);
        let ratio = if b.1 > 0.0 { format!("{:.2}", a.1 / b.1) } else { "-".to_owned() };
        let shown = |s: (f64, f64, f64)| format!("{:.1} ({:.1} to {:.1})", s.1, s.0, s.2);
        println!("{name:<16} {:>24} {:>24} {ratio:>8}", shown(a), shown(b));
    }
    let ratio = |value: fn(&Round) -> f64| -> Result<f64> {
        Ok(spread(ours, value)?.1 / spread(theirs, value)?.1.max(1e-9))
    };
    let lost: f64 = ours.iter().map(|r| r.lost).sum();
    let goals = [
        (format!("{load}-blackout-ratio"), ratio(|r| r.blackout)?, 0.5),
        (format!("{load}-gap-ratio"), ratio(|r| r.gap)?, 0.5),
        (format!("{load}-gap-in-place-ratio"), ratio(|r| r.gap_in_place)?, 0.5),
        (format!("{load}-lost"), lost, 0.0),
    ];
    let mut all = true;
    for (name, measured, target) in goals {
        let met = measured <= target;
        all &= met;
        println!("goal {name} {measured:.2} {target:.2} {}", if met { "met" } else { "missed" });
    }
    Ok(all)
}

fn spread(rounds: &[Round], value: fn(&Round) -> f64) -> Result<(f64, f64, f64)> {
    let values: Vec<f64> = rounds.iter().map(value).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Ok((low, median(values).context("no rounds")?, high))
}

/// Probes every 2 ms while something moves.
fn probed<T>(
    topology: &Topology,
    from: Place,
    guest: Ipv6Addr,
    act: impl FnOnce() -> Result<T>,
) -> Result<(T, ProbeReport)> {
    let probe = Probe::start(topology, from, SocketAddr::from((guest, UDP_ECHO)), Duration::from_millis(2))?;
    std::thread::sleep(Duration::from_millis(500));
    let done = act()?;
    std::thread::sleep(Duration::from_secs(1));
    Ok((done, probe.finish()?))
}

/// Our side: a whole fleet.
struct Ours {
    fleet: Fleet,
    guest: Ipv6Addr,
    spans: Vec<Vec<(String, u64)>>,
}

impl Ours {
    fn up() -> Result<Self> {
        let fleet = Fleet::up("bench", &mut |step| eprintln!("{step}"))?;
        let memory = format!("{MEMORY_MIB}M");
        let words =
            ["launch", "--name", "bench", "--image", "bench", "--vcpu", "1", "--memory", &memory, "--wait"];
        let machine: mashines_fleet::api::Machine = fleet.ask(&words)?;
        Ok(Self { fleet, guest: machine.ipv6, spans: Vec::new() })
    }

    fn guest_does(&mut self, line: &str) -> Result<()> {
        self.spans.clear();
        let answer = bench_guest::ask(&self.fleet.topology, Place::Client, self.guest, line)?;
        eprintln!("ours: {line}: {answer}");
        Ok(())
    }

    fn round(&mut self) -> Result<Round> {
        let fleet = &self.fleet;
        let (migration, probe) =
            probed(&fleet.topology, Place::Client, self.guest, || fleet.migrate("bench"))?;
        ensure!(migration.error.is_none(), "our migration failed: {migration:?}");
        let figures = figures::of(&migration)?;
        self.spans.push(figures.spans.clone());
        let blackout = Duration::from_micros(figures.blackout_us);
        let place = fleet.place_of("bench")?;
        let monitor = monitor::of(fleet, place)?.pop().context("no monitor runs where the machine is")?;
        let ((), paused) =
            probed(&fleet.topology, Place::Client, self.guest, || monitor.pause_for(blackout))?;
        Ok(Round {
            blackout: millis(blackout),
            gap_in_place: millis(paused.largest_gap),
            gap: millis(probe.largest_gap),
            lost: count(probe.lost()),
            total: micros(figures.total_us),
            sent: mebibytes(figures.ram_bytes + figures.disk_bytes),
        })
    }

    /// Where the blackout's time goes: the median of each span.
    fn explain(&self, load: &str) {
        println!("where our blackout goes, {load} (median ms):");
        let Some(first) = self.spans.first() else { return };
        for (name, _) in first {
            let of_name =
                |spans: &Vec<(String, u64)>| spans.iter().find(|(n, _)| n == name).map(|(_, us)| micros(*us));
            let values: Vec<f64> = self.spans.iter().filter_map(of_name).collect();
            println!("  {name:<28} {:>8.2}", median(values).unwrap_or(0.0));
        }
    }
}

/// QEMU's side: a process at each end of one bridged segment.
struct Theirs {
    topology: Topology,
    dir: PathBuf,
    spec: QemuGuest,
    running: Qemu,
    guest: Ipv6Addr,
    port: u16,
}

impl Theirs {
    fn up() -> Result<Self> {
        let topology = Topology::named("peer");
        topology.up()?;
        let guest: Ipv6Addr = "2001:db8:200::7".parse()?;
        wire(&topology, "2001:db8:200::1", &guest.to_string())?;
        let dir = Path::new("/var/lib/mashines-lab/peer").to_owned();
        fs::create_dir_all(&dir)?;
        let spec = QemuGuest {
            kernel: Path::new(IMAGE).join("kernel"),
            initrd: initrd(&dir, guest)?,
            cmdline: cmdline()?,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            mac: PEER_MAC.to_owned(),
        };
        let running = Qemu::start(&topology, Place::A, &spec, &dir, None)?;
        wait_for("QEMU's guest", Duration::from_secs(60), Duration::from_millis(300), || {
            bench_guest::ask(&topology, Place::Control, guest, "status")
        })?;
        Ok(Self { topology, dir, spec, running, guest, port: 4500 })
    }

    fn guest_does(&mut self, line: &str) -> Result<()> {
        let answer = bench_guest::ask(&self.topology, Place::Control, self.guest, line)?;
        eprintln!("QEMU's: {line}: {answer}");
        Ok(())
    }

    fn round(&mut self) -> Result<Round> {
        self.port += 1;
        let to = self.running.place().peer();
        let mut waiting = Qemu::start(&self.topology, to, &self.spec, &self.dir, Some(self.port))?;
        let (running, port) = (&mut self.running, self.port);
        let (figures, probe) = probed(&self.topology, Place::Control, self.guest, || {
            running.migrate(&mut waiting, port, Duration::from_secs(120))
        })?;
        self.running = waiting;
        let running = &mut self.running;
        let ((), paused) =
            probed(&self.topology, Place::Control, self.guest, || running.pause_for(figures.downtime))?;
        Ok(Round {
            blackout: millis(figures.downtime),
            gap_in_place: millis(paused.largest_gap),
            gap: millis(probe.largest_gap),
            lost: count(probe.lost()),
            total: millis(figures.total),
            sent: mebibytes(figures.bytes),
        })
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        self.topology.down();
    }
}

/// The bench image's initrd with this guest's configuration behind it.
fn initrd(dir: &Path, guest: Ipv6Addr) -> Result<PathBuf> {
    let config: Config = serde_json::from_value(json!({
        "machine_id": "peer",
        "hostname": "peer",
        "interfaces": [{"mac": PEER_MAC, "ipv6": Prefix::host(guest), "gateway6": "fe80::1"}],
        "root": {"device": NO_ROOT, "fstype": "none"},
        "init_exec": BUILTIN_BENCH,
    }))?;
    let mut bytes = fs::read(Path::new(IMAGE).join("initrd"))?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(mashines_guest::config_archive(&config)?);
    let path = dir.join("initrd");
    fs::write(&path, bytes)?;
    Ok(path)
}

fn cmdline() -> Result<String> {
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(Path::new(IMAGE).join("manifest.json"))?)?;
    let image = manifest["cmdline"].as_str().context("the image's manifest has no cmdline")?;
    Ok(format!("{image} {}", lab::kernel_arguments()))
}

fn micros(us: u64) -> f64 {
    millis(Duration::from_micros(us))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss)] // figures for people: 53 bits are plenty
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[allow(clippy::cast_precision_loss)] // figures for people: 53 bits are plenty
fn count(n: u64) -> f64 {
    n as f64
}
