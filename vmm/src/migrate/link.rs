//! One connection of a migration: TCP, TLS, frames. Blocking, with a bound on each wait.
//!
//! Whoever holds the [`Gate`] can end every wait at once by shutting the sockets down; that is how a cancellation takes
//! effect within a blocked write.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::Connection;

use super::frame::{self, Encoder, HEADER, Header, Message};
use super::gate::Gate;
use super::tls::Credentials;

/// For the TCP connection.
const CONNECT: Duration = Duration::from_secs(15);
/// For the whole TLS handshake.
const TLS: Duration = Duration::from_secs(15);
/// While the guest runs, silence this long means that the peer is gone.
pub const PATIENT: Duration = Duration::from_secs(20);
/// While the guest stands still, this long.
pub const URGENT: Duration = Duration::from_secs(5);
/// How often a side that keeps the other waiting says that it is there.
pub const ALIVE: Duration = Duration::from_millis(500);

const READ_BUFFER: usize = 256 << 10;
/// How much plain text is encrypted before it is written out.
const WRITE_CHUNK: usize = 64 << 10;

/// A connection after its handshake.
pub struct Link {
    tls: Connection,
    socket: TcpStream,
    encoder: Encoder,
    migration: u64,
    epoch: u64,
    stream: u16,
    expected: u64,
    encrypted: Box<[u8]>,
    unread: std::ops::Range<usize>,
    table: Vec<u8>,
    out: Vec<u8>,
}

/// What the frames of a stream have in common.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The hash of the migration's id.
    pub migration: u64,
    /// The epoch at the destination.
    pub epoch: u64,
    /// 0 is control.
    pub stream: u16,
}

impl Link {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// Names the address and the step that failed.
    pub fn connect(
        address: SocketAddr,
        credentials: &Credentials,
        identity: Identity,
        gate: &Gate,
    ) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, CONNECT)
            .with_context(|| format!("connecting to the destination's monitor at {address}"))?;
        gate.guard(&socket)?;
        let tls = credentials.connect()?;
        let link = Self::shake(socket, tls, credentials)
            .with_context(|| format!("TLS handshake with the destination's monitor at {address}"))?;
        Ok(link.identify(identity))
    }

    /// Shakes hands on an accepted socket. Who the frames belong to is not known yet: see [`Link::identify`].
    ///
    /// # Errors
    /// When the peer is not the one demanded or not quick enough.
    pub fn accept(socket: TcpStream, credentials: &Credentials) -> Result<Self> {
        Self::shake(socket, credentials.accept()?, credentials)
    }

    fn shake(socket: TcpStream, mut tls: Connection, credentials: &Credentials) -> Result<Self> {
        let deadline = Instant::now() + TLS;
        socket.set_nodelay(true)?;
        tls.set_buffer_limit(None);
        while tls.is_handshaking() || tls.wants_write() {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(left > Duration::from_millis(1), "it took longer than {} s", TLS.as_secs());
            socket.set_read_timeout(Some(left))?;
            socket.set_write_timeout(Some(left))?;
            if tls.wants_write() {
                tls.write_tls(&mut &socket)?;
            } else if tls.read_tls(&mut &socket)? == 0 {
                bail!("the peer closed the connection");
            } else if let Err(error) = tls.process_new_packets() {
                // The alert says to the peer what displeased us.
                let _ = tls.write_tls(&mut &socket);
                return Err(error.into());
            }
        }
        credentials.verify_peer(&tls)?;
        let mut link = Self {
            tls,
            socket,
            encoder: Encoder::new(0, 0, 0),
            migration: 0,
            epoch: 0,
            stream: 0,
            expected: 0,
            encrypted: vec![0; READ_BUFFER].into_boxed_slice(),
            unread: 0..0,
            table: Vec::new(),
            out: Vec::new(),
        };
        link.patience(PATIENT)?;
        Ok(link)
    }

    /// From now on frames are sent with, and must carry, this identity.
    #[must_use]
    pub fn identify(mut self, identity: Identity) -> Self {
        let Identity { migration, epoch, stream } = identity;
        self.encoder = Encoder::new(stream, migration, epoch);
        (self.migration, self.epoch, self.stream) = (migration, epoch, stream);
        self
    }

    /// The socket, to end its waits from elsewhere.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// How long one read or write may take.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn patience(&mut self, silence: Duration) -> Result<()> {
        self.socket.set_read_timeout(Some(silence))?;
        self.socket.set_write_timeout(Some(silence))?;
        Ok(())
    }

    /// Sends one message without data.
    ///
    /// # Errors
    /// When the connection is gone or full for too long.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        self.send_all(&mut |encoder, out| Ok(encoder.encode(out, message, &[])?))
    }

    /// Sends what `write` appends, as few writes as possible. Returns the bytes of plain text.
    ///
    /// # Errors
    /// Those of `write`; when the connection is gone or full for too long.
    pub fn send_with(
        &mut self,
        mut write: impl FnMut(&mut Encoder, &mut Vec<u8>) -> Result<()>,
    ) -> Result<u64> {
        self.send_all(&mut write)?;
        Ok(self.out.len() as u64)
    }

    fn send_all(&mut self, write: &mut dyn FnMut(&mut Encoder, &mut Vec<u8>) -> Result<()>) -> Result<()> {
        self.out.clear();
        write(&mut self.encoder, &mut self.out)?;
        for chunk in self.out.chunks(WRITE_CHUNK) {
            self.tls.writer().write_all(chunk)?;
            while self.tls.wants_write() {
                let wrote =
                    self.tls.write_tls(&mut &self.socket).map_err(|error| explain(&error, "writing to"))?;
                ensure!(wrote > 0, "the peer takes no more bytes");
            }
        }
        Ok(())
    }

    /// Reads the next frame's header and meaning. Its data, `Header::data` bytes, must be read with [`Link::read_data`] next.
    ///
    /// # Errors
    /// When the connection is gone or silent for too long, and for a frame that is damaged, unknown or not of this stream.
    pub fn receive(&mut self) -> Result<(Header, Message)> {
        let mut raw = [0; HEADER];
        self.read_exact(&mut raw)?;
        let header = frame::parse_header(&raw)?;
        let mut table = std::mem::take(&mut self.table);
        table.clear();
        table.resize(header.table, 0);
        let read = self.read_exact(&mut table);
        let message = read.and_then(|()| Ok(frame::parse_table(&header, &raw, &table)?));
        // Keep the allocation of the usual small tables, not that of the one large.
        if table.capacity() <= READ_BUFFER {
            self.table = table;
        }
        let message = message?;
        ensure!(
            header.sequence == self.expected,
            "frame {} arrived where frame {} was due",
            header.sequence,
            self.expected
        );
        self.expected += 1;
        let first = matches!(message, Message::Hello(_));
        ensure!(
            first
                || (header.migration == self.migration
                    && header.epoch == self.epoch
                    && header.stream == self.stream),
            "a {:?} frame belongs to another migration or stream (stream {}, epoch {})",
            header.kind,
            header.stream,
            header.epoch
        );
        Ok((header, message))
    }

    /// As [`Link::receive`], passing over `Alive` and turning `Abort` into an error.
    ///
    /// # Errors
    /// As there, and what the peer gave as its reason.
    pub fn expect(&mut self) -> Result<(Header, Message)> {
        match self.receive_past_alive()? {
            (_, Message::Abort(why)) => bail!("the other side gave up: {why}"),
            other => Ok(other),
        }
    }

    /// As [`Link::receive`], passing over `Alive`.
    ///
    /// # Errors
    /// As there.
    pub fn receive_past_alive(&mut self) -> Result<(Header, Message)> {
        loop {
            match self.receive()? {
                (_, Message::Alive) => {}
                other => return Ok(other),
            }
        }
    }

    /// Reads a part of the last frame's data.
    ///
    /// # Errors
    /// When the connection is gone or silent for too long.
    pub fn read_data(&mut self, out: &mut [u8]) -> Result<()> {
        self.read_exact(out)
    }

    fn read_exact(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            match self.tls.reader().read(out) {
                Ok(0) => bail!("the peer closed the connection"),
                Ok(read) => out = out.get_mut(read..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.fill()?,
                Err(error) => return Err(explain(&error, "reading from")),
            }
        }
        Ok(())
    }

    /// Moves encrypted bytes on: from the socket in large reads, into TLS in the small ones it likes.
    fn fill(&mut self) -> Result<()> {
        if self.unread.is_empty() {
            let read =
                self.socket.read(&mut self.encrypted).map_err(|error| explain(&error, "reading from"))?;
            ensure!(read > 0, "the peer is gone: the connection ended without a farewell");
            self.unread = 0..read;
        }
        let mut bytes = self.encrypted.get(self.unread.clone()).unwrap_or_default();
        let taken = self.tls.read_tls(&mut bytes)?;
        self.unread.start += taken;
        self.tls.process_new_packets().context("a TLS record is damaged or forged")?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut &self.socket)?;
        }
        Ok(())
    }

    /// A last look, without waiting: has the peer hung up?
    ///
    /// # Errors
    /// When it has.
    pub fn still_there(&self) -> Result<()> {
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is one byte that outlives the call.
        let read = unsafe { libc::recv(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
        let error = io::Error::last_os_error();
        match read {
            0 => bail!("the other monitor has hung up"),
            1.. => Ok(()),
            _ if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(explain(&error, "looking at")),
        }
    }

    /// Says why, and closes. Best effort.
    pub fn abort(&mut self, why: &str) {
        let _ = self.patience(Duration::from_secs(1));
        let _ = self.send(&Message::Abort(why.chars().take(4000).collect()));
        self.close();
    }

    /// A clean end. Best effort.
    pub fn close(&mut self) {
        self.tls.send_close_notify();
        let _ = self.tls.write_tls(&mut &self.socket);
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

fn explain(error: &io::Error, doing: &str) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            anyhow::anyhow!(
                "{doing} the other monitor: nothing moved for too long; it hangs or the network is cut"
            )
        }
        _ => anyhow::anyhow!("{doing} the other monitor: {error}"),
    }
}
