//! The table of streams and the unix sockets at their other ends.
//!
//! Invariants: every socket is non-blocking and edge-triggered in epoll, under a token that is never used twice; a stream whose
//! socket has bytes but whose guest has no credit or no buffers is in `readable` and is read when that changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing::debug;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::HOST_CID;
use super::connection::{Connection, Stage};
use super::packet::{NO_SEND, Op, Packet, STREAM};
use crate::virtio::FIRST_TOKEN;

/// Streams and clients that have not said what they want, together.
const MOST_STREAMS: usize = 1023;
/// The longest `CONNECT` line.
const LONGEST_LINE: usize = 32;
/// Ports that the mux gives to host clients begin here.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The most control packets waiting for the guest; beyond that the guest is not listening and they are dropped.
const MOST_WAITING: usize = 4096;

/// Guest port and host port.
pub type Key = (u32, u32);

/// One end at the host.
struct End {
    socket: UnixStream,
    token: u64,
    connection: Connection,
}

/// A client of the listening socket before its `CONNECT` line is complete.
struct Client {
    socket: UnixStream,
    line: Vec<u8>,
}

/// All streams of one device.
pub struct Mux {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    poll: Option<Arc<Epoll>>,
    next_token: u64,
    next_port: u32,
    ends: BTreeMap<Key, End>,
    tokens: BTreeMap<u64, Key>,
    clients: BTreeMap<u64, Client>,
    /// Streams whose socket may have bytes for the guest.
    readable: BTreeSet<Key>,
    /// Packets without bytes that wait for a buffer of the guest.
    waiting: VecDeque<Packet>,
}

impl Mux {
    /// Listens at `path`; a socket left over is replaced.
    ///
    /// # Errors
    /// When it cannot be listened on.
    pub fn new(guest_cid: u32, path: PathBuf) -> Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("listen on the vsock's socket {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            path,
            listener,
            poll: None,
            next_token: FIRST_TOKEN + 1,
            next_port: FIRST_HOST_PORT,
            ends: BTreeMap::new(),
            tokens: BTreeMap::new(),
            clients: BTreeMap::new(),
            readable: BTreeSet::new(),
            waiting: VecDeque::new(),
        })
    }

    /// Watches the listening socket.
    ///
    /// # Errors
    /// When epoll refuses.
    pub fn attach(&mut self, poll: &Arc<Epoll>) -> Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, FIRST_TOKEN);
        poll.ctl(ControlOperation::Add, self.listener.as_raw_fd(), event)
            .context("watch the vsock's socket")?;
        self.poll = Some(Arc::clone(poll));
        Ok(())
    }

    /// Closes everything but the listening socket.
    pub fn reset(&mut self) {
        self.ends.clear();
        self.tokens.clear();
        self.clients.clear();
        self.readable.clear();
        self.waiting.clear();
    }

    /// A descriptor is ready.
    pub fn ready(&mut self, token: u64) {
        if token == FIRST_TOKEN {
            self.accept();
        } else if let Some(client) = self.clients.remove(&token) {
            self.hear_client(token, client);
        } else if let Some(key) = self.tokens.get(&token).copied() {
            self.readable.insert(key);
            self.flush(key);
        }
    }

    /// Looks at everything, for edges that were missed.
    pub fn look_at_all(&mut self) {
        self.accept();
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        let ends: Vec<u64> = self.tokens.keys().copied().collect();
        for token in clients.into_iter().chain(ends) {
            self.ready(token);
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.ends.len() + self.clients.len() >= MOST_STREAMS {
                debug!("a vsock client was refused: {MOST_STREAMS} streams are open");
                continue;
            }
            if let Some(token) = self.watch(&socket) {
                self.hear_client(token, Client { socket, line: Vec::new() });
            }
        }
    }

    fn watch(&mut self, socket: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        socket.set_nonblocking(true).ok()?;
        let interest = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, token);
        let poll = self.poll.as_ref()?;
        poll.ctl(ControlOperation::Add, socket.as_raw_fd(), event).ok().map(|()| token)
    }

    /// Reads a client's line byte by byte (what follows it belongs to the guest); keeps the client until it is complete.
    fn hear_client(&mut self, token: u64, mut client: Client) {
        let mut byte = [0];
        while client.line.last() != Some(&b'\n') {
            match client.socket.read(&mut byte) {
                Ok(1) if client.line.len() < LONGEST_LINE => client.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.clients.insert(token, client);
                    return;
                }
                _ => return,
            }
        }
        let line = std::str::from_utf8(&client.line).unwrap_or_default();
        let port = line.trim_end().strip_prefix("CONNECT ").and_then(|port| port.parse().ok());
        if let Some(port) = port {
            self.request(token, client.socket, port);
        }
    }

    fn request(&mut self, token: u64, socket: UnixStream, guest_port: u32) {
        let host_port = self.next_port;
        self.next_port = if host_port == u32::MAX { FIRST_HOST_PORT } else { host_port + 1 };
        let key = (guest_port, host_port);
        if self.ends.contains_key(&key) {
            return;
        }
        let connection = Connection::new(Stage::Requested);
        self.ends.insert(key, End { socket, token, connection });
        self.tokens.insert(token, key);
        self.tell(key, Op::Request, 0);
    }

    /// A packet of the guest, with its bytes.
    pub fn hear(&mut self, packet: &Packet, bytes: &[u8]) {
        let key = (packet.src_port, packet.dst_port);
        if packet.dst_cid != HOST_CID || packet.src_cid != self.guest_cid || packet.kind != STREAM {
            return self.refuse(packet, key);
        }
        if packet.op == Op::Request {
            return self.open(packet, key);
        }
        let Some(end) = self.ends.get_mut(&key) else { return self.refuse(packet, key) };
        end.connection.hear_credit(packet);
        // It may have credit now that it lacked before.
        self.readable.insert(key);
        match packet.op {
            Op::Request => {}
            Op::Response => self.answered(key),
            Op::Reset => self.close(key),
            Op::Shutdown => {
                end.connection.shut_down(packet.flags);
                self.flush(key);
            }
            Op::Data => {
                if end.connection.receive(bytes) {
                    self.flush(key);
                } else {
                    debug!(?key, "the guest sent more than it had credit for");
                    self.abort(key);
                }
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => end.connection.tell_credit = true,
        }
    }

    fn refuse(&mut self, packet: &Packet, key: Key) {
        if packet.op != Op::Reset {
            self.tell(key, Op::Reset, 0);
        }
    }

    /// The guest opens a stream to the socket `PATH_PORT`.
    fn open(&mut self, packet: &Packet, key: Key) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", packet.dst_port));
        if self.ends.contains_key(&key) || self.ends.len() + self.clients.len() >= MOST_STREAMS {
            return self.abort(key);
        }
        let token_and_socket = UnixStream::connect(&path).ok().and_then(|socket| {
            let token = self.watch(&socket)?;
            Some((token, socket))
        });
        let Some((token, socket)) = token_and_socket else { return self.refuse(packet, key) };
        let mut connection = Connection::new(Stage::Open);
        connection.hear_credit(packet);
        self.ends.insert(key, End { socket, token, connection });
        self.tokens.insert(token, key);
        self.readable.insert(key);
        self.tell(key, Op::Response, 0);
    }

    /// The guest accepted a host client.
    fn answered(&mut self, key: Key) {
        let Some(end) = self.ends.get_mut(&key) else { return };
        if end.connection.stage != Stage::Requested {
            return self.abort(key);
        }
        end.connection.stage = Stage::Open;
        let line = format!("OK {}\n", key.1);
        if end.socket.write_all(line.as_bytes()).is_err() {
            return self.abort(key);
        }
        self.readable.insert(key);
    }

    /// Writes to the host's socket what came from the guest.
    fn flush(&mut self, key: Key) {
        let Some(end) = self.ends.get_mut(&key) else { return };
        while !end.connection.to_host.is_empty() {
            let (bytes, _) = end.connection.to_host.as_slices();
            match end.socket.write(bytes) {
                Ok(count) if count > 0 => end.connection.consumed(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return self.abort(key),
            }
        }
        if end.connection.is_over() {
            self.abort(key);
        } else if end.connection.guest_ended {
            // An error means that the far end is gone, which the next read tells.
            drop(end.socket.shutdown(std::net::Shutdown::Write));
        }
    }

    /// Forgets a stream and tells the guest.
    fn abort(&mut self, key: Key) {
        self.close(key);
        self.tell(key, Op::Reset, 0);
    }

    fn close(&mut self, key: Key) {
        if let Some(end) = self.ends.remove(&key) {
            self.tokens.remove(&end.token);
        }
        self.readable.remove(&key);
    }

    fn tell(&mut self, key: Key, op: Op, flags: u32) {
        if self.waiting.len() < MOST_WAITING {
            let packet = self.packet(key, op, flags);
            self.waiting.push_back(packet);
        }
    }

    fn packet(&mut self, (guest_port, host_port): Key, op: Op, flags: u32) -> Packet {
        let end = self.ends.get_mut(&(guest_port, host_port));
        let (buf_alloc, fwd_cnt) = end.map_or((0, 0), |end| end.connection.told());
        Packet {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: host_port,
            dst_port: guest_port,
            len: 0,
            kind: STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Whether [`Mux::next`] may have something.
    #[must_use]
    pub fn has_next(&self) -> bool {
        !self.waiting.is_empty()
            || !self.readable.is_empty()
            || self.ends.values().any(|end| end.connection.tell_credit)
    }

    /// The next packet for the guest; its bytes go into `buffer`, whose length is what the guest has room for.
    pub fn next(&mut self, buffer: &mut [u8]) -> Option<Packet> {
        if let Some(packet) = self.waiting.pop_front() {
            return Some(packet);
        }
        let owing = self.ends.iter().find(|(_, end)| end.connection.tell_credit).map(|(key, _)| *key);
        if let Some(key) = owing {
            return Some(self.packet(key, Op::CreditUpdate, 0));
        }
        while let Some(key) = self.readable.first().copied() {
            if let Some(packet) = self.read(key, buffer) {
                return Some(packet);
            }
            self.readable.remove(&key);
        }
        None
    }

    fn read(&mut self, key: Key, buffer: &mut [u8]) -> Option<Packet> {
        let end = self.ends.get_mut(&key)?;
        let room = end.connection.credit().min(buffer.len());
        if room == 0 || end.connection.host_ended {
            return None;
        }
        match end.socket.read(&mut buffer[..room]) {
            Ok(0) => {
                end.connection.host_ended = true;
                // Half a close: the guest may still have an answer for a client that only ended its question.
                Some(self.packet(key, Op::Shutdown, NO_SEND))
            }
            Ok(count) => {
                let len = u32::try_from(count).unwrap_or(0);
                end.connection.sent(len);
                Some(Packet { len, ..self.packet(key, Op::Data, 0) })
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                None
            }
            Err(_) => {
                self.close(key);
                Some(self.packet(key, Op::Reset, 0))
            }
        }
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}
