//! The TCP and TLS side (RFC 7766, RFC 7858): framed questions, as many a connection as it likes, each with a deadline; connections are
//! limited in total and by source, and rest for less time when there are many.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::answer::{Asker, Authority, Moment, Transport, answer};
use crate::desk::Desk;
use crate::server::unix_time;
use crate::shares::{Share, Shares};

/// Connections at once, all listeners together.
pub const MAX_CONNECTIONS: usize = 8192;

/// Connections at once from one address (IPv6: one /64).
pub const MAX_PER_SOURCE: usize = 32;

/// A connection that has not finished its next question by then is closed (RFC 7766 §6.2.3 asks for some seconds).
pub const IDLE: Duration = Duration::from_secs(10);

/// The same while more than half of the places are taken: those who rest make room for those who ask.
const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(2);

/// A client that does not take its answers within this time is gone.
const SEND: Duration = Duration::from_secs(10);

/// A client that has not finished its TLS handshake by then is closed.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Questions read ahead, bytes: several small ones are answered by one write.
const READ_AHEAD: usize = 4096;

/// Answers collected before they are written, bytes.
const WRITE_AT: usize = 32_768;

/// Open connections by source, shared by all listeners.
#[derive(Debug, Clone)]
pub struct Places(Shares<IpAddr>);

impl Default for Places {
    fn default() -> Self {
        Self(Shares::new(MAX_CONNECTIONS, MAX_PER_SOURCE))
    }
}

/// What each connection needs.
#[derive(Clone)]
pub struct Service {
    /// What is true now.
    pub moments: watch::Receiver<Arc<Moment>>,
    /// What was configured.
    pub authority: Arc<Authority>,
    /// Who is connected.
    pub places: Places,
    /// Takes what is more than a question.
    pub desk: Desk,
}

/// Accepts on `listener` for ever; TLS where there is an acceptor.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, service: Service) -> io::Result<()> {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = service.places.take(peer) else {
            debug!(%peer, "too many DNS connections: this one is closed");
            continue;
        };
        let (service, tls) = (service.clone(), tls.clone());
        tokio::spawn(async move {
            if let Err(error) = welcome(stream, peer, tls, &service).await {
                debug!(%error, %peer, "DNS over a connection");
            }
            drop(place);
        });
    }
}

async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    service: &Service,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let address = peer.ip().to_canonical();
    match tls {
        None => converse(stream, address, Transport::Tcp, service).await,
        Some(tls) => {
            let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
            converse(stream, address, Transport::Tls, service).await
        }
    }
}

/// Answers in the order of the questions: each is made at once, so nothing is gained by another.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: IpAddr,
    transport: Transport,
    service: &Service,
) -> io::Result<()> {
    let mut read = Vec::with_capacity(READ_AHEAD);
    let (mut answers, mut reply) = (Vec::new(), Vec::new());
    loop {
        if timeout(service.places.idle(), fill(&mut stream, &mut read)).await??.is_none() {
            return Ok(());
        }
        while let Some(length) = framed(&read) {
            let moment = Arc::clone(&service.moments.borrow());
            let asker = Asker { address, transport, now: unix_time() };
            let question = read.get(2..length).unwrap_or_default();
            if service.desk.concerns(question, asker) {
                flush(&mut stream, &mut answers).await?;
                service.desk.serve(question, asker, &moment, &service.authority, &mut stream).await?;
                read.drain(..length);
                continue;
            }
            if answer(question, asker, &moment, &service.authority, &mut reply).is_none() {
                // Not a question: whoever sends this speaks something else.
                return Ok(());
            }
            let Ok(reply_length) = u16::try_from(reply.len()) else { return Ok(()) };
            answers.extend_from_slice(&reply_length.to_be_bytes());
            answers.extend_from_slice(&reply);
            read.drain(..length);
            if answers.len() >= WRITE_AT {
                flush(&mut stream, &mut answers).await?;
            }
        }
        flush(&mut stream, &mut answers).await?;
    }
}

async fn flush(stream: &mut (impl AsyncWrite + Unpin), answers: &mut Vec<u8>) -> io::Result<()> {
    timeout(SEND, async {
        stream.write_all(answers).await?;
        stream.flush().await
    })
    .await??;
    answers.clear();
    Ok(())
}

/// The length of the first question with its frame, when all of it is there.
fn framed(read: &[u8]) -> Option<usize> {
    let [high, low, ..] = *read else { return None };
    let length = usize::from(u16::from_be_bytes([high, low])) + 2;
    (read.len() >= length).then_some(length)
}

/// Reads until a question is whole; `None` at the end of the stream.
async fn fill(stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> io::Result<Option<()>> {
    let mut chunk = [0; READ_AHEAD];
    while framed(read).is_none() {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(None);
        }
        // At most one question of 64 KiB and a chunk: more is not read before it is answered.
        read.extend_from_slice(chunk.get(..length).unwrap_or_default());
    }
    Ok(Some(()))
}

impl Places {
    fn idle(&self) -> Duration {
        if self.0.taken() > MAX_CONNECTIONS / 2 { IDLE_WHEN_CROWDED } else { IDLE }
    }

    /// One connection's place among those allowed.
    fn take(&self, peer: SocketAddr) -> Option<Share<IpAddr>> {
        self.0.take(network_of(peer.ip()))
    }
}

/// A client of IPv6 owns a /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_connections() {
        let places = Places::default();
        let at = |host: u16| SocketAddr::new(IpAddr::V6([0x2001, 0xdb8, 0, 1, 0, 0, 0, host].into()), 1000);
        let held: Vec<_> = (0..100).filter_map(|n| places.take(at(n))).collect();
        assert_eq!(held.len(), MAX_PER_SOURCE);
        assert!(places.take(at(999)).is_none(), "another address of the same /64");
        assert!(places.take("192.0.2.1:5".parse().unwrap()).is_some());
        drop(held);
        assert_eq!(places.0.taken(), 0, "nothing is left of closed connections");
    }

    #[test]
    fn who_rests_makes_room_when_it_is_crowded() {
        let places = Places::default();
        assert_eq!(places.idle(), IDLE);
        let from = |n: u32| SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 1);
        let held: Vec<_> = (0..9000).filter_map(|n| places.take(from(n))).collect();
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert_eq!(places.idle(), IDLE_WHEN_CROWDED);
    }
}
