//! Moves against hosts that fail, die and fall silent: afterwards exactly one instance runs, or the reason is told.

use crate::support::fake_host::{Fault, Stall};
use crate::support::{Fleet, MACHINES, eventually};
use mashines_fleet::api::{self, DrainOutcome};
use mashines_fleet::host_api::{LocalMigrationState, LocalState};
use mashines_fleet::id::{Epoch, MachineId};
use mashines_fleet::record::{MachineState, MigrationStep};
use serde_json::json;

/// Where the machine runs; never at two places.
fn running(fleet: &Fleet, machine: &MachineId) -> Vec<String> {
    fleet.hosts.iter().filter(|host| host.runs(machine)).map(|host| host.id.to_string()).collect()
}

/// Nothing of any migration is left on any host.
async fn swept(fleet: &Fleet) {
    eventually("the hosts forget the migration", || async {
        fleet.hosts.iter().all(|host| host.inside().migrations.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_there_and_back_with_its_volume() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let body = json!({
        "name": "web", "host": "hosta", "config": {"image": "container-os"},
        "volumes": [{"name": "data", "size_mib": 1024}],
    });
    let machine: api::Machine = fleet.post(MACHINES, body).await.unwrap();
    fleet.wait("web", "started").await;
    for (epoch, to) in [(2, "hostb"), (3, "hosta"), (4, "hostb")] {
        let begun = fleet.migrate("web", None).await.unwrap();
        let over = fleet.over(begun.id.as_str()).await;
        assert_eq!((over.step, over.destination.as_str()), (MigrationStep::Completed, to), "{over:?}");
        assert_eq!(over.figures.as_ref().unwrap()["blackout_us"], 9000);
        let now = fleet.machine("web").await;
        assert_eq!(
            (now.host.unwrap().as_str(), now.epoch, now.state),
            (to, Epoch(epoch), MachineState::Started)
        );
        assert_eq!(running(&fleet, &machine.id), [to]);
        let volumes: Vec<api::Volume> = fleet.client.get("/v1/volumes").await.unwrap();
        assert_eq!(volumes[0].host.as_ref().unwrap().as_str(), to);
        swept(&fleet).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_or_whose_answer_is_lost_ends_in_one_instance_each_time() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for call in ["incoming", "outgoing", "migration", "finish"] {
            for side in ["hosta", "hostb"] {
                fleet.host(side).fault(call, fault);
                let begun = fleet.migrate("web", None).await.unwrap();
                let over = fleet.over(begun.id.as_str()).await;
                let runs = running(&fleet, &machine.id);
                let here = format!("{call} {fault:?} at {side}: {over:?}");
                match over.step {
                    MigrationStep::Completed => assert_eq!(runs, [over.destination.as_str()], "{here}"),
                    MigrationStep::Failed => {
                        assert_eq!(runs, [over.source.as_str()], "{here}");
                        assert!(over.error.is_some_and(|error| !error.is_empty()), "{here}");
                    }
                    other => panic!("{other:?}: {here}"),
                }
                swept(&fleet).await;
                for host in &fleet.hosts {
                    host.inside().clear_faults();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_may_be_killed_at_any_point_and_goes_on() {
    let mut fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    for stall in [Stall::PreCopy, Stall::BeforeHandOver, Stall::AfterHandOver] {
        let source = fleet.machine("web").await.host.unwrap();
        fleet.host(source.as_str()).inside().stall = Some(stall);
        let begun = fleet.migrate("web", None).await.unwrap();
        eventually("it moves", || async {
            let now: api::Migration = fleet.client.get(&format!("/v1/migrations/{}", begun.id)).await.ok()?;
            (now.step == MigrationStep::Moving).then_some(())
        })
        .await;
        fleet.restart_control().await;
        fleet.host(source.as_str()).inside().stall = None;
        let over = fleet.over(begun.id.as_str()).await;
        assert_eq!(over.step, MigrationStep::Completed, "{stall:?}: {over:?}");
        assert_eq!(running(&fleet, &machine.id), [over.destination.as_str()]);
        swept(&fleet).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_got_lost_is_made_up_for() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").inside().stall = Some(Stall::AfterHandOver);
    let begun = fleet.migrate("web", Some("hostb")).await.unwrap();
    assert_eq!(fleet.over(begun.id.as_str()).await.step, MigrationStep::Completed);
    assert_eq!(running(&fleet, &machine.id), ["hostb"]);
    assert!(fleet.host("hostb").inside().calls.iter().any(|call| call.starts_with("resolve")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_before_the_hand_over_is_started_again_where_its_disks_are() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").inside().stall = Some(Stall::PreCopy);
    let begun = fleet.migrate("web", Some("hostb")).await.unwrap();
    eventually("it sends", || async { (!fleet.host("hosta").inside().migrations.is_empty()).then_some(()) })
        .await;
    fleet.host("hosta").crash(&machine.id);
    let over = fleet.over(begun.id.as_str()).await;
    assert_eq!(over.step, MigrationStep::Failed);
    assert!(over.error.unwrap().contains("monitor died"));
    let up = eventually("it runs again", || async {
        let now = fleet.machine("web").await;
        (now.state == MachineState::Started && now.epoch == Epoch(2)).then_some(now)
    })
    .await;
    assert_eq!(up.host.unwrap().as_str(), "hosta");
    assert_eq!(fleet.host("hostb").state(&machine.id), None, "nothing is left at the destination");
    swept(&fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_lost_after_the_hand_over_costs_the_memory_not_the_machine() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").inside().stall = Some(Stall::AfterHandOver);
    let begun = fleet.migrate("web", Some("hostb")).await.unwrap();
    eventually("it handed over", || async {
        let state = fleet.host("hosta").state(&machine.id)?;
        (state.1 == LocalState::HandedOver).then_some(())
    })
    .await;
    {
        let host = fleet.host("hostb");
        let mut inside = host.inside();
        inside.machines.remove(&machine.id);
        for migration in inside.migrations.values_mut() {
            migration.state = LocalMigrationState::Failed;
            migration.error = Some("the monitor was killed".to_owned());
        }
    }
    let over = fleet.over(begun.id.as_str()).await;
    if over.step == MigrationStep::Lost {
        let up = eventually("it runs again at the source", || async {
            let now = fleet.machine("web").await;
            (now.state == MachineState::Started).then_some(now)
        })
        .await;
        assert_eq!(
            (up.host.unwrap().as_str(), up.epoch),
            ("hosta", Epoch(3)),
            "the destination's epoch is used up"
        );
        assert_eq!(running(&fleet, &machine.id), ["hosta"]);
    } else {
        panic!("{over:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_can_be_cancelled_until_the_hand_over_and_only_one_is_made_at_a_time() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").inside().stall = Some(Stall::BeforeHandOver);
    let begun = fleet.migrate("web", None).await.unwrap();
    let second = fleet.migrate("web", None).await.unwrap_err();
    assert!(second.message().contains("is being moved already"), "{second}");
    fleet.post::<api::Migration>(&format!("/v1/migrations/{}/cancel", begun.id), json!({})).await.unwrap();
    let over = fleet.over(begun.id.as_str()).await;
    assert_eq!(over.step, MigrationStep::Failed);
    assert!(over.error.as_ref().unwrap().contains("it was cancelled"), "{over:?}");
    assert_eq!(running(&fleet, &machine.id), ["hosta"]);
    let late = fleet.post::<api::Migration>(&format!("/v1/migrations/{}/cancel", begun.id), json!({})).await;
    assert!(late.unwrap_err().message().contains("nothing to cancel"));
    swept(&fleet).await;
    fleet.host("hosta").inside().stall = None;
    let again = fleet.migrate("web", None).await.unwrap();
    assert_eq!(fleet.over(again.id.as_str()).await.step, MigrationStep::Completed, "the next one works");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_machine_that_is_being_moved_ends_the_move_first() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    let machine = fleet.started("web").await;
    fleet.host("hosta").inside().stall = Some(Stall::PreCopy);
    let begun = fleet.migrate("web", None).await.unwrap();
    fleet.post::<api::Done>(&format!("{MACHINES}/web/stop"), json!({})).await.unwrap();
    assert_eq!(fleet.over(begun.id.as_str()).await.step, MigrationStep::Failed);
    fleet.wait("web", "stopped").await;
    assert!(running(&fleet, &machine.id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_empties_the_host_and_tells_what_became_of_each() {
    let fleet = Fleet::up(&["hosta", "hostb"]).await;
    for name in ["one", "two", "three", "down"] {
        let body = json!({"name": name, "host": "hosta", "config": {"image": "container-os"}});
        fleet.post::<api::Machine>(MACHINES, body).await.unwrap();
        fleet.wait(name, "started").await;
    }
    fleet.post::<api::Done>(&format!("{MACHINES}/down/stop"), json!({})).await.unwrap();
    fleet.wait("down", "stopped").await;
    fleet.post::<api::Drain>("/v1/hosts/hosta/drain", json!({})).await.unwrap();
    let drain = eventually("the drain is done", || async {
        let drain: api::Drain = fleet.client.get("/v1/hosts/hosta/drain").await.ok()?;
        drain.done.then_some(drain)
    })
    .await;
    let outcome = |slug: &str| drain.machines.iter().find(|m| m.slug == slug).unwrap().outcome;
    for name in ["one", "two", "three"] {
        assert_eq!(outcome(name), DrainOutcome::Moved, "{drain:?}");
        assert_eq!(fleet.machine(name).await.host.unwrap().as_str(), "hostb");
    }
    assert_eq!(outcome("down"), DrainOutcome::NotRunning);
    let host: api::Host = fleet.client.get("/v1/hosts/hosta").await.unwrap();
    assert!(host.cordoned);
}
