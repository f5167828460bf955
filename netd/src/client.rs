//! A blocking client for netd's socket, on the standard library alone, so that a monitor can use it inside a blackout.
//!
//! ```no_run
//! use netd::api::Request;
//! let mut netd = netd::client::Client::connect("/run/mashines/netd.sock")?;
//! netd.call(&Request::Status)?;
//! # Ok::<(), netd::client::Error>(())
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::{MAX_LINE, Reply, Request};

/// How long one call may take before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest reply that is read, in bytes: the status of a full host is longer than a request may be.
const MAX_REPLY: u64 = 64 << 20;

/// A connection to netd.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Why a call gave no `ok`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// netd could not be reached, or fell silent.
    #[error("netd at {socket}: {doing}: {source}; is mashinesd running with the netd role on this host?")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// netd answered something else than a reply.
    #[error(
        "netd at {socket} answered {line:?}, which is no reply: {source}; are both sides of one version?"
    )]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// The beginning of the answer.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// netd said no.
    #[error("netd: {0}")]
    Refused(String),
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let socket = path.as_ref().to_path_buf();
        let open = || {
            let stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(BufReader::new(stream))
        };
        match open() {
            Ok(stream) => Ok(Self { socket, stream }),
            Err(source) => Err(Error::Io { socket, doing: "connect", source }),
        }
    }

    /// Asks, and waits for the answer; a refusal is an [`Error::Refused`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, Error> {
        let mut line = serde_json::to_vec(request).map_err(|source| self.garbled("", source))?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(self.io("write the request", io::Error::other("it is longer than a line may be")));
        }
        self.stream.get_mut().write_all(&line).map_err(|e| self.io("write the request", e))?;
        let mut answer = String::new();
        let read = (&mut self.stream).take(MAX_REPLY).read_line(&mut answer);
        match read {
            Ok(_) if answer.ends_with('\n') => {}
            Ok(_) => return Err(self.io("read the reply", io::ErrorKind::UnexpectedEof.into())),
            Err(e) => return Err(self.io("read the reply", e)),
        }
        match serde_json::from_str(&answer) {
            Ok(Reply::Refused(error)) => Err(Error::Refused(error)),
            Ok(reply @ (Reply::Done | Reply::Status(_))) => Ok(reply),
            Err(source) => Err(self.garbled(&answer, source)),
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { socket: self.socket.clone(), doing, source }
    }

    fn garbled(&self, answer: &str, source: serde_json::Error) -> Error {
        Error::Garbled { socket: self.socket.clone(), line: answer.chars().take(80).collect(), source }
    }
}

/// Connects, asks once, closes.
pub fn call(socket: impl AsRef<Path>, request: &Request) -> Result<Reply, Error> {
    Client::connect(socket)?.call(request)
}
