//! Everything that can die dies at every phase of a move. Afterwards exactly one instance runs, or the machine is
//! reported stopped with the reason; no acknowledged write is lost; the next move works.
//!
//! `MASHINES_FAULTS=control,link` runs only the faults named.

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
        if !wanted.is_empty() && !wanted.split(',').any(|w| w == name) {
            continue;
        }
        for phase in PHASES {
            let begun = Instant::now();
            let outcome = one_fault(&mut fleet, fault, phase);
            let seconds = begun.elapsed().as_secs_f64();
            match outcome {
                Ok(what) => eprintln!("{name} at {phase:?}: {what} ({seconds:.1} s)"),
                Err(e) => {
                    eprintln!("{name} at {phase:?}: FAILED ({seconds:.1} s): {e:#}");
                    failures.push(format!("{name} at {phase:?}"));
                    settle(&fleet).with_context(|| format!("after {name} at {phase:?}"))?;
                }
            }
        }
    }
    let last = fleet.migrate(SLUG)?;
    ensure!(last.error.is_none(), "the last move failed: {last:?}");
    ensure!(failures.is_empty(), "failed: {failures:?}");
    Ok(())
}

fn one_fault(fleet: &mut Fleet, fault: Fault, phase: Phase) -> Result<String> {
    let source = fleet.place_of(SLUG)?;
    let boot = boot_id(fleet)?;
    let mut writer = Writer::start(fleet)?;
    let monitor = the_running_one(fleet, source)?;
    monitor.hold(phase, true)?;
    let migration: api::Migration =
        fleet.ask(&["migrate", SLUG, "--to", source.peer().name(), "--no-wait"])?;
    reached(&monitor, phase)?;
    fault.strike(fleet, source)?;
    monitor.hold(phase, false)?;
    std::thread::sleep(Duration::from_secs(2));
    fault.mend(fleet, source)?;
    let end = ended(fleet, &migration)?;
    let machine = settle(fleet)?;
    let acknowledged = writer.acknowledged();
    drop(writer);
    one_instance(fleet, &machine)?;
    if machine.state == MachineState::Stopped {
        ensure!(fault.may_reboot(phase), "the machine stopped: {:?}", machine.reason);
        ensure!(machine.reason.is_some(), "the machine stopped without a reason");
        let _: serde_json::Value = fleet.ask(&["start", SLUG, "--wait"])?;
    }
    let same_boot = boot_id(fleet)? == boot;
    ensure!(same_boot || fault.may_reboot(phase), "the machine booted anew: {:?}", machine.reason);
    let kept: u64 = fleet.person.sh(SLUG, Door::Ipv6, "cat /data/n")?.trim().parse()?;
    ensure!(kept >= acknowledged, "write {acknowledged} was acknowledged, the disk has {kept}");
    let fate = if same_boot { "lives on" } else { "booted anew" };
    let at = fleet.place_of(SLUG)?;
    Ok(format!("{:?}, {fate} at {}", end.step, if at == source { "the source" } else { "the destination" }))
}

fn boot_id(fleet: &Fleet) -> Result<String> {
    wait_for("the machine to answer", Duration::from_secs(60), Duration::from_millis(500), || {
        fleet.person.sh(SLUG, Door::Ipv6, "cat /proc/sys/kernel/random/boot_id")
    })
}

fn the_running_one(fleet: &Fleet, place: Place) -> Result<Monitor> {
    let mut monitors = monitor::of(fleet, place)?;
    monitors.retain(|m| m.status().is_ok_and(|s| s.state == State::Running));
    ensure!(monitors.len() == 1, "{} monitors run at {}", monitors.len(), place.name());
    monitors.pop().context("there was one")
}

/// Waits until the source's monitor is at the phase.
fn reached(monitor: &Monitor, phase: Phase) -> Result<()> {
    wait_for("the phase", Duration::from_secs(40), Duration::from_millis(20), || {
        let migration = monitor.status()?.migration.context("no migration yet")?;
        if let Some(outcome) = &migration.outcome {
            bail!("the migration ended before {phase:?}: {outcome:?}");
        }
        ensure!(migration.phase >= phase, "at {:?}", migration.phase);
        Ok(())
    })
}

fn ended(fleet: &Fleet, migration: &api::Migration) -> Result<api::Migration> {
    wait_for("the migration to end", Duration::from_secs(90), Duration::from_millis(300), || {
        let migrations: Vec<api::Migration> = fleet.ask(&["migrations"])?;
        let found = migrations.into_iter().find(|m| m.id == migration.id).context("the migration is gone")?;
        ensure!(found.done, "it is at {:?}, {:?}", found.step, found.error);
        Ok(found)
    })
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

/// Writes a rising number to the volume, with fsync, and says so after each.
struct Writer {
    session: Session,
    last: u64,
}

impl Writer {
    fn start(fleet: &Fleet) -> Result<Self> {
        let script = "exec python3 -uc '
import os, time
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
        let mut session = fleet.person.session(SLUG, Door::Ipv6, script)?;
        let last = session.line(Duration::from_secs(20))?.parse().context("the writer's first line")?;
        Ok(Self { session, last })
    }

    fn acknowledged(&mut self) -> u64 {
        let numbers = self.session.arrived().into_iter().filter_map(|(_, line)| line.parse().ok());
        self.last = numbers.max().unwrap_or(self.last).max(self.last);
        self.last
    }
}
