//! A browser (Chromium, without a screen) at the edge, with a certificate that it has to trust: a page over HTTP/2 whose script has a WebSocket, events, a
//! download and an upload under way while the machine moves.

use std::convert::Infallible;
use std::time::Duration;

use crate::common::clients::{noise, tool};
use crate::common::edge::{EdgeStage, serve};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// How long a browser may take to start and do all of it, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_does_all_that_pages_do_through_a_move() {
    let stage = EdgeStage::new().await;
    let big = Bytes::from(noise(8 << 20));
    let (tell, mut told) = mpsc::unbounded_channel();
    let port = serve(site(big.clone(), tell)).await;
    stage.machine("web", port).await;
    let home = tempfile::tempdir().unwrap();
    trust(&stage, home.path()).await;
    let mut chromium = tool("chromium", "chromium");
    chromium.env("HOME", home.path()).args([
        "--headless=new",
        // It runs as root here, in a machine that is thrown away.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]);
    chromium.arg(format!("--user-data-dir={}", home.path().join("profile").display()));
    chromium.arg(format!("--host-resolver-rules=MAP web.mashine.dev:443 {}, MAP * ~NOTFOUND", stage.https));
    chromium.arg("https://web.mashine.dev/");
    let mut running = chromium.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(next().await, json!("socket"), "the page is there and talks");
    // The machine is at another host.
    stage
        .machine_with("web", port, |machine| {
            machine["place"] = json!({"host": "host2", "epoch": 2});
            machine["updated_at"] = json!(2);
        })
        .await;
    let seen = next().await;
    running.kill().await.unwrap();
    let digest = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &big));
    let wanted = json!({"socket": 40, "events": 40, "download": digest, "upload": true, "protocol": "h2"});
    assert_eq!(seen, wanted);
}

/// Has whoever's home that is trust the CA, as NSS keeps it and Chromium reads it.
async fn trust(stage: &EdgeStage, home: &std::path::Path) {
    let store = home.join(".pki/nssdb");
    std::fs::create_dir_all(&store).unwrap();
    let store = format!("sql:{}", store.display());
    let ca = stage.path("ca.pem");
    for words in
        [&["-N", "--empty-password"][..], &["-A", "-t", "C,,", "-n", "test", "-i", ca.to_str().unwrap()]]
    {
        let done = tool("certutil", "libnss3-tools").args(["-d", &store]).args(words).status().await.unwrap();
        assert!(done.success(), "certutil {words:?}");
    }
}

/// What runs in the machine.
fn site(big: Bytes, tell: mpsc::UnboundedSender<Value>) -> Router {
    let tell_begin = tell.clone();
    Router::new()
        .route("/", get(|| async { Html(include_str!("../../clients/browser.html")) }))
        .route("/favicon.ico", get(|| async { StatusCode::NOT_FOUND }))
        .route("/socket", get(move |request: Request| socket(request, tell_begin.clone())))
        .route("/events", get(events))
        .route("/big", get(move || std::future::ready(big.clone())))
        .route(
            "/hash",
            post(|body: Bytes| async move {
                hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body))
            }),
        )
        .route(
            "/seen",
            post(move |body: Bytes| {
                tell.send(serde_json::from_slice(&body).unwrap()).unwrap();
                async {}
            }),
        )
}

/// Each message back; tells when the fifth has come.
async fn socket(mut request: Request, tell: mpsc::UnboundedSender<Value>) -> Response {
    let key = derive_accept_key(request.headers()[SEC_WEBSOCKET_KEY].as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgraded.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let mut messages = 0;
        while let Some(Ok(message)) = socket.next().await {
            messages += 1;
            if messages == 5 {
                tell.send(json!("socket")).unwrap();
            }
            if message.is_text() {
                let _gone = socket.send(message).await;
            }
        }
    });
    let headers =
        [(CONNECTION, "upgrade".to_owned()), (UPGRADE, "websocket".to_owned()), (SEC_WEBSOCKET_ACCEPT, key)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Forty events in two seconds.
async fn events() -> Response {
    let events = futures_util::stream::iter(0..40).then(|number| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, Infallible>(Bytes::from(format!("data: {number}\n\n")))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}
