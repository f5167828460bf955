//! Health checks from end to end: the real edge tries them, the real control shows what it found.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::support::people::People;
use crate::support::{MACHINES, eventually};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::StatusCode;
use mashines_fleet::api::{self, Check, CheckStatus};
use mashines_fleet::daemon::Common;
use mashines_fleet::entry_api::{CHECKS, CheckReport};
use mashines_fleet::pki::Identity;
use mashines_fleet::replica::{ReplicaConfig, follow};
use mashines_fleet::rpc::{Client, Empty};
use mashines_fleet::view::View;
use mashines_gateway::Doors;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The entry's edge on the loopback, where the machines of this fleet are too: the replica's view, but for their address.
async fn edge(people: &People, state: &std::path::Path) -> watch::Sender<bool> {
    let (mut views, following) = follow(ReplicaConfig {
        control: vec![people.fleet.url.clone()],
        tls: people.entry.clone(),
        file: state.join("replica.json"),
    });
    let (here, view) = watch::channel(Arc::new(View::default()));
    tokio::spawn(async move {
        let _following = following;
        loop {
            let mut seen = View::clone(&views.borrow_and_update());
            for machine in seen.machines.values_mut() {
                Arc::make_mut(machine).net.ipv6 = Ipv6Addr::LOCALHOST;
            }
            here.send_replace(Arc::new(seen));
            if views.changed().await.is_err() {
                return;
            }
        }
    });
    let config = json!({
        "ssh_listen": [], "http_listen": [SocketAddr::from(([127, 0, 0, 1], 0))], "control": [people.fleet.url],
    });
    let (alive, shutdown) = watch::channel(false);
    let identity: Identity = people.entry.clone();
    let secret = watch::channel(None).1;
    let common = Common { state_dir: state.to_owned(), identity, view, secret, shutdown };
    let doors = Doors::open(&serde_json::from_value(config).unwrap(), &common).await.unwrap();
    tokio::spawn(doors.serve(common));
    alive
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_edge_finds_is_shown_at_the_machine_and_outlives_a_restart_of_control() {
    let mut people = People::up(&["hosta"]).await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (answer, answers) = watch::channel(StatusCode::OK);
    let up = |State(answers): State<watch::Receiver<StatusCode>>| async move { *answers.borrow() };
    let app = Router::new().route("/up", get(up)).with_state(answers);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let made = json!({"name": "web", "config": {
        "image": "container-os", "guest": {"memory_mb": 256},
        "services": [{"internal_port": port, "ports": [{"port": 80, "handlers": ["http"]}], "checks": [
            {"type": "http", "path": "/up", "interval": "1s", "grace_period": "1s"},
            {"type": "tcp", "port": 1, "interval": "1s", "grace_period": "1s"},
        ]}],
    }});
    people.of("bob").post::<_, api::Machine>(MACHINES, &made).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let _edge = edge(&people, state.path()).await;

    async fn shown(people: &People, status: CheckStatus) -> Vec<Check> {
        eventually("the check comes to that", || async {
            let path = format!("{MACHINES}/web");
            let machine: api::Machine = people.of("bob").get(&path).await.ok()?;
            let known = machine.checks.iter().all(|check| !check.updated_at.is_empty());
            (known
                && machine.checks.first()?.status == status
                && machine.checks[1].status == CheckStatus::Critical)
                .then_some(machine.checks)
        })
        .await
    }
    let passing = shown(&people, CheckStatus::Passing).await;
    assert_eq!(passing[0].name, format!("servicecheck-00-http-{port}"));
    assert_eq!(passing[0].output, "GET /up: 200 OK");
    assert_eq!(passing[1].name, "servicecheck-01-tcp-1");
    assert!(passing[1].output.contains("refused"), "{passing:?}");
    let listed: Vec<api::Machine> = people.of("bob").get(MACHINES).await.unwrap();
    assert_eq!(listed[0].checks[0], passing[0]);
    let before = people.of("bob").get::<api::Machine>(&format!("{MACHINES}/web")).await.unwrap();

    answer.send_replace(StatusCode::SERVICE_UNAVAILABLE);
    let critical = shown(&people, CheckStatus::Critical).await;
    assert_eq!(critical[0].output, "GET /up: 503 Service Unavailable");
    assert!(critical[0].updated_at >= passing[0].updated_at);
    let after = people.of("bob").get::<api::Machine>(&format!("{MACHINES}/web")).await.unwrap();
    assert_eq!(after.updated_at, before.updated_at, "no probe is a record");
    people.fleet.restart_control().await;
    let again = shown(&people, CheckStatus::Critical).await;
    assert_eq!(again, critical, "the entry tells all again");
    answer.send_replace(StatusCode::OK);
    shown(&people, CheckStatus::Passing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_entry_tells_of_checks() {
    let people = People::up(&[]).await;
    let report = CheckReport { whole: true, checks: vec![] };
    let to = |identity| Client::to_control(identity, &people.fleet.url).unwrap();
    to(&people.entry).post::<_, Empty>(CHECKS, &report).await.unwrap();
    let refused = to(&people.host).post::<_, Empty>(CHECKS, &report).await.unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::FORBIDDEN), "{refused}");
}
