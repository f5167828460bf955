//! The UDP side: threads that receive, answer and send, a batch at a time. Nothing in the loop waits for anything but a question.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tracing::debug;

use crate::answer::{Asker, Authority, Moment, Transport, answer, truncated};
use crate::desk::Desk;
use crate::limit::{ResponseLimit, Verdict};
use crate::mmsg::Batch;
use crate::server::unix_time;

/// How long a thread waits for a question before it looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the kernel holds while a thread is busy, as far as it allows: a burst of some thousand questions.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What one thread needs.
pub struct Worker {
    /// Its socket; several are bound to one address and the kernel spreads clients over them.
    pub socket: Arc<UdpSocket>,
    /// Takes what is more than a question.
    pub desk: Desk,
    /// What is true now.
    pub moments: watch::Receiver<Arc<Moment>>,
    /// What was configured.
    pub authority: Arc<Authority>,
    /// Limits on equal answers, if there are any.
    pub limit: Arc<Option<ResponseLimit>>,
    /// Becomes true when it is to end.
    pub stop: Arc<AtomicBool>,
}

/// A socket that shares its address with others of this process.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Less than asked for is no error.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Worker {
    /// Answers until it is told to stop, or the socket fails.
    ///
    /// # Errors
    /// The socket's.
    pub fn run(self) -> io::Result<()> {
        let mut batch = Batch::new();
        while !self.stop.load(Ordering::Relaxed) {
            let received = match batch.receive(&self.socket) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
                        continue;
                    }
                    // An ICMP error for an earlier answer is reported here. It says nothing about the socket.
                    io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable => {
                        debug!(%error, "an earlier answer did not arrive");
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let moment = Arc::clone(&self.moments.borrow());
            let now = unix_time();
            for at in 0..received {
                if self.answer_one(&mut batch, at, &moment, now).is_some() {
                    batch.keep(at);
                }
            }
            batch.send(&self.socket);
        }
        Ok(())
    }

    /// Writes the answer of question `at`; `None` where none is to be sent.
    fn answer_one(&self, batch: &mut Batch, at: usize, moment: &Moment, now: u64) -> Option<()> {
        let peer = batch.peer(at)?;
        let (question, address, out) = batch.question(at)?;
        if self.desk.takes(question, peer, &self.socket) {
            return None;
        }
        let asker = Asker { address, transport: Transport::Udp, now };
        let told = answer(question, asker, moment, &self.authority, out)?;
        let verdict = match &*self.limit {
            Some(limit) if !told.is_known => limit.judge(address, told.class, told.identity),
            Some(_) | None => Verdict::Send,
        };
        match verdict {
            Verdict::Send => Some(()),
            Verdict::Truncate => {
                truncated(out, &told);
                Some(())
            }
            Verdict::Drop => None,
        }
    }
}
