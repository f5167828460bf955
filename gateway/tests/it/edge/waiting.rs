//! Machines that are on their way up, stand still, fail their checks, or whose edge ends: who waits for how long, and what they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::clients::succeed;
use crate::common::edge::{EdgeStage, serve};
use crate::common::{finish, free_port};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn app() -> Router {
    Router::new().route("/", get(|| async { "web" }))
}

/// A server begins at a port that was closed.
async fn begin(port: u16) {
    let listener = TcpListener::bind(("::1", port)).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app()).await });
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_a_machine_that_starts_until_its_port_accepts() {
    let stage = EdgeStage::new().await;
    let port = free_port();
    stage.machine_with("web", port, |machine| machine["state"] = json!("starting")).await;
    let waiting: Vec<_> =
        (0..5).map(|_| tokio::spawn(succeed(stage.curl(&["https://web.mashine.dev/"]), b""))).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The record says that it is up; its server is not there yet.
    stage.machine("web", port).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(waiting.iter().all(|one| !one.is_finished()), "nobody is told anything before the port accepts");
    let begun = Instant::now();
    begin(port).await;
    for one in waiting {
        assert_eq!(one.await.unwrap().text(), "web");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_has_an_end_and_who_waits_hears_that_the_machine_failed() {
    let stage = EdgeStage::with(|config| config.edge.holds_per_machine = 3).await;
    let port = free_port();
    stage.machine_with("web", port, |machine| machine["state"] = json!("starting")).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..6 {
        waiting.spawn(finish(stage.curl(&["-i", "https://web.mashine.dev/"]), b""));
    }
    // Three have a place; the others hear at once that there is none.
    for _ in 0..3 {
        let full = waiting.join_next().await.unwrap().unwrap().text();
        let fine =
            full.contains(" 503") && full.contains("retry-after: 5") && full.contains("wait for machine web");
        assert!(fine, "{full}");
    }
    stage
        .machine_with("web", port, |machine| {
            machine["state"] = json!("failed");
            machine["reason"] = json!("its image is gone");
        })
        .await;
    while let Some(told) = waiting.join_next().await {
        let told = told.unwrap().text();
        assert!(told.contains(" 503") && told.contains("failed (its image is gone)"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stands_still_is_woken_once_its_owner_wants_that() {
    let asked = Arc::new(AtomicU32::new(0));
    let (calls, mut started) = tokio::sync::mpsc::unbounded_channel();
    let counter = Arc::clone(&asked);
    let start = post(move || async move {
        counter.fetch_add(1, Ordering::SeqCst);
        calls.send(()).unwrap();
        axum::Json(json!({}))
    });
    let control = Router::new().route("/v1/apps/web/machines/{id}/start", start);
    let stage = EdgeStage::with_control(control, |_| ()).await;
    let port = free_port();
    let sleeping = |autostart: bool| {
        move |machine: &mut Value| {
            machine["state"] = json!("stopped");
            machine["config"]["services"][0]["autostart"] = json!(autostart);
        }
    };
    stage.machine_with("web", port, sleeping(false)).await;
    let asleep = succeed(stage.curl(&["https://web.mashine.dev/"]), b"").await.text();
    assert!(asleep.contains("is stopped") && asked.load(Ordering::SeqCst) == 0, "{asleep}");
    stage.machine_with("web", port, sleeping(true)).await;
    let waiting: Vec<_> =
        (0..3).map(|_| tokio::spawn(succeed(stage.curl(&["https://web.mashine.dev/"]), b""))).collect();
    started.recv().await.unwrap();
    begin(port).await;
    stage.machine("web", port).await;
    for one in waiting {
        assert_eq!(one.await.unwrap().text(), "web");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_its_check_is_not_asked_until_it_passes_again() {
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    let up = move || {
        let well = told.load(Ordering::SeqCst);
        async move { if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR } }
    };
    let stage = EdgeStage::new().await;
    let port = serve(app().route("/up", get(up))).await;
    stage
        .machine_with("web", port, |machine| {
            machine["config"]["services"][0]["checks"] =
                json!([{"type": "http", "path": "/up", "interval": "100ms", "grace_period": "0s"}]);
        })
        .await;
    let status = async || succeed(stage.curl(&["https://web.mashine.dev/"]), b"").await.text();
    let becomes = async |wanted: &str| {
        for _ in 0..200 {
            let text = status().await;
            if text.contains(wanted) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it never says {wanted}");
    };
    assert_eq!(status().await, "web");
    well.store(false, Ordering::SeqCst);
    let text = becomes("fails its health check").await;
    assert!(text.contains("GET /up: 500") && text.contains("The machine is at fault"), "{text}");
    well.store(true, Ordering::SeqCst);
    becomes("web").await;
    while status().await != "web" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_ends_lets_requests_end_and_takes_no_new_ones() {
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let slow = move || {
        begun.send(()).unwrap();
        async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            "slow"
        }
    };
    let stage = EdgeStage::with(|config| config.drain_s = 10).await;
    stage.machine("web", serve(app().route("/slow", get(slow))).await).await;
    let mut idle = stage.tls("web.mashine.dev", &[b"http/1.1"]).await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: web.mashine.dev\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    let under_way: Vec<_> = ["--http1.1", "--http2"]
        .map(|option| tokio::spawn(succeed(stage.curl(&[option, "https://web.mashine.dev/slow"]), b"")))
        .into();
    for _ in &under_way {
        begins.recv().await.unwrap();
    }
    stage.stop();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a connection that rests ends at once");
    for one in under_way {
        assert_eq!(one.await.unwrap().text(), "slow");
    }
    assert_ne!(finish(stage.curl(&["https://web.mashine.dev/"]), b"").await.code, Some(0));
}
