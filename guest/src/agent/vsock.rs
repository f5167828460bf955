//! Stream sockets to the host (`vsock(7)`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, VsockAddr, accept4, bind, listen, send, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A listening socket.
pub struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Listens for connections of the host to `port`.
    pub fn bind(port: u32) -> Result<Self> {
        let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a vsock socket (is there a vsock device?)")?;
        bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))
            .with_context(|| format!("binding vsock port {port}"))?;
        listen(&socket, Backlog::new(64).context("a backlog of 64")?)
            .with_context(|| format!("listening on vsock port {port}"))?;
        Ok(Self { socket })
    }

    /// Waits for the next connection; reads and writes on it give up after `timeout`.
    pub fn accept(&self, timeout: Duration) -> Result<Stream> {
        let socket = loop {
            match accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => break owned(fd),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => return Err(errno).context("accepting a vsock connection"),
            }
        };
        let limit = TimeVal::milliseconds(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, ReceiveTimeout, &limit).context("limiting the time of a read")?;
        setsockopt(&socket, SendTimeout, &limit).context("limiting the time of a write")?;
        Ok(Stream { file: File::from(socket) })
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: accept4 has just returned this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One connection.
pub struct Stream {
    file: File,
}

impl Stream {
    /// Whether the peer has closed its reading side too. A peer that has only shut its sending side still wants its answer;
    /// poll(2) does not tell the two apart on a vsock, but sending nothing does.
    pub fn peer_gone(&self) -> bool {
        matches!(
            send(self.file.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT),
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN)
        )
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
