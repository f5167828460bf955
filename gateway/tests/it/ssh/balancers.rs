//! Behind a load balancer that speaks the PROXY protocol.

use std::net::SocketAddr;

use crate::common::{Stage, finish};
use mashines_gateway::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A balancer whose clients all come from `client`.
async fn balancer(gateway: SocketAddr, client: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut onward = TcpStream::connect(gateway).await.unwrap();
                let header = format!("PROXY TCP4 {client} 192.0.2.1 5000 22\r\n");
                onward.write_all(header.as_bytes()).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn people_come_through_and_are_counted_by_their_own_address() {
    let limits = Limits { total: 100, per_source: 4, per_source_per_second: 100 };
    let mut stage = Stage::with(|config| {
        config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
        config.ssh_limits = limits;
    })
    .await;
    let gateway = stage.gateway;
    let (busy, calm) = (balancer(gateway, "198.51.100.7").await, balancer(gateway, "198.51.100.8").await);
    stage.gateway = calm;
    let output = finish(stage.ssh("ann", "web", "echo through"), b"").await;
    assert_eq!(output.text(), "through\n", "{output:?}");

    // One client takes all the places that a source has.
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = TcpStream::connect(busy).await.unwrap();
        let mut line = [0u8; 64];
        let length = stream.read(&mut line).await.unwrap();
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        if !line.starts_with("SSH-2.0-") {
            break line;
        }
        held.push(stream);
        assert!(held.len() <= 4, "a source holds more than its share");
    };
    assert!(refused.contains("your address"), "{refused}");
    let output = finish(stage.ssh("ann", "web", "echo still"), b"").await;
    assert_eq!(output.text(), "still\n", "another client has places of its own: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_without_a_header_gets_nowhere_and_a_header_of_anybody_else_neither() {
    let behind = Stage::with(|config| config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let output = finish(behind.ssh("ann", "web", "true"), b"").await;
    assert_eq!(output.code, Some(255), "{output:?}");
    let mut open = Stage::new().await;
    open.gateway = balancer(open.gateway, "198.51.100.7").await;
    let output = finish(open.ssh("ann", "web", "true"), b"").await;
    assert_eq!(output.code, Some(255), "a stranger says whose client it is: {output:?}");
}
