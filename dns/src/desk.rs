//! Where sockets hand over what is more than a question ([`crate::operations`]), and what carries that out.
//!
//! UDP's threads never wait: they put such a packet on the desk, or drop it when the desk is full. A connection carries its own out.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::{Asker, Authority, Moment, Transport, answer};
use crate::operations::{Handled, LONGEST_TRANSFER, Operations, signed_like};
use crate::server::unix_time;
use crate::transfer::stream::Transfer;

/// Packets that wait. Whoever has signed one asks again.
const WAITING: usize = 256;

/// A client that does not take one message of a transfer within this time is gone.
const SEND: Duration = Duration::from_secs(20);

/// Puts packets on the desk. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    operations: Operations,
    waiting: mpsc::Sender<Packet>,
}

struct Packet {
    bytes: Vec<u8>,
    peer: SocketAddr,
    socket: Arc<UdpSocket>,
}

/// Who carries out what is on the desk.
pub struct Clerk {
    operations: Operations,
    waiting: mpsc::Receiver<Packet>,
    moments: watch::Receiver<Arc<Moment>>,
    authority: Arc<Authority>,
}

/// A desk, and its clerk.
pub fn desk(
    operations: Operations,
    moments: watch::Receiver<Arc<Moment>>,
    authority: Arc<Authority>,
) -> (Desk, Clerk) {
    let (sender, waiting) = mpsc::channel(WAITING);
    let desk = Desk { operations: operations.clone(), waiting: sender };
    (desk, Clerk { operations, waiting, moments, authority })
}

impl Desk {
    /// Takes a packet that came over UDP if it is more than a question. The answer goes back by the same socket.
    pub fn takes(&self, bytes: &[u8], peer: SocketAddr, socket: &Arc<UdpSocket>) -> bool {
        if !self.operations.concerns(bytes, peer.ip().to_canonical()) {
            return false;
        }
        // A full desk loses it: its client asks again.
        let _lost = self.waiting.try_send(Packet { bytes: bytes.to_vec(), peer, socket: Arc::clone(socket) });
        true
    }
}

impl Clerk {
    /// Works for ever.
    pub async fn work(mut self) {
        while let Some(Packet { bytes, peer, socket }) = self.waiting.recv().await {
            let now = unix_time();
            let address = peer.ip().to_canonical();
            match self.operations.handle(&bytes, address, false, now) {
                Handled::Reply(reply) => send(&socket, peer, &reply),
                Handled::Silence | Handled::Transfer(..) => {}
                Handled::Question(question, conversation) => {
                    let asker = Asker { address, transport: Transport::Udp, now };
                    let moment = Arc::clone(&self.moments.borrow());
                    let mut told = Vec::new();
                    if answer(&question, asker, &moment, &self.authority, &mut told).is_some() {
                        send(&socket, peer, &signed_like(told, conversation, false, now));
                    }
                }
                Handled::Update(pending) => {
                    tokio::spawn(async move { send(&socket, peer, &pending.answer(unix_time).await) });
                }
            }
        }
    }
}

/// A full send buffer drops the answer: the client asks again, and nobody else waits.
fn send(socket: &UdpSocket, peer: SocketAddr, reply: &[u8]) {
    let sent = socket2::SockRef::from(socket).send_to_with_flags(reply, &peer.into(), libc::MSG_DONTWAIT);
    if let Err(error) = sent {
        tracing::debug!(%error, %peer, "an answer was not sent");
    }
}

impl Desk {
    /// Whether a packet that came over a connection is more than a question.
    pub fn concerns(&self, bytes: &[u8], asker: Asker) -> bool {
        self.operations.concerns(bytes, asker.address)
    }

    /// Carries it out on its connection, to which nothing else is being written.
    ///
    /// # Errors
    /// The connection's; the client does not take what it asked for.
    pub async fn serve(
        &self,
        bytes: &[u8],
        asker: Asker,
        moment: &Moment,
        authority: &Authority,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        match self.operations.handle(bytes, asker.address, true, asker.now) {
            Handled::Silence => Ok(()),
            Handled::Reply(reply) => write(stream, &reply, Instant::now() + SEND).await,
            Handled::Question(question, conversation) => {
                let mut told = Vec::new();
                if answer(&question, asker, moment, authority, &mut told).is_none() {
                    return Ok(());
                }
                let signed = signed_like(told, conversation, true, asker.now);
                write(stream, &signed, Instant::now() + SEND).await
            }
            Handled::Update(pending) => {
                let reply = pending.answer(unix_time).await;
                write(stream, &reply, Instant::now() + SEND).await
            }
            Handled::Transfer(transfer, _place) => stream_out(*transfer, stream).await,
        }
    }
}

async fn stream_out(mut transfer: Transfer, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let end = Instant::now() + LONGEST_TRANSFER;
    while let Some(message) = transfer.next_message(unix_time()) {
        write(stream, &message, end.min(Instant::now() + SEND)).await?;
    }
    timeout(SEND, stream.flush()).await?
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8], until: Instant) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    timeout_at(until, async {
        stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        stream.flush().await
    })
    .await?
}
