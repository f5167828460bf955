//! The ways in beside the user name: an address shared between accounts, port 443, a machine that stands still.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Stage, account, finish, machine};
use axum::Router;
use axum::routing::post;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;

/// `ssh` to the gateway by another of its addresses.
fn ssh_at(stage: &Stage, key: &str, user: &str, at: &str, command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(stage.options(key)).args(["-p", &stage.gateway.port().to_string()]);
    ssh.args([&format!("{user}@{at}"), command]).kill_on_drop(true);
    ssh
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_an_address_name_a_machine() {
    let stage = Stage::with(|config| config.ssh_listen = vec!["0.0.0.0:0".parse().unwrap()]).await;
    let at = |id, slug: &str, owner: &str, address: &str| {
        let mut machine = machine(id, slug, owner, Ipv6Addr::LOCALHOST, "started");
        machine.value.as_mut().unwrap()["net"]["entry_ipv4"] = json!(address);
        machine
    };
    let mut shared = at(6, "lent", "bob", "127.0.0.3");
    shared.value.as_mut().unwrap()["shares"] = json!([{"account": "ann", "role": "operator"}]);
    let mut team = account("team", &[]);
    team.value.as_mut().unwrap()["members"] = json!({"bob": "operator"});
    let more = vec![
        at(1, "web", "ann", "127.0.0.2"),
        at(4, "db", "ann", "127.0.0.4"),
        at(5, "site", "bob", "127.0.0.2"),
        shared,
        team,
        at(7, "joint", "team", "127.0.0.4"),
    ];
    stage.publish_more(|_| (), more);
    // Which machine it is shows in its name alone, since one sshd plays them all.
    let enters = async |key: &str, address: &str| {
        let output = finish(ssh_at(&stage, key, "root", address, "echo in"), b"").await;
        if output.text() == "in\n" { "in".to_owned() } else { output.err }
    };
    for (key, address) in [
        ("ann", "127.0.0.2"),
        ("bob", "127.0.0.2"),
        ("ann", "127.0.0.3"),
        ("ann", "127.0.0.4"),
        ("bob", "127.0.0.4"),
    ] {
        assert_eq!(enters(key, address).await, "in", "{key} at {address}");
    }
    let lost = finish(ssh_at(&stage, "bob", "root", "127.0.0.1", "ls"), b"").await;
    assert!(
        lost.err.contains("names no address of control"),
        "at no shared address it is the lobby: {lost:?}"
    );
    // A member of a team that has a machine at the address of one's own has to say which.
    let site = at(5, "site", "bob", "127.0.0.4");
    let team = {
        let mut team = account("team", &[]);
        team.value.as_mut().unwrap()["members"] = json!({"bob": "operator"});
        team
    };
    stage.publish_more(|_| (), vec![site, team, at(7, "joint", "team", "127.0.0.4")]);
    let why = enters("bob", "127.0.0.4").await;
    assert!(
        why.contains("the address of site and of joint") && why.contains("ssh site@mashine.dev"),
        "{why}"
    );
    let why = enters("ann", "127.0.0.4").await;
    assert!(why.contains("none of your machines is at 127.0.0.4"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_passes_where_only_port_443_is_open() {
    let stage = Stage::with(|config| {
        config.tls_listen = vec![SocketAddr::from(([127, 0, 0, 1], crate::common::free_port()))];
    })
    .await;
    let port = stage.every_address[1].port();
    let mut ssh = Command::new("ssh");
    ssh.args(stage.options("ann")).args(["-p", &port.to_string(), "web@127.0.0.1", "echo in"]);
    assert_eq!(finish(ssh, b"").await.text(), "in\n");

    // A client that waits for the server to speak first.
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut version = [0; 8];
    silent.read_exact(&mut version).await.unwrap();
    assert_eq!(&version, b"SSH-2.0-");

    let heard = async |said: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        let _reset = stream.read_to_end(&mut heard).await;
        heard
    };
    // What TLS and HTTP do here is in edge_tls.rs and edge_http.rs.
    assert_eq!(heard(b"\x16\x03\x01\0\x04\x02\0\0\0").await.first(), Some(&0x15), "a TLS alert");
    let told = String::from_utf8(heard(b"GET / HTTP/1.1\r\n\r\n").await).unwrap();
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stands_still_starts_for_whoever_comes() {
    let asked = Arc::new(AtomicU32::new(0));
    let (calls, mut started) = mpsc::unbounded_channel();
    let counter = Arc::clone(&asked);
    let stage = Stage::with_control(|directory| {
        let start = post(move || async move {
            counter.fetch_add(1, Ordering::SeqCst);
            calls.send(()).unwrap();
            axum::Json(json!({}))
        });
        Router::new()
            .route("/v1/apps/web/machines/00000000000001/start", start)
            .merge(crate::common::certificates(directory))
    })
    .await;
    let sleeping = |machine: &mut serde_json::Value, state: &str| {
        machine["state"] = json!(state);
        machine["config"]["autostart"] = json!(true);
    };
    stage.publish_with(|web| sleeping(web, "stopped"));
    let begun = Instant::now();
    let commands = tokio::join!(
        finish(stage.ssh("ann", "web", "cat"), b"one"),
        finish(stage.ssh("ann", "web", "echo two"), b""),
        finish(stage.ssh_with("ann", "web", &["-tt"], &["echo three"]), b""),
        async {
            started.recv().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            stage.publish_with(|web| sleeping(web, "started"));
        },
    );
    let (one, two, three, ()) = commands;
    assert!(begun.elapsed() > Duration::from_secs(3), "it was waited for");
    assert_eq!(
        (one.text().as_str(), one.err.as_str()),
        ("one", ""),
        "nothing is said into a program's session"
    );
    assert_eq!((two.text().as_str(), two.err.as_str()), ("two\n", ""));
    assert!(three.err.contains("waiting for machine web to start"), "{three:?}");
    assert!(asked.load(Ordering::SeqCst) <= 6, "each asks once, and once more after a while");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_start_says_so() {
    let stage = Stage::with(|_| ()).await;
    stage.publish_with(|machine| {
        machine["state"] = json!("stopped");
        machine["config"]["autostart"] = json!(true);
    });
    let coming = stage.ssh("ann", "web", "true");
    let failing = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        stage.publish_with(|machine| {
            machine["state"] = json!("failed");
            machine["reason"] = json!("its image is gone");
        });
    };
    let (output, ()) = tokio::join!(finish(coming, b""), failing);
    assert_eq!(output.code, Some(255));
    assert!(
        output.err.contains("failed (its image is gone)")
            || output.err.contains("did not start: its image is gone"),
        "{output:?}"
    );
}
