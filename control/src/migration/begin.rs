//! How a move is asked for, and asked to end.

use mashines_fleet::id::{HostId, MachineId, MigrationId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Desired, Machine, MachineState, Migration, MigrationStep};
use serde::{Deserialize, Serialize};

use super::saga;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::lifecycle::event;
use crate::records::{Private, retrying};
use crate::scheduler::{Wanted, needs};
use crate::time::now;

/// What a move keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The blackout to aim for, milliseconds.
    pub budget_ms: u64,
    /// It is ended after this, milliseconds.
    pub timeout_ms: u64,
}

/// Who asks, and for what.
#[derive(Debug, Clone)]
pub struct Asked {
    /// To this host; the scheduler's choice when none.
    pub host: Option<HostId>,
    /// What it keeps to.
    pub terms: Terms,
    /// An account, or `drain`.
    pub by: String,
}

/// Begins to move a machine: the first step is in the store when this returns.
///
/// # Errors
/// The machine does not run, is being moved already, or no host will do.
pub async fn begin(control: &Control, machine: &MachineId, asked: Asked) -> Result<Migration> {
    let migration = retrying(|| try_begin(control, machine, &asked)).await?;
    saga::start(control, &migration.id);
    Ok(migration)
}

async fn try_begin(control: &Control, id: &MachineId, asked: &Asked) -> Result<Migration> {
    let _placing = control.placing.lock().await;
    let mut edit = control.records.edit();
    let mut machine: Machine = edit.require(&Key::Machine(id.clone())).await?;
    let under_way: Option<MigrationId> = edit.private(Private::Migrating(id)).await?;
    let place = movable(&machine, under_way.as_ref())?;
    if asked.host.as_ref() == Some(&place.host) {
        return Err(Failure::conflict(format!("machine {} is on {} already", machine.slug, place.host)));
    }
    let view = control.view();
    let destination = control.choose(&Wanted {
        region: None,
        host: asked.host.clone(),
        not: Some(place.host.clone()),
        image: machine.config.image.clone(),
        digest: Some(machine.image_digest.clone()),
        room: needs(&view, &machine),
        pinned: Vec::new(),
    })?;
    let now = now();
    let migration = Migration {
        id: MigrationId::generate(),
        machine: id.clone(),
        source: place.host.clone(),
        destination,
        epoch: place.epoch,
        step: MigrationStep::Reserved,
        error: None,
        phase: None,
        figures: None,
        requested_by: asked.by.clone(),
        created_at: now,
        updated_at: now,
    };
    let message = format!("from {} to {}", migration.source, migration.destination);
    event(&mut machine, "migrate", "started", "user", message, now);
    edit.put(&migration)?.put(&machine)?;
    edit.put_private(Private::Migrating(id), &migration.id)?;
    edit.put_private(Private::Terms(&migration.id), &asked.terms)?;
    edit.commit().await?;
    Ok(migration)
}

/// Only what runs can be moved while it runs.
fn movable(machine: &Machine, under_way: Option<&MigrationId>) -> Result<mashines_fleet::record::Place> {
    let slug = &machine.slug;
    if let Some(id) = under_way {
        return Err(Failure::conflict(format!(
            "machine {slug} is being moved already (migration {id}): wait for it, or cancel it with POST /v1/migrations/{id}/cancel"
        )));
    }
    let not = |why: String| Err(Failure::conflict(format!("machine {slug} cannot be moved: {why}")));
    match (machine.desired, machine.state, &machine.place) {
        (Desired::Started, MachineState::Started, Some(place)) => Ok(place.clone()),
        (Desired::Destroyed, _, _) => not("it is being destroyed".to_owned()),
        (Desired::Started, MachineState::Created | MachineState::Starting, _) => {
            not("it is still starting; try again when it is started".to_owned())
        }
        (_, MachineState::Stopping, _)
        | (Desired::Stopped, MachineState::Starting | MachineState::Started, _) => {
            not("it is stopping".to_owned())
        }
        (
            Desired::Started | Desired::Stopped,
            MachineState::Created
            | MachineState::Started
            | MachineState::Stopped
            | MachineState::Destroying
            | MachineState::Destroyed
            | MachineState::Failed,
            _,
        ) => not(format!(
            "it is {} and does not run, and only a running machine is moved; start it first (its disks stay on its host)",
            machine.state.word()
        )),
    }
}

/// Asks for the end of a move. It may be too late: the answer to that is in the migration's step.
///
/// # Errors
/// There is no such migration, or it is decided already.
pub async fn cancel(control: &Control, id: &MigrationId) -> Result<Migration> {
    let migration = retrying(|| async {
        let mut edit = control.records.edit();
        let migration: Migration = edit.require(&Key::Migration(id.clone())).await?;
        if migration.step.is_final() || migration.step == MigrationStep::Committed {
            let step = migration.step.word();
            return Err(Failure::conflict(format!("migration {id} is {step}: there is nothing to cancel")));
        }
        edit.put_private(Private::Cancel(id), &now())?;
        edit.commit().await?;
        Ok(migration)
    })
    .await?;
    saga::start(control, id);
    Ok(migration)
}
