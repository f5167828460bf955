//! The UDP side: receive, answer, send. Nothing in the loop waits for anything but the socket's readiness to receive.

use std::io;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tracing::debug;

use crate::answer::{Transport, answer};
use crate::zone::Zone;

/// Longer questions than this are not read: a question is a name, and a few options.
const MAX_QUESTION_BYTES: usize = 4096;

/// Packets answered between two looks at the runtime's other tasks.
const BATCH: usize = 64;

/// Answers on `socket` until it fails.
pub async fn serve(socket: UdpSocket, zone: watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    let mut buffer = vec![0u8; MAX_QUESTION_BYTES];
    loop {
        socket.readable().await?;
        let current = Arc::clone(&zone.borrow());
        for _ in 0..BATCH {
            let (length, peer) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error for an earlier answer is reported here. It says nothing about the socket.
                Err(error) => {
                    debug!(%error, "receiving a question");
                    break;
                }
            };
            let Some(reply) = buffer.get(..length).and_then(|q| answer(q, &current, Transport::Udp)) else {
                continue;
            };
            // A full send buffer drops the answer: the client asks again, and nobody else waits.
            if let Err(error) = socket.try_send_to(&reply, peer) {
                debug!(%error, %peer, "an answer was not sent");
            }
        }
        tokio::task::yield_now().await;
    }
}
