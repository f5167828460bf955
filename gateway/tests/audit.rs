//! What a stranger learns of the gateway's cryptography: `ssh-audit` finds nothing, post-quantum key exchange is offered and agreed on.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::clients::{hurried, python_module};
use common::{Stage, finish};
use russh::keys::PublicKeyOrCertificate;
use russh::{Preferred, client, kex};

/// ssh-audit with the limits that people get: its rate test is against them.
async fn audit(stage: &Stage, options: &[&str]) -> common::Output {
    let mut audit = python_module("ssh_audit").await;
    audit.args(["-n", "-p", &stage.port()]).args(options).arg("127.0.0.1");
    finish(audit, b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_audit_finds_nothing_at_level_warn_or_fail_and_no_way_for_dheat() {
    let stage = Stage::new().await;
    // 0: nothing to say; 2: warnings; 3: failures. The check of the connection rate (CVE-2002-20001) is one of its own.
    let report = audit(&stage, &[]).await;
    assert_eq!(report.code, Some(0), "{}", report.text());
    for bad in ["[warn]", "[fail]"] {
        assert!(!report.text().contains(bad), "{}", report.text());
    }
    assert!(report.text().contains("mlkem768x25519-sha256"), "{}", report.text());
    assert!(report.text().contains("ssh-audit 3.") || !report.text().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_opened_as_fast_as_dheat_wants_are_slowed_down() {
    let stage = Stage::new().await;
    let report = audit(&stage, &["--conn-rate-test=16"]).await;
    let text = report.text();
    let rate = text.lines().find_map(|line| {
        let (_, after) = line.split_once("connections/sec").map(|(before, after)| (after, before))?;
        after.split_whitespace().last()?.parse::<f64>().ok()
    });
    println!("{text}");
    assert!(rate.is_none_or(|rate| rate < 20.0), "{rate:?} connections a second: {text}");
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
