//! Who comes, where they came in, and what they begin to speak.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxied::{self, Balancers};

/// Clients that let the server speak first are rare, and of SSH's only.
const PATIENCE: Duration = Duration::from_secs(3);

/// Both ends of a connection, as the client sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Where the client is.
    pub peer: SocketAddr,
    /// The address that it connected to. A balancer that does not tell has its own connection's.
    pub at: IpAddr,
}

/// Both ends of an accepted connection: a load balancer's header is read, and believed.
///
/// # Errors
/// The connection is gone already, or a balancer sent no header.
pub async fn of(stream: &mut TcpStream, peer: SocketAddr, balancers: &Balancers) -> io::Result<Arrival> {
    let direct = Arrival { peer, at: stream.local_addr()?.ip() };
    if balancers.include(peer.ip()) { proxied::arrival(stream, direct).await } else { Ok(direct) }
}

/// What a client speaks, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// SSH: `SSH-2.0-…` (RFC 4253 §4.2).
    Ssh,
    /// TLS: a handshake record (RFC 8446 §5.1).
    Tls,
    /// Neither, for example HTTP without TLS.
    Other,
}

impl Speech {
    /// By the first byte. SSH's version line may be preceded by none from a client.
    pub fn of(first: u8) -> Self {
        match first {
            b'S' => Self::Ssh,
            0x16 => Self::Tls,
            _ => Self::Other,
        }
    }
}

/// What the client speaks; nothing is taken from the stream. Who waits for the server to begin speaks SSH.
///
/// # Errors
/// The client has gone.
pub async fn speech(stream: &TcpStream) -> io::Result<Speech> {
    let mut first = [0];
    match timeout(PATIENCE, stream.peek(&mut first)).await {
        Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Ok(_)) => Ok(Speech::of(first[0])),
        Ok(Err(error)) => Err(error),
        Err(_silent) => Ok(Speech::Ssh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells() {
        for (bytes, speech) in [
            (&b"SSH-2.0-OpenSSH_9.9"[..], Speech::Ssh),
            (b"\x16\x03\x01", Speech::Tls),
            (b"GET / HTTP/1.1", Speech::Other),
            (b"\0", Speech::Other),
        ] {
            assert_eq!(Speech::of(bytes[0]), speech, "{}", bytes.escape_ascii());
        }
    }
}
