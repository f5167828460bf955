//! What a stranger learns of the gateway's cryptography: `ssh-audit` finds nothing, post-quantum key exchange is offered and agreed on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::clients::{hurried, python_module};
use crate::common::{Stage, finish};
use russh::keys::PublicKeyOrCertificate;
use russh::{Preferred, client, kex};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What ssh-audit has against curve25519. Without it nobody with a client older than the year 2025 would come in; clients that know better
/// agree on better, since it is first.
const OLDER_CLIENTS: &str = "does not provide protection against post-quantum attacks";

/// With the limits that people get: part of the audit is whether connections can be opened as fast as the DHEat attack (CVE-2002-20001)
/// wants.
#[tokio::test(flavor = "multi_thread")]
async fn ssh_audit_finds_nothing_but_a_fallback_for_older_clients() {
    let stage = Stage::new().await;
    let mut audit = python_module("ssh_audit").await;
    audit.args(["-n", "-p", &stage.port(), "127.0.0.1"]);
    let report = finish(audit, b"").await.text();
    let found = report.lines().filter(|line| line.contains("[warn]") || line.contains("[fail]"));
    let found: Vec<&str> = found.filter(|line| !line.contains(OLDER_CLIENTS)).collect();
    assert!(found.is_empty(), "{found:#?} in\n{report}");
    assert!(!report.contains("DHEat"), "{report}");
    let first = report.lines().find(|line| line.starts_with("(kex)")).unwrap();
    assert!(first.contains("mlkem768x25519-sha256") && !first.contains("[warn]"), "{report}");
}

/// Who wants no fallback gets none: then there is nothing at all, and clients of before OpenSSH 9.9 do not come in.
#[tokio::test(flavor = "multi_thread")]
async fn ssh_audit_finds_nothing_where_post_quantum_key_exchange_is_a_must() {
    let stage = Stage::with(|config| config.post_quantum_only = true).await;
    let mut audit = python_module("ssh_audit").await;
    audit.args(["-n", "-p", &stage.port(), "127.0.0.1"]);
    let report = finish(audit, b"").await.text();
    assert!(report.contains("mlkem768x25519-sha256") && !report.contains("DHEat"), "{report}");
    let found: Vec<&str> =
        report.lines().filter(|line| line.contains("[warn]") || line.contains("[fail]")).collect();
    assert!(found.is_empty(), "{found:#?} in\n{report}");
    let mut old = stage.ssh("ann", "web", "true");
    old.args(["-o", "KexAlgorithms=curve25519-sha256"]);
    assert_eq!(finish(old, b"").await.code, Some(255), "it comes in all the same");
}

/// Those who come too fast are greeted later, and none of them is lost; those who log in come as fast as they like.
#[tokio::test(flavor = "multi_thread")]
async fn greetings_are_slowed_down_and_logins_are_not() {
    let stage = Stage::new().await;
    let begun = Instant::now();
    let greeted = (0..24).map(|_| async {
        let mut stream = TcpStream::connect(stage.gateway).await.unwrap();
        let mut version = [0u8; 7];
        stream.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"SSH-2.0");
    });
    futures_util::future::join_all(greeted).await;
    assert!(begun.elapsed() > Duration::from_millis(900), "8 above the burst of 16, 8 a second");
    let stage = Stage::new().await;
    let begun = Instant::now();
    for _ in 0..30 {
        assert_eq!(finish(stage.ssh("ann", "web", "true"), b"").await.code, Some(0));
    }
    println!("30 commands one after another: {:?}", begun.elapsed());
}

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// The offer of OpenSSH 9.9 and later: `mlkem768x25519-sha256` and nothing older. paramiko and asyncssh agree on it in `python.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn post_quantum_keys_are_agreed_on() {
    let stage = Stage::with(hurried).await;
    let preferred = Preferred {
        kex: [kex::MLKEM768X25519_SHA256, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT].to_vec().into(),
        ..Preferred::DEFAULT
    };
    let config = Arc::new(client::Config { preferred, ..client::Config::default() });
    let mut handle = client::connect(config, stage.gateway, Anyone).await.unwrap();
    let key = russh::keys::load_secret_key(stage.path("ann"), None).unwrap();
    let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(handle.authenticate_publickey("web", key).await.unwrap().success());
}
