//! What the gateway asks of control: a certificate for machines, and the lobby's calls on behalf of an account.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::{Stage, finish};
use axum::extract::{Extension, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use mashines_fleet::rpc::Peer;
use serde_json::{Value, json};

/// Signs as control does, with `ssh-keygen`.
fn sign(directory: &Path, public_key: &str, terms: &[&str]) -> String {
    let file = directory.join("asked.pub");
    std::fs::write(&file, public_key).unwrap();
    let signed = std::process::Command::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(directory.join("ca"))
        .args(["-I", "gateway", "-V", "-1m:+1d"])
        .args(terms)
        .arg(&file)
        .status();
    assert!(signed.unwrap().success());
    std::fs::read_to_string(directory.join("asked-cert.pub")).unwrap()
}

fn certificates(directory: PathBuf, asked: Arc<AtomicU32>) -> Router {
    let certify = move |Extension(peer): Extension<Peer>, Json(body): Json<Value>| async move {
        assert_eq!(peer.name.unwrap().as_host().unwrap().as_str(), "entry1");
        // The first answer is an error: control is just starting.
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let certificate = sign(&directory, body["public_key"].as_str().unwrap(), &["-n", "root"]);
        Json(json!({ "certificate": certificate })).into_response()
    };
    Router::new().route("/internal/v1/ssh/certificates", post(certify))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_asked_for_kept_and_used_while_control_is_down() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let stage = Stage::with_control(move |directory| certificates(directory.to_owned(), count)).await;
    let output = finish(stage.ssh("ann", "web", "echo in"), b"").await;
    assert_eq!(output.text(), "in\n", "{output:?}");
    let stage = stage.restart_without_control().await;
    let output = finish(stage.ssh("ann", "web", "echo still in"), b"").await;
    assert_eq!(output.text(), "still in\n", "{output:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one refusal, one certificate, and no more until it is old");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_certificate_the_person_reads_why() {
    let refuse = || async { StatusCode::SERVICE_UNAVAILABLE };
    let stage = Stage::with_control(|_| Router::new().fallback(refuse)).await;
    let output = finish(stage.ssh("ann", "web", "true"), b"").await;
    assert_eq!(output.code, Some(255));
    assert!(output.err.contains("no valid certificate for machines"), "{output:?}");
}

async fn echo(request: Request) -> Response {
    let account = request.headers().get("x-mashines-account").unwrap().to_str().unwrap().to_owned();
    let entry = request.extensions().get::<Peer>().unwrap().name.clone().unwrap();
    let why = format!("{} {} for {account} by {}", request.method(), request.uri(), entry.as_str());
    (StatusCode::CONFLICT, Json(json!({"error": why, "status": "conflict"}))).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lobby_asks_for_the_account_of_the_key() {
    let stage = Stage::with_control(|_| Router::new().route("/v1/{*path}", any(echo))).await;
    for person in ["ann", "bob"] {
        let output = finish(stage.ssh(person, "lobby", "ls"), b"").await;
        let told = format!("GET /v1/machines for {person} by entry1.host.mashines.internal");
        assert!(output.err.contains(&told), "{output:?}");
        assert_eq!(output.code, Some(1), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_trusts_the_ca_is_asked_no_question() {
    let certify = |directory: &Path| {
        let directory = directory.to_owned();
        let sign = move |Json(body): Json<Value>| async move {
            let names = ["-h", "-n", "mashine.dev"];
            let certificate = sign(&directory, body["public_key"].as_str().unwrap(), &names);
            Json(json!({ "certificate": certificate }))
        };
        Router::new().route("/internal/v1/ssh/host-certificates", post(sign)).fallback(any(echo))
    };
    let stage = Stage::with_control(certify).await;
    let ca = std::fs::read_to_string(stage.path("ca.pub")).unwrap();
    let known = stage.path("known_hosts");
    std::fs::write(&known, format!("@cert-authority *.mashine.dev,mashine.dev {ca}")).unwrap();
    let lobby = |alias: &str| {
        let options = stage.options("ann").into_iter().map(|option| match option.as_str() {
            "StrictHostKeyChecking=no" => "StrictHostKeyChecking=yes".to_owned(),
            "UserKnownHostsFile=/dev/null" => format!("UserKnownHostsFile={}", known.display()),
            _ => option,
        });
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args(options).args(["-o", &format!("HostKeyAlias={alias}")]);
        ssh.args(["-p", &stage.gateway.port().to_string(), "lobby@127.0.0.1", "help"]);
        ssh
    };
    // The certificate comes a moment after the gateway.
    let mut code = None;
    for _ in 0..50 {
        code = finish(lobby("mashine.dev"), b"").await.code;
        if code == Some(0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(code, Some(0));
    let other = finish(lobby("web.mashine.dev"), b"").await;
    assert_eq!(other.code, Some(255), "the gateway is no machine: {other:?}");
    let stage = stage.restart_without_control().await;
    assert!(stage.path("gateway/host_key-cert.pub").exists());
}
