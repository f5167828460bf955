//! What lies about on hosts though no record wants it there: instances of an older epoch, remains of decided moves.
//!
//! Each is told to go by the host that has it, once its end is a fact of the store. Nothing that runs in a machine's
//! current epoch is ever touched, and nothing of a migration that is under way.

use mashines_fleet::host_api::{LocalMachine, LocalMigration, LocalMigrationState, LocalState, Side};
use mashines_fleet::id::HostId;
use mashines_fleet::record::{MachineState, MigrationStep};
use mashines_fleet::rpc::Empty;
use mashines_fleet::view::View;

use crate::control::Control;
use crate::failure::Result;

/// Something to be cleared at a host.
#[derive(Debug, Clone, PartialEq)]
enum Stray {
    /// DELETE the machine's instance of its epoch.
    Instance(LocalMachine),
    /// POST cancel.
    Cancel(LocalMigration),
    /// POST finish.
    Finish(LocalMigration),
}

/// One round over all hosts.
pub async fn sweep(control: &Control) {
    for (host, machines, migrations) in control.hosts.all() {
        let view = control.view();
        let strays = machines.iter().filter_map(|local| stray_instance(&view, &host, local));
        let moves = migrations.iter().filter_map(|local| stray_migration(&view, local));
        for stray in moves.chain(strays).collect::<Vec<_>>() {
            if let Err(failure) = clear(control, &host, &stray).await {
                tracing::warn!(%host, ?stray, %failure, "cannot clear what should not be there; tried again");
                break;
            }
            tracing::info!(%host, ?stray, "cleared what should not be there");
        }
    }
}

/// An instance that must not be there: its machine is gone, or is elsewhere in a later epoch.
fn stray_instance(view: &View, host: &HostId, local: &LocalMachine) -> Option<Stray> {
    if view.migration_of(&local.id).is_some() {
        return None;
    }
    let machine = view.machines.get(&local.id)?;
    let gone = machine.state == MachineState::Destroyed;
    let elsewhere =
        machine.place.as_ref().is_some_and(|place| place.host != *host && place.epoch > local.epoch);
    // The remains of a move are cleared with the move.
    let of_a_move = matches!(local.state, LocalState::Incoming | LocalState::HandedOver);
    ((gone || elsewhere) && !of_a_move).then(|| Stray::Instance(local.clone()))
}

fn stray_migration(view: &View, local: &LocalMigration) -> Option<Stray> {
    let step = view.migrations.get(&local.id)?.step;
    match (step, local.side, local.state) {
        (MigrationStep::Completed, _, _) => Some(Stray::Finish(local.clone())),
        // The verdict was that it does not run at the destination.
        (MigrationStep::Failed | MigrationStep::Lost, _, LocalMigrationState::Failed) => {
            Some(Stray::Finish(local.clone()))
        }
        (
            MigrationStep::Failed | MigrationStep::Lost,
            Side::Destination,
            LocalMigrationState::Active | LocalMigrationState::Prepared,
        )
        | (MigrationStep::Failed, Side::Source, LocalMigrationState::Active) => {
            Some(Stray::Cancel(local.clone()))
        }
        // Contradictions are for a person, not for a broom.
        (
            MigrationStep::Failed | MigrationStep::Lost,
            _,
            LocalMigrationState::Running
            | LocalMigrationState::HandedOver
            | LocalMigrationState::Prepared
            | LocalMigrationState::Active,
        )
        | (
            MigrationStep::Reserved
            | MigrationStep::Prepared
            | MigrationStep::Moving
            | MigrationStep::Doubtful
            | MigrationStep::Committed,
            _,
            _,
        ) => None,
    }
}

async fn clear(control: &Control, host: &HostId, stray: &Stray) -> Result<()> {
    let client = control.hosts.client(&*control.host(host)?)?;
    match stray {
        Stray::Instance(local) => {
            let _gone: Empty =
                client.delete(&format!("/v1/machines/{}?epoch={}", local.id, local.epoch)).await?;
            control.hosts.forget(host, &local.id, local.epoch);
        }
        Stray::Cancel(local) => {
            let _now: LocalMigration =
                client.post(&format!("/v1/migrations/{}/cancel", local.id), &Empty {}).await?;
        }
        Stray::Finish(local) => {
            let _gone: Empty = client.post(&format!("/v1/migrations/{}/finish", local.id), &Empty {}).await?;
            control.hosts.forget_migration(host, &local.id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mashines_fleet::id::{Epoch, MigrationId};
    use mashines_fleet::record::Migration;

    use super::*;
    use crate::testing::machine;

    fn local(epoch: u64, state: LocalState) -> LocalMachine {
        let id = machine(None).id;
        LocalMachine { id, epoch: Epoch(epoch), state, reason: None, cpu_time_us: 0, resident_bytes: 0 }
    }

    fn view(place: (&str, u64), step: Option<MigrationStep>) -> (View, MigrationId) {
        let mut view = View::default();
        let machine = machine(Some(place));
        let id = MigrationId::generate();
        if let Some(step) = step {
            let migration = Migration {
                id: id.clone(),
                machine: machine.id.clone(),
                source: "hosta".parse().unwrap(),
                destination: "hostb".parse().unwrap(),
                epoch: Epoch(3),
                step,
                error: None,
                phase: None,
                figures: None,
                requested_by: String::new(),
                created_at: 0,
                updated_at: 0,
            };
            view.migrations.insert(id.clone(), Arc::new(migration));
        }
        view.machines.insert(machine.id.clone(), Arc::new(machine));
        (view, id)
    }

    #[test]
    fn only_an_older_instance_elsewhere_is_a_stray() {
        let (view, _) = view(("hostb", 4), None);
        let (a, b) = ("hosta".parse().unwrap(), "hostb".parse().unwrap());
        assert!(stray_instance(&view, &a, &local(3, LocalState::Crashed)).is_some());
        assert!(stray_instance(&view, &a, &local(4, LocalState::Ready)).is_none(), "an equal epoch is doubt");
        assert!(stray_instance(&view, &b, &local(4, LocalState::Ready)).is_none());
        assert!(stray_instance(&view, &b, &local(3, LocalState::Stopped)).is_none(), "its disk");
        assert!(
            stray_instance(&view, &a, &local(3, LocalState::HandedOver)).is_none(),
            "cleared with its move"
        );
    }

    #[test]
    fn nothing_of_a_migration_under_way_is_swept() {
        for step in [
            MigrationStep::Reserved,
            MigrationStep::Moving,
            MigrationStep::Doubtful,
            MigrationStep::Committed,
        ] {
            let (view, id) = view(("hosta", 3), Some(step));
            assert!(stray_instance(&view, &"hostb".parse().unwrap(), &local(2, LocalState::Ready)).is_none());
            let local = LocalMigration {
                id,
                machine: machine(None).id,
                side: Side::Destination,
                state: LocalMigrationState::Prepared,
                phase: None,
                error: None,
                figures: None,
            };
            assert_eq!(stray_migration(&view, &local), None);
        }
    }
}
