//! Who proves no key: cut off in time, limited, told why.

use std::time::{Duration, Instant};

use crate::common::{Stage, finish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut read));
    let _reset_counts_too = closed.await.expect("the connection stays open");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_slow_connections_end_with_the_grace() {
    let stage = Stage::with(|config| config.login_grace_s = 2).await;
    let since = Instant::now();
    let mut silent = TcpStream::connect(stage.gateway).await.unwrap();
    let mut halfway = TcpStream::connect(stage.gateway).await.unwrap();
    halfway.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
    let (one, two) = tokio::join!(until_closed(&mut silent), until_closed(&mut halfway));
    assert!(since.elapsed() >= Duration::from_secs(2) && since.elapsed() < Duration::from_secs(8));
    assert!(one.starts_with("SSH-2.0-mashines") && two.starts_with("SSH-2.0-mashines"));
    // Whoever proved a key in time stays.
    let output = finish(stage.ssh("ann", "web", "sleep 4; echo stayed"), b"").await;
    assert_eq!(output.text(), "stayed\n", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_keep_others_out_and_are_told_why_they_are_turned_away() {
    let stage = Stage::with(|config| {
        config.ssh_limits.per_source = 16;
        config.ssh_limits.per_source_per_second = 100;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(stage.gateway).await.unwrap();
        let mut version = [0u8; 7];
        stream.read_exact(&mut version).await.unwrap();
        held.push(stream);
    }
    let mut fifth = TcpStream::connect(stage.gateway).await.unwrap();
    let told = until_closed(&mut fifth).await;
    assert!(told.contains("your address holds 4 connections"), "{told}");
    drop(held);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let output = finish(stage.ssh("ann", "web", "echo in"), b"").await;
    assert_eq!(output.text(), "in\n", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_ssh_or_an_old_one_is_not_kept() {
    let stage = Stage::new().await;
    for line in ["SSH-1.5-ancient\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0\r\n", "\0\0\0\x7f"] {
        let mut stream = TcpStream::connect(stage.gateway).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(until_closed(&mut stream).await.starts_with("SSH-2.0-mashines"), "{line:?}");
    }
    assert_eq!(finish(stage.ssh("ann", "web", "echo in"), b"").await.text(), "in\n");
}
