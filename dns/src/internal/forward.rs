//! Questions that are not ours, to resolvers: over the transport they came by, one after the other until one answers.
//!
//! Each goes from a port of its own with an id of its own, and an answer counts when both and the question are right (RFC 5452).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::debug;

use crate::message::Header;

/// How long one resolver may take. A guest's own patience is five seconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The longest answer over UDP that is taken.
const LONGEST: usize = 4096;

/// The answer of the first resolver that has one.
pub async fn forward(
    packet: &[u8],
    question_end: usize,
    is_tcp: bool,
    resolvers: &[SocketAddr],
) -> Option<Vec<u8>> {
    for resolver in resolvers {
        let asked = match is_tcp {
            true => timeout(PATIENCE, over_tcp(packet, *resolver)).await,
            false => timeout(PATIENCE, over_udp(packet, question_end, *resolver)).await,
        };
        match asked {
            Ok(Ok(answer)) if answers(packet, question_end, &answer) => return Some(answer),
            Ok(Ok(_)) => debug!(%resolver, "answers something else than was asked"),
            Ok(Err(error)) => debug!(%resolver, %error, "forwarding a question"),
            Err(_) => debug!(%resolver, "does not answer in time"),
        }
    }
    None
}

/// The same question, answered. Ids are each transport's own matter.
fn answers(packet: &[u8], question_end: usize, answer: &[u8]) -> bool {
    let header = Header::read(answer).is_some_and(Header::is_response);
    header
        && packet.get(12..question_end).is_some_and(|question| answer.get(12..question_end) == Some(question))
}

fn with_id(packet: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(place) = packet.get_mut(..2) {
        place.copy_from_slice(&id);
    }
    packet
}

fn id_of(packet: &[u8]) -> [u8; 2] {
    packet.get(..2).and_then(|id| id.try_into().ok()).unwrap_or_default()
}

async fn over_udp(packet: &[u8], question_end: usize, resolver: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any = match resolver {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel then drops what comes from elsewhere.
    socket.connect(resolver).await?;
    let id = rand::random();
    socket.send(&with_id(packet, id)).await?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if id_of(answer) == id && answers(packet, question_end, answer) {
            return Ok(with_id(answer, id_of(packet)));
        }
    }
}

async fn over_tcp(packet: &[u8], resolver: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
