//! Shared ports: `ssh -p PORT root@entry` is spliced to the machine's own sshd, and the ports follow the replica.

use std::time::Duration;

use crate::common::{Stage, finish};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

async fn connect(port: u16) -> Option<TcpStream> {
    for _ in 0..100 {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            return Some(stream);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

fn spliced(stage: &Stage, port: u16, command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(stage.options("ann")).args(["-p", &port.to_string(), "root@127.0.0.1", command]);
    ssh
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_port_leads_to_the_machine_and_goes_with_it() {
    let stage = Stage::with(|config| config.ports_bind = vec!["127.0.0.1".parse().unwrap()]).await;
    let port = crate::common::free_port();
    stage.publish(Some(port));
    assert!(connect(port).await.is_some(), "the port opens when the record comes");
    let output = finish(spliced(&stage, port, "cat; exit 3"), &vec![7; 10_000_000]).await;
    assert_eq!(output.code, Some(3), "{}", output.err);
    assert!(output.out == vec![7; 10_000_000]);
    stage.publish(None);
    for _ in 0..100 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the port stays open although no machine has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_its_ports_record() {
    let stage = Stage::with(|config| config.ports_bind = vec!["127.0.0.1".parse().unwrap()]).await;
    let port = crate::common::free_port();
    stage.publish(Some(port));
    assert!(connect(port).await.is_some());
    let begun = stage.path("begun");
    let command = spliced(&stage, port, &format!("touch {}; sleep 2; echo still here", begun.display()));
    let running = tokio::spawn(finish(command, b""));
    while !begun.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.publish(None);
    let output = running.await.unwrap();
    assert_eq!(output.text(), "still here\n", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_is_limited_and_told_so() {
    let stage = Stage::with(|config| {
        config.ports_bind = vec!["127.0.0.1".parse().unwrap()];
        config.port_limits.per_source = 3;
    })
    .await;
    let port = crate::common::free_port();
    stage.publish(Some(port));
    let mut held = Vec::new();
    let told = loop {
        let mut stream = connect(port).await.unwrap();
        let mut line = [0u8; 512];
        let length = stream.read(&mut line).await.unwrap();
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        if !line.starts_with("SSH-2.0") {
            break line;
        }
        held.push(stream);
    };
    assert_eq!(held.len(), 3);
    assert!(told.contains("your address holds 3 connections"), "{told}");
}
