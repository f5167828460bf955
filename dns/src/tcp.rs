//! The TCP side (RFC 7766): framed questions, several a connection, each with a deadline, connections limited in total and by source.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::answer::{Transport, answer};
use crate::zone::Zone;

/// Connections at once.
const MAX_CONNECTIONS: usize = 512;

/// Connections at once from one address (IPv6: one /64).
const MAX_PER_SOURCE: usize = 16;

/// A connection that has not finished its next question by then is closed (RFC 7766 §6.2.3 asks for some seconds).
const IDLE: Duration = Duration::from_secs(10);

/// A client that does not take its answer within this time is gone.
const SEND: Duration = Duration::from_secs(10);

/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Open connections by source.
type Sources = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Accepts on `listener` for ever.
pub async fn serve(listener: TcpListener, zone: watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    let sources = Sources::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = Slot::take(&sources, peer) else {
            debug!(%peer, "too many DNS connections: this one is closed");
            continue;
        };
        let zone = zone.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, zone).await {
                debug!(%error, %peer, "DNS over TCP");
            }
            drop(slot);
        });
    }
}

async fn converse(mut stream: TcpStream, zone: watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let Some(question) = timeout(IDLE, read_question(&mut stream)).await?? else { return Ok(()) };
        let current = Arc::clone(&zone.borrow());
        let Some(reply) = answer(&question, &current, Transport::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(SEND, stream.write_all(&framed)).await??;
    }
}

/// The next question; `None` at the end of the stream between two.
async fn read_question(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut question = vec![0; usize::from(length)];
    stream.read_exact(&mut question).await?;
    Ok(Some(question))
}

/// One connection's place among those allowed; given back when dropped.
struct Slot {
    sources: Sources,
    source: IpAddr,
}

impl Slot {
    fn take(sources: &Sources, peer: SocketAddr) -> Option<Self> {
        let source = network_of(peer.ip());
        let mut open = sources.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        let count = open.entry(source).or_default();
        if *count >= MAX_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Self { sources: Arc::clone(sources), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.source);
            }
        }
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
        let sources = Sources::default();
        let at = |host: u16| SocketAddr::new(IpAddr::V6([0x2001, 0xdb8, 0, 1, 0, 0, 0, host].into()), 1000);
        let held: Vec<_> = (0..16).filter_map(|n| Slot::take(&sources, at(n))).collect();
        assert_eq!(held.len(), MAX_PER_SOURCE);
        assert!(Slot::take(&sources, at(99)).is_none(), "another address of the same /64");
        assert!(Slot::take(&sources, "192.0.2.1:5".parse().unwrap()).is_some());
        drop(held);
        assert!(sources.lock().unwrap().is_empty(), "nothing is left of closed connections");
    }
}
