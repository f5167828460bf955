//! Lines: as a terminal wants them, and as a pipe brings them.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// The longest command line; what is longer is cut.
pub const MAX_LINE: usize = 8 * 1024;

/// Turned into at most this at once.
const CHUNK: usize = 4 * 1024;

/// Writes `\r\n` for each `\n`: a client's terminal is in raw mode, and there is no terminal driver here.
pub struct CrLf<W> {
    inner: W,
    pending: VecDeque<u8>,
}

impl<W> CrLf<W> {
    /// Onto `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, pending: VecDeque::new() }
    }
}

impl<W: AsyncWrite + Unpin> CrLf<W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, front))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for CrLf<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let taken = buf.get(..CHUNK).unwrap_or(buf);
        for byte in taken {
            if *byte == b'\n' {
                self.pending.push_back(b'\r');
            }
            self.pending.push_back(*byte);
        }
        // What does not go out now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    whole: VecDeque<String>,
    begun: Vec<u8>,
}

impl Lines {
    /// More of the stream.
    pub fn push(&mut self, data: &[u8]) {
        for byte in data {
            match byte {
                b'\n' => self.finish(),
                _ if self.begun.len() < MAX_LINE => self.begun.push(*byte),
                _ => (),
            }
        }
    }

    /// The stream's end: what was begun is a line.
    pub fn end(&mut self) {
        if !self.begun.is_empty() {
            self.finish();
        }
    }

    /// The next whole line.
    pub fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }

    fn finish(&mut self) {
        let line = std::mem::take(&mut self.begun);
        self.whole.push_back(String::from_utf8_lossy(&line).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn each_line_end_becomes_two_bytes_however_slow_the_reader_is() {
        let (near, mut far) = tokio::io::duplex(3);
        let writing = tokio::spawn(async move {
            let mut writer = CrLf::new(near);
            writer.write_all("a\nbé\n\nc".as_bytes()).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        writing.await.unwrap();
        assert_eq!(read, "a\r\nbé\r\n\r\nc");
    }

    #[test]
    fn lines_are_whole_whatever_the_packets_are() {
        let mut lines = Lines::default();
        lines.push(b"ls\nsh");
        lines.push(b"ow web\nrm");
        assert_eq!(
            (lines.next().as_deref(), lines.next().as_deref(), lines.next()),
            (Some("ls"), Some("show web"), None)
        );
        lines.end();
        assert_eq!(lines.next().as_deref(), Some("rm"));
        lines.push(&vec![b'x'; MAX_LINE * 2]);
        lines.end();
        assert_eq!(lines.next().unwrap().len(), MAX_LINE);
    }
}
