//! Emptying a host: cordon it, then move its machines, a few at a time, and say of each what became of it.
//!
//! The drain is in the store, so a control that restarts goes on with it.

use mashines_fleet::api::{Drain, DrainOutcome, DrainedMachine};
use mashines_fleet::id::HostId;
use mashines_fleet::key::Key;
use mashines_fleet::record::{Desired, Host, Machine, MachineState, Migration, MigrationStep};

use super::begin::{Asked, Terms, begin as begin_move};
use crate::control::Control;
use crate::failure::{Kind, Result};
use crate::records::{Private, retrying};

/// How often a drain looks.
const LOOK: std::time::Duration = std::time::Duration::from_millis(300);

/// Begins to drain a host, or answers how the drain that is under way stands.
///
/// # Errors
/// The host is not in the fleet.
pub async fn begin(control: &Control, host: &HostId) -> Result<Drain> {
    control.host(host)?;
    let key = Key::Host(host.clone());
    let cordon = control.records.update(&key, |host: &mut Host| {
        let change = !host.cordoned;
        host.cordoned = true;
        Ok(change)
    });
    cordon.await?;
    let drain = retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<Drain> = edit.private(Private::Drain(host)).await?;
        if let Some(known) = known.filter(|known| !known.done) {
            return Ok(known);
        }
        let drain = Drain { host: host.clone(), done: false, machines: here(control, host) };
        edit.put_private(Private::Drain(host), &drain)?;
        edit.commit().await?;
        Ok(drain)
    })
    .await?;
    start(control, host);
    Ok(drain)
}

/// How the newest drain of a host stands.
///
/// # Errors
/// It never was drained.
pub async fn state(control: &Control, host: &HostId) -> Result<Drain> {
    control.host(host)?;
    let drain: Option<Drain> = control.records.private(Private::Drain(host)).await?;
    drain.ok_or_else(|| {
        crate::failure::Failure::not_found(format!(
            "host {host} was never drained: POST the same path to begin"
        ))
    })
}

/// Goes on with drains that an earlier control began.
pub fn resume(control: &Control) {
    for host in control.view().hosts.values().filter(|host| host.cordoned) {
        start(control, &host.id);
    }
}

fn here(control: &Control, host: &HostId) -> Vec<DrainedMachine> {
    let view = control.view();
    let here = view.machines.values().filter(|machine| {
        machine.state != MachineState::Destroyed
            && machine.desired != Desired::Destroyed
            && machine.place.as_ref().is_some_and(|place| place.host == *host)
    });
    here.map(|machine| DrainedMachine {
        machine: machine.id.clone(),
        slug: machine.slug.to_string(),
        outcome: DrainOutcome::Waiting,
        migration: None,
        message: String::new(),
    })
    .collect()
}

fn start(control: &Control, host: &HostId) {
    let Some(running) = control.take_drain(host) else { return };
    let (control, host) = (control.clone(), host.clone());
    tokio::spawn(async move {
        let running = running;
        loop {
            match turn(&control, &host).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(failure) => tracing::warn!(%host, %failure, "a drain's step failed; it is tried again"),
            }
            tokio::time::sleep(LOOK).await;
        }
        // A host that stays cordoned after its drain would be looked at again and again otherwise.
        tokio::time::sleep(LOOK * 10).await;
        drop(running);
    });
}

/// One look; true when there is nothing left to do.
async fn turn(control: &Control, host: &HostId) -> Result<bool> {
    let known: Option<Drain> = control.records.private(Private::Drain(host)).await?;
    let Some(mut drain) = known.filter(|drain| !drain.done) else { return Ok(true) };
    let uncordoned = !control.host(host)?.cordoned;
    let before = drain.clone();
    for machine in &mut drain.machines {
        watch(control, host, machine);
    }
    let moving = drain.machines.iter().filter(|m| m.outcome == DrainOutcome::Moving).count();
    let free = control.config.drain_parallel.max(1).saturating_sub(moving);
    let waiting = drain.machines.iter_mut().filter(|m| m.outcome == DrainOutcome::Waiting);
    for machine in waiting.take(if uncordoned { usize::MAX } else { free }) {
        if uncordoned {
            machine.outcome = DrainOutcome::Failed;
            machine.message = "the host was uncordoned before its turn".to_owned();
        } else {
            set_off(control, machine).await?;
        }
    }
    let open = |m: &DrainedMachine| matches!(m.outcome, DrainOutcome::Waiting | DrainOutcome::Moving);
    drain.done = !drain.machines.iter().any(open);
    if drain != before {
        let mut edit = control.records.edit();
        edit.put_private(Private::Drain(host), &drain)?;
        edit.commit().await?;
    }
    Ok(drain.done)
}

/// Whatever moved it, a machine that is elsewhere has moved.
fn watch(control: &Control, host: &HostId, machine: &mut DrainedMachine) {
    let view = control.view();
    let record = view.machines.get(&machine.machine);
    let migration = machine.migration.as_ref().and_then(|id| view.migrations.get(id));
    if let Some(place) = record.and_then(|record| record.place.as_ref()).filter(|place| place.host != *host) {
        machine.outcome = DrainOutcome::Moved;
        machine.message = format!("on {}", place.host);
        return;
    }
    let over = migration.filter(|migration| migration.step.is_final());
    if let (DrainOutcome::Moving, Some(migration)) = (machine.outcome, over) {
        (machine.outcome, machine.message) = after(migration, record.map(|record| &**record));
    }
}

fn after(migration: &Migration, machine: Option<&Machine>) -> (DrainOutcome, String) {
    let error = migration.error.clone().unwrap_or_default();
    let runs = machine.is_some_and(|machine| machine.desired == Desired::Started);
    match migration.step {
        MigrationStep::Lost if !runs => (DrainOutcome::NotRunning, error),
        _ => (DrainOutcome::Failed, error),
    }
}

async fn set_off(control: &Control, machine: &mut DrainedMachine) -> Result<()> {
    let config = &control.config;
    let terms = Terms {
        budget_ms: config.blackout_budget_ms,
        timeout_ms: config.migration_timeout_s.saturating_mul(1000),
    };
    let Some(record) = control.view().machines.get(&machine.machine).cloned() else {
        machine.outcome = DrainOutcome::NotRunning;
        return Ok(());
    };
    if record.desired != Desired::Started {
        machine.outcome = DrainOutcome::NotRunning;
        machine.message = "it does not run: its disks stay on the host".to_owned();
        return Ok(());
    }
    if let Some(under_way) = control.view().migration_of(&record.id) {
        machine.outcome = DrainOutcome::Moving;
        machine.migration = Some(under_way.id.clone());
        return Ok(());
    }
    if record.state == MachineState::Starting {
        return Ok(());
    }
    match begin_move(control, &record.id, Asked { host: None, terms, by: "drain".to_owned() }).await {
        Ok(migration) => {
            machine.outcome = DrainOutcome::Moving;
            machine.migration = Some(migration.id);
        }
        Err(failure) if failure.kind == Kind::Internal => return Err(failure),
        Err(failure) => {
            machine.outcome = DrainOutcome::Failed;
            machine.message = failure.message;
        }
    }
    Ok(())
}
