//! Bytes from one TCP connection to another through the kernel: `splice(2)` over a pipe, so no byte is copied to user space.
//!
//! Each direction ends on its own: the end of one side's stream is passed on as the end of the other's (half-close), and the pair is
//! over when both have ended or either failed. Nothing is buffered beyond one pipe a direction, so a slow reader slows its own
//! writer down and nobody else.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most that is moved at once: what a pipe holds by default (`pipe(7)`).
const CHUNK: usize = 64 * 1024;

/// How much went each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes from the first connection to the second.
    pub forth: u64,
    /// Bytes from the second connection to the first.
    pub back: u64,
}

/// Joins two connections until both directions have ended, or one failed.
pub async fn join(one: &TcpStream, two: &TcpStream) -> io::Result<Moved> {
    let (forth, back) = tokio::try_join!(direction(one, two), direction(two, one))?;
    Ok(Moved { forth, back })
}

async fn direction(from: &TcpStream, to: &TcpStream) -> io::Result<u64> {
    let (pipe_out, pipe_in) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    let mut total = 0u64;
    loop {
        // The pipe is empty here, so `WouldBlock` can only mean that the socket has nothing.
        let filled = from.async_io(Interest::READABLE, || fill(from, &pipe_in)).await?;
        if filled == 0 {
            break;
        }
        let mut left = filled;
        while left > 0 {
            // The pipe holds `left` bytes, so `WouldBlock` can only mean that the socket is full.
            left -= to.async_io(Interest::WRITABLE, || drain(&pipe_out, to, left)).await?;
        }
        total = total.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
    }
    end_of(to)?;
    Ok(total)
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

fn fill(from: &TcpStream, pipe: &OwnedFd) -> io::Result<usize> {
    Ok(splice(from, None, pipe, None, CHUNK, flags())?)
}

fn drain(pipe: &OwnedFd, to: &TcpStream, left: usize) -> io::Result<usize> {
    Ok(splice(pipe, None, to, None, left, flags())?)
}

fn end_of(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    match shutdown(stream.as_raw_fd(), Shutdown::Write) {
        // The peer has gone meanwhile: its end needs no announcement.
        Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// client ⇄ [left|right] ⇄ server
    async fn joined() -> (TcpStream, TcpStream, tokio::task::JoinHandle<io::Result<Moved>>) {
        let (client, left) = pair().await;
        let (right, server) = pair().await;
        (client, server, tokio::spawn(async move { join(&left, &right).await }))
    }

    #[tokio::test]
    async fn ten_megabytes_each_way_arrive_unchanged() {
        let (client, server, task) = joined().await;
        let data: Vec<u8> = (0..10_000_000u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
        let exchange = |stream: TcpStream, data: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let send = tokio::spawn(async move {
                write.write_all(&data).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.unwrap();
            send.await.unwrap();
            received
        };
        let (back, forth) = tokio::join!(exchange(client, data.clone()), exchange(server, data.clone()));
        assert!(back == data && forth == data);
        assert_eq!(task.await.unwrap().unwrap(), Moved { forth: 10_000_000, back: 10_000_000 });
    }

    #[tokio::test]
    async fn the_end_of_one_direction_leaves_the_other_open() {
        let (mut client, mut server, task) = joined().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!(task.await.unwrap().unwrap(), Moved { forth: 8, back: 6 });
    }

    #[tokio::test]
    async fn a_reset_ends_the_pair() {
        let (client, server, task) = joined().await;
        nix::sys::socket::setsockopt(
            &server,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
        drop(server);
        assert!(task.await.unwrap().is_err());
        drop(client);
    }
}
