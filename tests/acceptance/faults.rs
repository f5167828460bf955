//! Everything that can die dies at every phase of a move. Afterwards exactly one instance runs, or the machine is
//! reported stopped with the reason; no acknowledged write is lost; the next move works.
//!
//! `MASHINES_FAULTS=control,link@Prepared` runs only what is named.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mashines_fleet::api;
use mashines_fleet::record::MachineState;
use mashines_tests::daemons::{Fleet, Role};
use mashines_tests::monitor::{self, Monitor};
use mashines_tests::netns::Place;
use mashines_tests::person::{Door, Session};
use mashines_tests::run::wait_for;
use mashines_vmm::api::{Phase, State};

const SLUG: &str = "phoenix";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const PHASES: [Phase; 6] = [
    Phase::Handshake,
    Phase::PreCopy,
    Phase::StopAndCopy,
    Phase::Prepared,
    Phase::HandedOver,
    Phase::Running,
];

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    SourceMonitor,
    DestinationMonitor,
    SourceHost,
    DestinationHost,
    SourceNetd,
    DestinationNetd,
    Control,
    Link,
}

impl Fault {
    const ALL: [(Fault, &str); 8] = [
        (Fault::SourceMonitor, "source-monitor"),
        (Fault::DestinationMonitor, "destination-monitor"),
        (Fault::SourceHost, "source-host"),
        (Fault::DestinationHost, "destination-host"),
        (Fault::SourceNetd, "source-netd"),
        (Fault::DestinationNetd, "destination-netd"),
        (Fault::Control, "control"),
        (Fault::Link, "link"),
    ];

    fn strike(self, fleet: &mut Fleet, source: Place) -> Result<()> {
        match self {
            Fault::SourceMonitor => fleet.kill_monitors(source).map(drop),
            Fault::DestinationMonitor => fleet.kill_monitors(source.peer()).map(drop),
            Fault::SourceHost => fleet.kill(source, Role::Host),
            Fault::DestinationHost => fleet.kill(source.peer(), Role::Host),
            Fault::SourceNetd => fleet.kill(source, Role::Netd),
            Fault::DestinationNetd => fleet.kill(source.peer(), Role::Netd),
            Fault::Control => fleet.kill(Place::Control, Role::Control),
            Fault::Link => fleet.topology.cut_between_hosts(true),
        }
    }

    fn mend(self, fleet: &mut Fleet, source: Place) -> Result<()> {
        match self {
            Fault::SourceMonitor | Fault::DestinationMonitor => Ok(()),
            Fault::SourceHost => fleet.start(source, Role::Host),
            Fault::DestinationHost => fleet.start(source.peer(), Role::Host),
            Fault::SourceNetd => fleet.start(source, Role::Netd),
            Fault::DestinationNetd => fleet.start(source.peer(), Role::Netd),
            Fault::Control => fleet.start(Place::Control, Role::Control),
            Fault::Link => fleet.topology.cut_between_hosts(false),
        }
    }

    /// Whether the guest may have lost its RAM: only with the monitor that held the machine. Around the hand-over either
    /// monitor may be the one.
    fn may_reboot(self, phase: Phase) -> bool {
        match self {
            Fault::SourceMonitor => phase <= Phase::HandedOver,
            Fault::DestinationMonitor => phase >= Phase::Prepared,
            Fault::SourceHost
            | Fault::DestinationHost
            | Fault::SourceNetd
            | Fault::DestinationNetd
            | Fault::Control
            | Fault::Link => false,
        }
    }
}

#[test]
fn whatever_dies_when_one_instance_runs_or_none_with_the_reason() -> Result<()> {
    let wanted = std::env::var("MASHINES_FAULTS").unwrap_or_default();
    let mut fleet = Fleet::up("faults", &mut |step| eprintln!("{step}"))?;
    let words =
        ["launch", "--name", SLUG, "--vcpu", "1", "--memory", "384M", "--volume", "data:256M", "--wait"];
    let _: api::Machine = fleet.ask(&words)?;
    let mut failures = Vec::new();
    for (fault, name) in Fault::ALL {
        for phase in PHASES {
            let both = format!("{name}@{phase:?}");
            if !wanted.is_empty() && !wanted.split(',').any(|w| w == name || w == both) {
                continue;
            }
            let mut steps = Steps::start();
            let outcome = one_fault(&mut fleet, fault, phase, &mut steps);
            steps.done("the rest");
            match outcome {
                Ok(what) => eprintln!("{name} at {phase:?}: {what} ({steps})"),
                Err(e) => {
                    eprintln!("{name} at {phase:?}: FAILED ({steps}): {e:#}");
                    at_rest(&fleet).with_context(|| format!("after {both}"))?;
                    failures.push(both);
                }
            }
        }
    }
    let last = fleet.migrate(SLUG)?;
    ensure!(last.error.is_none(), "the last move failed: {last:?}");
    ensure!(failures.is_empty(), "failed: {failures:?}");
    Ok(())
}

fn one_fault(fleet: &mut Fleet, fault: Fault, phase: Phase, steps: &mut Steps) -> Result<String> {
    let source = fleet.place_of(SLUG)?;
    let mut writer = Writer::start(fleet)?;
    steps.done("writer");
    let monitor = the_running_one(fleet, source)?;
    monitor.hold(phase, true)?;
    let migration: api::Migration =
        fleet.ask(&["migrate", SLUG, "--to", source.peer().name(), "--no-wait"])?;
    reached(&monitor, &migration, phase)?;
    steps.done("phase");
    fault.strike(fleet, source)?;
    monitor.hold(phase, false)?;
    std::thread::sleep(Duration::from_secs(2));
    fault.mend(fleet, source)?;
    let end = ended(fleet, &migration)?;
    steps.done("verdict");
    let machine = settle(fleet)?;
    steps.done("settled");
    let acknowledged = writer.acknowledged();
    let boot = writer.boot.clone();
    drop(writer);
    one_instance(fleet, &machine)?;
    if machine.state == MachineState::Stopped {
        ensure!(fault.may_reboot(phase), "the machine stopped: {:?}", machine.reason);
        ensure!(machine.reason.is_some(), "the machine stopped without a reason");
        let _: serde_json::Value = fleet.ask(&["start", SLUG, "--wait"])?;
    }
    steps.done("one instance");
    let (now, kept) = boot_and_disk(fleet)?;
    let same_boot = now == boot;
    ensure!(same_boot || fault.may_reboot(phase), "the machine booted anew: {:?}", machine.reason);
    ensure!(kept >= acknowledged, "write {acknowledged} was acknowledged, the disk has {kept}");
    let fate = if same_boot { "lives on" } else { "booted anew" };
    let at = fleet.place_of(SLUG)?;
    Ok(format!("{:?}, {fate} at {}", end.step, if at == source { "the source" } else { "the destination" }))
}

/// The machine's boot id, and the number on its volume.
fn boot_and_disk(fleet: &Fleet) -> Result<(String, u64)> {
    wait_for("the machine to answer", Duration::from_secs(60), Duration::from_millis(500), || {
        let said = fleet.person.sh(SLUG, Door::Ipv6, &format!("cat {BOOT_ID} /data/n"))?;
        let (boot, kept) = said.split_once('\n').context("it said one line only")?;
        Ok((boot.trim().to_owned(), kept.trim().parse()?))
    })
}

fn the_running_one(fleet: &Fleet, place: Place) -> Result<Monitor> {
    let mut monitors = monitor::of(fleet, place)?;
    monitors.retain(|m| m.status().is_ok_and(|s| s.state == State::Running));
    ensure!(monitors.len() == 1, "{} monitors run at {}", monitors.len(), place.name());
    monitors.pop().context("there was one")
}

/// Waits until the source's monitor is at the phase.
fn reached(monitor: &Monitor, asked: &api::Migration, phase: Phase) -> Result<()> {
    let ended = wait_for("the phase", Duration::from_secs(120), Duration::from_millis(20), || {
        let migration = monitor.status()?.migration.context("no migration yet")?;
        ensure!(migration.migration_id == asked.id.as_str(), "still the one before");
        // In the last phase it is completed already, and late frames are all that is left to do.
        if migration.phase >= phase {
            return Ok(None);
        }
        migration.outcome.map(Some).with_context(|| format!("at {:?}", migration.phase))
    })?;
    ended.map_or(Ok(()), |outcome| bail!("the migration ended before {phase:?}: {outcome:?}"))
}

fn ended(fleet: &Fleet, migration: &api::Migration) -> Result<api::Migration> {
    wait_for("the migration to end", Duration::from_secs(90), Duration::from_millis(300), || {
        let migrations: Vec<api::Migration> = fleet.ask(&["migrations"])?;
        let found = migrations.into_iter().find(|m| m.id == migration.id).context("the migration is gone")?;
        ensure!(found.done, "it is at {:?}, {:?}", found.step, found.error);
        Ok(found)
    })
}

/// Waits until a case that failed half-way is over: a hold that nobody lifted ends by itself.
fn at_rest(fleet: &Fleet) -> Result<api::Machine> {
    wait_for("the moves to end", Duration::from_secs(120), Duration::from_secs(1), || {
        let migrations: Vec<api::Migration> = fleet.ask(&["migrations"])?;
        let open = migrations.iter().find(|m| !m.done);
        open.map_or(Ok(()), |m| bail!("{} is at {:?}", m.id, m.step))
    })?;
    settle(fleet)
}

/// Waits until the machine is up, or down for good.
fn settle(fleet: &Fleet) -> Result<api::Machine> {
    wait_for("the machine to settle", Duration::from_secs(120), Duration::from_millis(500), || {
        let machine = fleet.machine(SLUG)?;
        ensure!(
            matches!(machine.state, MachineState::Started | MachineState::Stopped),
            "it is {:?}: {:?}",
            machine.state,
            machine.reason
        );
        Ok(machine)
    })
}

fn one_instance(fleet: &Fleet, machine: &api::Machine) -> Result<()> {
    let wanted = usize::from(machine.state == MachineState::Started);
    wait_for("one instance", Duration::from_secs(10), Duration::from_millis(200), || {
        let mut monitors = monitor::of(fleet, Place::A)?;
        monitors.extend(monitor::of(fleet, Place::B)?);
        let states: Vec<State> =
            monitors.iter().map(|m| m.status().map(|s| s.state)).collect::<Result<_>>()?;
        let running = states.iter().filter(|s| **s == State::Running).count();
        ensure!(running <= 1, "{running} INSTANCES RUN");
        ensure!(
            running == wanted && states.len() == wanted,
            "the machine is {:?}, its monitors {states:?}",
            machine.state
        );
        Ok(())
    })
}

/// What one case spent its time on.
struct Steps {
    begun: Instant,
    last: Instant,
    done: Vec<(&'static str, f64)>,
}

impl Steps {
    fn start() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, done: Vec::new() }
    }

    fn done(&mut self, what: &'static str) {
        let now = Instant::now();
        self.done.push((what, (now - self.last).as_secs_f64()));
        self.last = now;
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} s", (self.last - self.begun).as_secs_f64())?;
        self.done.iter().try_for_each(|(what, seconds)| write!(f, ", {what} {seconds:.1}"))
    }
}

/// Writes a rising number to the volume, with fsync, and says so after each.
struct Writer {
    session: Session,
    /// The boot that it runs in.
    boot: String,
    last: u64,
}

impl Writer {
    fn start(fleet: &Fleet) -> Result<Self> {
        let script = "exec python3 -uc '
import os, time
print(open(\"/proc/sys/kernel/random/boot_id\").read().strip())
path = \"/data/n\"
n = int(open(path).read()) if os.path.exists(path) else 0
while True:
    n += 1
    with open(path + \".new\", \"w\") as f:
        f.write(str(n)); f.flush(); os.fsync(f.fileno())
    os.rename(path + \".new\", path)
    d = os.open(\"/data\", os.O_RDONLY); os.fsync(d); os.close(d)
    print(n)
    time.sleep(0.05)
'";
        wait_for("the writer to start", Duration::from_secs(60), Duration::from_millis(500), || {
            let mut session = fleet.person.session(SLUG, Door::Ipv6, script)?;
            let boot = session.line(Duration::from_secs(30))?;
            let last = session.line(Duration::from_secs(20))?.parse().context("the writer's first number")?;
            Ok(Self { session, boot, last })
        })
    }

    fn acknowledged(&mut self) -> u64 {
        let numbers = self.session.arrived().into_iter().filter_map(|(_, line)| line.parse().ok());
        self.last = numbers.max().unwrap_or(self.last).max(self.last);
        self.last
    }
}
