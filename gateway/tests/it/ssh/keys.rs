//! Every kind of key enters that should, and no other.

use std::path::PathBuf;

use crate::common::clients::{Agent, hurried, succeed, tool};
use crate::common::{Stage, finish};
use tokio::process::Command;

/// OpenSSH's own stand-in for a FIDO token.
fn dummy_token() -> PathBuf {
    let path = PathBuf::from("/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so");
    assert!(path.exists(), "{} is not there: apt-get install openssh-tests", path.display());
    path
}

async fn make(stage: &Stage, name: &str, options: &[&str]) {
    let mut keygen = tool("ssh-keygen", "openssh-client");
    keygen.args(["-q", "-N", "", "-C", "", "-f"]).arg(stage.path(name)).args(options);
    keygen.env("SSH_SK_PROVIDER", dummy_token());
    succeed(keygen, b"").await;
}

fn enter(stage: &Stage, key: &str, options: &[&str]) -> Command {
    let token = format!("SecurityKeyProvider={}", dummy_token().display());
    let options = [&["-o", &token], options].concat();
    stage.ssh_with(key, "web", &options, &["echo in"])
}

/// ssh that shows the keys of an agent and no others.
fn with_agent(stage: &Stage, agent: &Agent) -> Command {
    let mut ssh = tool("ssh", "openssh-client");
    ssh.args(["-F", "none", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]);
    ssh.arg(format!("-oIdentityAgent={}", agent.socket.display()));
    ssh.args(["-oIdentityFile=none", "-p", &stage.port(), "web@127.0.0.1", "echo in"]);
    ssh
}

#[tokio::test(flavor = "multi_thread")]
async fn ed25519_ecdsa_rsa_and_fido_keys_enter() {
    let stage = Stage::with(hurried).await;
    let kinds: [(&str, &[&str]); 8] = [
        ("ed25519", &["-t", "ed25519"]),
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"]),
        ("ecdsa384", &["-t", "ecdsa", "-b", "384"]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa2048", &["-t", "rsa", "-b", "2048"]),
        ("rsa4096", &["-t", "rsa", "-b", "4096"]),
        ("ed25519-sk", &["-t", "ed25519-sk"]),
        ("ecdsa-sk", &["-t", "ecdsa-sk"]),
    ];
    futures_util::future::join_all(kinds.iter().map(|(name, options)| make(&stage, name, options))).await;
    stage.publish_keys(&kinds.map(|(name, _)| stage.public_key(name)));
    let entered = kinds.iter().map(|(name, _)| {
        let command = enter(&stage, name, &[]);
        async move { (name, succeed(command, b"").await) }
    });
    for (name, output) in futures_util::future::join_all(entered).await {
        assert_eq!(output.text(), "in\n", "{name}: {output:?}");
    }
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let only = format!("PubkeyAcceptedAlgorithms={algorithm}");
        assert_eq!(succeed(enter(&stage, "rsa2048", &["-o", &only]), b"").await.text(), "in\n");
    }
    // An agent signs as well as the client itself.
    let agent = Agent::with(&stage, &[stage.path("rsa2048")]).await;
    let ssh = with_agent(&stage, &agent);
    assert_eq!(succeed(ssh, b"").await.text(), "in\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn sha1_signatures_and_dsa_keys_do_not_enter() {
    let stage = Stage::with(hurried).await;
    make(&stage, "rsa", &["-t", "rsa", "-b", "2048"]).await;
    make(&stage, "dsa", &["-t", "dsa"]).await;
    stage.publish_keys(&["rsa", "dsa"].map(|name| stage.public_key(name)));
    let old = ["-o", "PubkeyAcceptedAlgorithms=ssh-rsa,ssh-dss"];
    for key in ["rsa", "dsa"] {
        let output = finish(enter(&stage, key, &old), b"").await;
        assert_eq!(output.code, Some(255), "{key}: {output:?}");
        assert!(output.out.is_empty());
    }
    assert_eq!(succeed(enter(&stage, "rsa", &[]), b"").await.text(), "in\n", "the same key with SHA-2");
}

/// An agent full of keys: the right one is found among the first, and beyond the limit the refusal is loud.
#[tokio::test(flavor = "multi_thread")]
async fn keys_by_the_dozen_find_their_door_and_by_the_hundred_are_refused_loudly() {
    let stage = Stage::with(hurried).await;
    let names: Vec<String> = (0..100).map(|n| format!("key{n}")).collect();
    for some in names.chunks(20) {
        let kind = ["-t", "ed25519"];
        futures_util::future::join_all(some.iter().map(|name| make(&stage, name, &kind))).await;
    }
    let mut few: Vec<PathBuf> = names[..12].iter().map(|name| stage.path(name)).collect();
    few.push(stage.path("ann"));
    let agent = Agent::with(&stage, &few).await;
    assert_eq!(succeed(with_agent(&stage, &agent), b"").await.text(), "in\n");
    let many: Vec<PathBuf> = names.iter().map(|name| stage.path(name)).collect();
    let agent = Agent::with(&stage, &many).await;
    let refused = finish(with_agent(&stage, &agent), b"").await;
    assert_eq!(refused.code, Some(255));
    assert!(refused.err.contains("Too many authentication attempts"), "{refused:?}");
    // It cost the gateway nothing that others would notice.
    assert_eq!(succeed(stage.ssh("ann", "web", "echo in"), b"").await.text(), "in\n");
}
