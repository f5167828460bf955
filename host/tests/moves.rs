//! Both sides of a move, with monitors that have no machine.

// Helpers of tests: a failed unwrap is a failed test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;

use mashines_fleet::host_api::{
    Incoming, LocalMigration, LocalMigrationState as Stands, LocalState, Outgoing,
};
use mashines_fleet::id::{Epoch, MigrationId};
use mashines_host::error::Result;
use mashines_host::host::Host;
use support::{Box, daemon, id, kill, pid, run, spec, state, until, until_state};

struct Pair {
    a: Arc<Host>,
    b: Arc<Host>,
    id: MigrationId,
}

/// A machine runs at `a`, and `b` waits for it. The source holds at `hold` until the test lets go.
async fn pair(home_a: &Box, home_b: &Box, hold: Option<&str>) -> Pair {
    let (a, b) = (home_a.host().await, home_b.host().await);
    run(&a, 1).await.unwrap();
    until_state(&a, LocalState::Ready).await;
    if let Some(phase) = hold {
        std::fs::write(hold_file(home_a, phase), "").unwrap();
    }
    home_a.asked();
    let pair = Pair { a, b, id: MigrationId::generate() };
    pair.go().await.unwrap();
    pair
}

fn hold_file(home: &Box, phase: &str) -> std::path::PathBuf {
    home.machine_dir().join(format!("run-1/hold-{phase}"))
}

impl Pair {
    async fn go(&self) -> Result<LocalMigration> {
        let incoming = Incoming { machine: spec(), epoch: Epoch(2), source: "a".parse().unwrap() };
        let first = self.b.incoming(&self.id, incoming.clone()).await?;
        // Control repeats a call until it hears an answer.
        assert_eq!(self.b.incoming(&self.id, incoming).await?.address, first.address);
        let outgoing = Outgoing {
            machine: id(),
            epoch: Epoch(1),
            destination: "b".parse().unwrap(),
            address: first.address,
            budget_ms: 20,
            timeout_ms: 1000,
        };
        self.a.outgoing(&self.id, outgoing.clone()).await?;
        self.a.outgoing(&self.id, outgoing).await
    }

    async fn stands(&self) -> (Stands, Stands) {
        let at = |host: Arc<Host>| async move { host.migration(&self.id).await.unwrap().state };
        (at(Arc::clone(&self.a)).await, at(Arc::clone(&self.b)).await)
    }

    async fn until_stands(&self, a: Stands, b: Stands) {
        for _ in 0..500 {
            if self.stands().await == (a, b) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the sides stand at {:?}", self.stands().await);
    }
}

#[test]
fn a_machine_moves_and_its_source_keeps_nothing_but_the_redirect() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    daemon(async {
        let pair = pair(&home_a, &home_b, None).await;
        pair.until_stands(Stands::HandedOver, Stands::Running).await;
        until_state(&pair.b, LocalState::Ready).await;
        until_state(&pair.a, LocalState::HandedOver).await;
        let figures = pair.a.migration(&pair.id).await.unwrap().figures.unwrap();
        assert_eq!(figures["blackout_us"], 4000);
        pair.a.finish(&pair.id).await.unwrap();
        pair.a.finish(&pair.id).await.unwrap();
        pair.b.finish(&pair.id).await.unwrap();
        assert!(home_a.leftovers().is_empty(), "{:?}", home_a.leftovers());
        let asked = home_a.asked();
        assert_eq!(asked.first().map(String::as_str), Some("redirect"));
        assert_eq!(asked.last().map(String::as_str), Some("remove"));
        assert_eq!(&home_b.asked()[..3], ["prepare", "activate", "announce"]);
        // Neither its own epoch nor the destination's starts at the source.
        assert!(run(&pair.a, 1).await.is_err() && run(&pair.a, 2).await.is_err());
        pair.b.remove(&id(), Epoch(2)).await.unwrap();
    });
}

#[test]
fn a_cancelled_move_leaves_the_source_running_and_nothing_at_the_destination() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    daemon(async {
        let pair = pair(&home_a, &home_b, Some("pre-copy")).await;
        assert_eq!(pair.a.cancel(&pair.id).await.unwrap().state, Stands::Failed);
        let gone = pair.b.cancel(&pair.id).await.unwrap();
        assert_eq!(gone.state, Stands::Failed);
        assert!(gone.error.is_some());
        assert_eq!((state(&pair.a), state(&pair.b)), (Some(LocalState::Ready), None));
        pair.b.finish(&pair.id).await.unwrap();
        assert!(home_b.leftovers().is_empty(), "{:?}", home_b.leftovers());
        assert_eq!(home_b.asked().last().map(String::as_str), Some("remove"));
        // The next one works.
        std::fs::remove_file(hold_file(&home_a, "pre-copy")).unwrap();
        let next = Pair { id: MigrationId::generate(), ..pair };
        next.go().await.unwrap();
        next.until_stands(Stands::HandedOver, Stands::Running).await;
        next.a.finish(&next.id).await.unwrap();
        next.b.remove(&id(), Epoch(2)).await.unwrap();
    });
}

#[test]
fn a_destination_that_dies_is_cleared_away_and_the_source_runs_on() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    daemon(async {
        let pair = pair(&home_a, &home_b, Some("pre-copy")).await;
        kill(pid(&pair.b));
        until("the destination is cleared", || state(&pair.b).is_none()).await;
        std::fs::remove_file(hold_file(&home_a, "pre-copy")).unwrap();
        pair.until_stands(Stands::Failed, Stands::Failed).await;
        assert_eq!(state(&pair.a), Some(LocalState::Ready));
        pair.b.finish(&pair.id).await.unwrap();
        assert!(home_b.leftovers().is_empty(), "{:?}", home_b.leftovers());
        pair.a.remove(&id(), Epoch(1)).await.unwrap();
    });
}

#[test]
fn a_source_that_dies_before_the_hand_over_is_crashed_and_the_destination_takes_the_verdict() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    daemon(async {
        let pair = pair(&home_a, &home_b, Some("handed-over")).await;
        pair.until_stands(Stands::Active, Stands::Prepared).await;
        kill(pid(&pair.a));
        until_state(&pair.a, LocalState::Crashed).await;
        pair.until_stands(Stands::Failed, Stands::Prepared).await;
        assert_eq!(pair.b.resolve(&pair.id, false).await.unwrap().state, Stands::Failed);
        assert_eq!(state(&pair.b), None);
        run(&pair.a, 3).await.unwrap();
        until_state(&pair.a, LocalState::Ready).await;
        pair.a.remove(&id(), Epoch(3)).await.unwrap();
    });
}

#[test]
fn a_destination_in_doubt_runs_by_the_authoritys_word() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    daemon(async {
        let pair = pair(&home_a, &home_b, Some("handed-over")).await;
        pair.until_stands(Stands::Active, Stands::Prepared).await;
        kill(pid(&pair.a));
        assert_eq!(pair.b.resolve(&pair.id, true).await.unwrap().state, Stands::Running);
        until_state(&pair.b, LocalState::Ready).await;
        pair.b.remove(&id(), Epoch(2)).await.unwrap();
        pair.a.remove(&id(), Epoch(1)).await.unwrap();
    });
}

#[test]
fn a_hand_over_is_known_after_daemon_and_monitor_died() {
    let (home_a, home_b) = (Box::new("a"), Box::new("b"));
    let (move_id, source) = daemon(async {
        let pair = pair(&home_a, &home_b, None).await;
        pair.until_stands(Stands::HandedOver, Stands::Running).await;
        (pair.id.clone(), pid(&pair.a))
    });
    kill(source);
    // As if the daemon had died before it saw the hand-over itself.
    forget_what_was_seen(&home_a.machine_dir().join("instance.json"), "phase", "ready");
    forget_what_was_seen(&home_a.state().join(format!("migrations/{move_id}.json")), "state", "active");
    daemon(async {
        let (a, b) = (home_a.host().await, home_b.host().await);
        assert_eq!(state(&a), Some(LocalState::HandedOver));
        assert_eq!(a.migration(&move_id).await.unwrap().state, Stands::HandedOver);
        assert_eq!(b.migration(&move_id).await.unwrap().state, Stands::Running);
        assert!(home_a.asked().contains(&"redirect".to_owned()));
        assert!(run(&a, 2).await.is_err());
        a.finish(&move_id).await.unwrap();
        assert!(home_a.leftovers().is_empty());
        b.remove(&id(), Epoch(2)).await.unwrap();
    });
}

fn forget_what_was_seen(path: &Path, key: &str, value: &str) {
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    record[key] = value.into();
    std::fs::write(path, record.to_string()).unwrap();
}
