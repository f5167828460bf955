//! A client's connection as hyper may see it: heads of requests whole, and none that [`framing`](super::framing) refuses.
//!
//! In place of a request that is refused hyper reads a byte that no request begins with, answers 400 and closes: so a refusal comes after
//! the answers to the requests before it, and nothing that follows it is read. Bodies go through unseen, without a copy. Nothing is kept of a connection that rests.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::framing::{Framing, Step};

/// Read at once while a head is expected.
const CHUNK: usize = 8 * 1024;

/// Of a body, at once: what is asked for is made zero first.
const AT_ONCE: usize = 16 * 1024;

/// hyper answers 400 to this.
const NO_REQUEST: &[u8] = b"\0\r\n\r\n";

/// A stream of requests behind the gate.
#[derive(Debug)]
pub struct Gate<S> {
    stream: S,
    framing: Framing,
    /// Read, and not passed on.
    held: Vec<u8>,
    /// How many of them may go.
    free: usize,
    /// A request was refused: nothing more is read.
    refused: bool,
    /// Heads that may go, or have gone.
    heads: u64,
}

impl<S> Gate<S> {
    /// Before the first request.
    pub fn new(stream: S) -> Self {
        Self { stream, framing: Framing::default(), held: Vec::new(), free: 0, refused: false, heads: 0 }
    }

    /// How many heads may go, or have gone, since it was made or begun anew.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether the next byte to go is a head's, which is not whole yet.
    pub fn is_at_head(&self) -> bool {
        self.free == 0 && !self.refused && self.framing.is_at_head()
    }

    /// Frees what of the held bytes may go.
    fn sort(&mut self) {
        while self.free < self.held.len() {
            let at_head = self.framing.is_at_head();
            match self.framing.step(&self.held[self.free..]) {
                Step::Pass(count) => {
                    self.free += count;
                    // Two bytes are an empty line before a head.
                    self.heads += u64::from(at_head && count > 2);
                }
                Step::More => break,
                Step::TooLong => self.free = self.held.len(),
                Step::Refuse(refusal) => {
                    debug!(%refusal, "edge: a request is refused");
                    self.held.truncate(self.free);
                    self.held.extend_from_slice(NO_REQUEST);
                    self.free = self.held.len();
                    self.refused = true;
                }
            }
        }
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.free.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.free -= count;
        if count == self.held.len() {
            self.held = Vec::new();
        } else {
            self.held.drain(..count);
        }
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// Waits until there is something to go, and says whether there is: a whole head, or what is told in place of one. Nothing more is to come
    /// otherwise. Counts heads anew.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.heads = 0;
        self.poll_free(cx)
    }

    /// Reads what still comes and forgets it, until it ends.
    pub async fn forget(&mut self) -> io::Result<()> {
        let mut read_some = |cx: &mut Context<'_>| {
            let mut space = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
            Poll::Ready(io::Result::Ok(chunk.filled().len()))
        };
        while poll_fn(&mut read_some).await? > 0 {}
        Ok(())
    }

    fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.free == 0 && !self.refused {
            let mut space = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                // The end, maybe within a head: what was withheld is nothing.
                return Poll::Ready(Ok(false));
            }
            self.held.extend_from_slice(chunk.filled());
            self.sort();
        }
        Poll::Ready(Ok(self.free > 0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let unseen = this.framing.unseen();
        if unseen > 0 && this.held.is_empty() && !this.refused {
            let most = usize::try_from(unseen).map_or(buf.remaining(), |unseen| unseen.min(buf.remaining()));
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most.min(AT_ONCE)));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            buf.advance(count);
            this.framing.passed(count as u64);
            return Poll::Ready(Ok(()));
        }
        if ready!(this.poll_free(cx))? {
            this.give(buf);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
