//! The two SSH libraries of Python through the gateway: Ansible and most scripts are made of them. What they ask is in `clients/*.py`.

use crate::common::Stage;
use crate::common::clients::{hearer, hearer_at, hurried, python, stay, succeed};
use tokio::io::AsyncReadExt as _;

async fn arguments(stage: &Stage) -> Vec<String> {
    let folder = stage.directory.path().display().to_string();
    hearer_at(&stage.path("heard"));
    vec![stage.port(), stage.path("ann").display().to_string(), folder, hearer().await.to_string()]
}

#[tokio::test(flavor = "multi_thread")]
async fn paramiko_runs_forwards_carries_files_and_agrees_on_post_quantum_keys() {
    let stage = Stage::with(hurried).await;
    let output = succeed(python("paramiko", "with_paramiko.py", &arguments(&stage).await).await, b"").await;
    assert_eq!(output.text(), "passed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncssh_runs_signals_forwards_and_carries_files() {
    let stage = Stage::with(hurried).await;
    let output = succeed(python("asyncssh", "with_asyncssh.py", &arguments(&stage).await).await, b"").await;
    assert_eq!(output.text(), "passed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_machine_and_its_exit_signal_comes_back() {
    let mut stage = Stage::with(hurried).await;
    stage.stop_sshd().await;
    let at = |name: &str| stage.path(name).display().to_string();
    let machine = [stage.machine_port.to_string(), at("machine_host_key"), at("ca.pub")];
    let mut machine = stay(python("asyncssh", "machine.py", &machine).await);
    let mut listens = [0u8; 8];
    machine.stdout.as_mut().unwrap().read_exact(&mut listens).await.unwrap();
    let client = python("asyncssh", "signals.py", &[stage.port(), at("ann")]).await;
    assert_eq!(succeed(client, b"").await.text(), "passed\n");
}
