//! The transactions that end a move, or turn it: machine, volumes and migration change together or not at all.

use mashines_fleet::host_api::{LocalMigration, LocalMigrationState, Side};
use mashines_fleet::id::MigrationId;
use mashines_fleet::key::Key;
use mashines_fleet::record::{Machine, MachineState, Migration, MigrationStep, Place, Volume};

use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::lifecycle::{event, restart_or_stop};
use crate::records::{Private, retrying};
use crate::time::now;

/// How often the figures of a move under way are written.
const FIGURES_EVERY_MS: u64 = 1000;

/// Writes the next step of a move whose machine stays as it is.
pub async fn step(control: &Control, id: &MigrationId, to: MigrationStep) -> Result<()> {
    let key = Key::Migration(id.clone());
    let mut changed = false;
    let update = control.records.update(&key, |migration: &mut Migration| {
        let change = migration.step != to && !migration.step.is_final();
        changed = change;
        if change {
            migration.step = to;
            migration.updated_at = now();
        }
        Ok(change)
    });
    let migration = update.await?;
    if changed {
        tracing::info!(%id, step = migration.step.word(), "migration");
    }
    Ok(())
}

/// Keeps what the monitors say, for people who watch.
pub async fn progress(control: &Control, id: &MigrationId, said: &LocalMigration) -> Result<()> {
    let known = control.view().migrations.get(id).cloned();
    // The record keeps the source's figures: the blackout is measured there.
    let figures = said.figures.as_ref().filter(|_| said.side == Side::Source);
    let same = known.is_none_or(|known| {
        // Every change goes to every replica, so figures that only grow are written now and then.
        let recent = said.state == LocalMigrationState::Active
            && known.figures.is_some()
            && now() < known.updated_at.saturating_add(FIGURES_EVERY_MS);
        (said.phase.is_none() || known.phase == said.phase)
            && (figures.is_none() || recent || known.figures.as_ref() == figures)
    });
    if same {
        return Ok(());
    }
    let key = Key::Migration(id.clone());
    let update = control.records.update(&key, |migration: &mut Migration| {
        if said.phase.is_some() {
            migration.phase.clone_from(&said.phase);
        }
        if let Some(figures) = figures {
            migration.figures = Some(figures.clone());
        }
        migration.updated_at = now();
        Ok(true)
    });
    update.await.map(drop)
}

/// The machine's place becomes `{destination, epoch + 1}`. Fails without a trace when its place is not the one that the move began
/// with: that is the compare-and-swap of the place.
pub async fn commit(control: &Control, id: &MigrationId) -> Result<()> {
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut migration: Migration = edit.require(&Key::Migration(id.clone())).await?;
        if !matches!(migration.step, MigrationStep::Moving | MigrationStep::Doubtful) {
            return Ok(());
        }
        let mut machine: Machine = edit.require(&Key::Machine(migration.machine.clone())).await?;
        expect_place(&machine, &migration)?;
        let now = now();
        machine.place = Some(Place { host: migration.destination.clone(), epoch: migration.epoch.next() });
        machine.state = MachineState::Started;
        machine.reason = None;
        let message = format!("from {} to {}", migration.source, migration.destination);
        event(&mut machine, "migrate", "completed", "control", message, now);
        for mount in &machine.config.mounts {
            let volume: Option<Volume> = edit.get(&Key::Volume(mount.volume.clone())).await?;
            if let Some(mut volume) = volume {
                volume.host = Some(migration.destination.clone());
                edit.put(&volume)?;
            }
        }
        migration.step = MigrationStep::Committed;
        migration.updated_at = now;
        edit.put(&machine)?.put(&migration)?;
        edit.commit().await
    })
    .await
}

fn expect_place(machine: &Machine, migration: &Migration) -> Result<()> {
    let expected = Place { host: migration.source.clone(), epoch: migration.epoch };
    if machine.place.as_ref() == Some(&expected) {
        return Ok(());
    }
    Err(Failure::internal(format!(
        "machine {} is at {:?}, not at {expected:?} where migration {} began: nothing was changed",
        machine.id, machine.place, migration.id
    )))
}

/// Nothing moved: the machine goes on where it was.
pub async fn fail(control: &Control, id: &MigrationId, error: String) -> Result<()> {
    end(control, id, MigrationStep::Failed, error, |machine, migration, error| {
        let message = format!("to {}: {error}", migration.destination);
        event(machine, "migrate", "failed", "control", message, now());
    })
    .await
}

/// The instance is lost after the hand-over. The destination's epoch is used up, so the next start at the source takes the one after.
pub async fn lose(control: &Control, id: &MigrationId, error: String) -> Result<()> {
    end(control, id, MigrationStep::Lost, error, |machine, migration, error| {
        machine.place = Some(Place { host: migration.source.clone(), epoch: migration.epoch.next() });
        let message = format!("to {}: {error}", migration.destination);
        event(machine, "migrate", "failed", "control", message, now());
        restart_or_stop(machine, error.to_owned(), true, now());
    })
    .await
}

async fn end(
    control: &Control,
    id: &MigrationId,
    step: MigrationStep,
    error: String,
    with: impl Fn(&mut Machine, &Migration, &str),
) -> Result<()> {
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut migration: Migration = edit.require(&Key::Migration(id.clone())).await?;
        if migration.step.is_final() {
            return Ok(());
        }
        let machine: Option<Machine> = edit.get(&Key::Machine(migration.machine.clone())).await?;
        if let Some(mut machine) = machine {
            expect_place(&machine, &migration)?;
            with(&mut machine, &migration, &error);
            edit.put(&machine)?;
        }
        migration.step = step;
        migration.error = Some(error.clone());
        migration.updated_at = now();
        release(&mut edit, &migration).put(&migration)?;
        edit.commit().await
    })
    .await
}

/// Both sides have forgotten it, or will be made to.
pub async fn complete(control: &Control, id: &MigrationId) -> Result<()> {
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut migration: Migration = edit.require(&Key::Migration(id.clone())).await?;
        if migration.step.is_final() {
            return Ok(());
        }
        migration.step = MigrationStep::Completed;
        migration.updated_at = now();
        release(&mut edit, &migration).put(&migration)?;
        edit.commit().await
    })
    .await
}

/// Another move of the machine may begin.
fn release<'e, 'c>(
    edit: &'e mut crate::records::Edit<'c>,
    migration: &Migration,
) -> &'e mut crate::records::Edit<'c> {
    edit.delete_private(Private::Migrating(&migration.machine))
        .delete_private(Private::Cancel(&migration.id))
        .delete_private(Private::Terms(&migration.id))
}
