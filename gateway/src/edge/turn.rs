//! An HTTP/1 connection goes between two states: hyper has it while requests come, and nobody but the gate has it while it rests.
//!
//! hyper keeps 8 KiB of room for the next head and the machinery of a request for as long as it has a connection. Most connections of an
//! edge rest, so hyper's part of one is dropped when it has rested for a moment, and made anew when a head has come in whole.
//!
//! Invariant: the stream is taken back only when nothing is lost by it: the gate stands at the beginning of a head, hyper has begun with every
//! head that the gate let pass, every answer has ended, and all that was written is flushed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;

/// What both sides know of a connection that hyper has. All of it runs in one task: the atomics are for the compiler.
#[derive(Debug)]
pub struct Turn<S> {
    /// Heads that the gate let pass, requests that began, answers that ended.
    passed: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    at_head: AtomicBool,
    flushed: AtomicBool,
    /// Where the stream comes when hyper's part is dropped.
    home: Mutex<Option<Gate<S>>>,
}

/// The stream as hyper has it.
#[derive(Debug)]
pub struct Lease<S> {
    /// There until it is dropped.
    gate: Option<Gate<S>>,
    turn: Arc<Turn<S>>,
}

/// One request, until its answer has gone.
pub struct Serving(Arc<dyn Ends + Send + Sync>);

trait Ends {
    fn ended(&self);
}

impl<S> Turn<S> {
    /// hyper's turn with a connection.
    pub fn begin(gate: Gate<S>) -> (Arc<Self>, Lease<S>) {
        let turn = Arc::new(Self {
            passed: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            at_head: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            home: Mutex::new(None),
        });
        (Arc::clone(&turn), Lease { gate: Some(gate), turn })
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether nothing is under way.
    pub fn rests(&self) -> bool {
        let (passed, begun) = (self.passed.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed));
        passed == begun
            && begun == self.ended.load(Ordering::Relaxed)
            && self.at_head.load(Ordering::Relaxed)
            && self.flushed.load(Ordering::Relaxed)
    }

    /// The stream, when hyper's part was dropped.
    pub fn take(&self) -> Option<Gate<S>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<S: Send + 'static> Turn<S> {
    /// hyper begins with a request.
    pub fn serve(self: &Arc<Self>) -> Serving {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Serving(Arc::clone(self) as _)
    }
}

impl<S> Ends for Turn<S> {
    fn ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.ended();
    }
}

impl<S> Drop for Lease<S> {
    fn drop(&mut self) {
        *self.turn.home.lock().unwrap_or_else(PoisonError::into_inner) = self.gate.take();
    }
}

/// hyper uses no stream that it has dropped.
fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<S: AsyncRead + Unpin> AsyncRead for Lease<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(gate) = &mut this.gate else { return Poll::Ready(Err(gone())) };
        let read = Pin::new(&mut *gate).poll_read(cx, buf);
        this.turn.passed.store(gate.heads(), Ordering::Relaxed);
        this.turn.at_head.store(gate.is_at_head(), Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lease<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.turn.flushed.store(false, Ordering::Relaxed);
        self.gate.as_mut().map_or(Poll::Ready(Err(gone())), |gate| Pin::new(gate).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.turn.flushed.store(false, Ordering::Relaxed);
        self.gate
            .as_mut()
            .map_or(Poll::Ready(Err(gone())), |gate| Pin::new(gate).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.gate.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed =
            self.gate.as_mut().map_or(Poll::Ready(Err(gone())), |gate| Pin::new(gate).poll_flush(cx));
        self.turn.flushed.store(matches!(flushed, Poll::Ready(Ok(()))), Ordering::Relaxed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gate.as_mut().map_or(Poll::Ready(Err(gone())), |gate| Pin::new(gate).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    async fn read(lease: &mut Lease<tokio::io::DuplexStream>) -> usize {
        lease.read(&mut [0; 1024]).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_rests_only_when_nothing_would_be_lost() {
        let (mut client, stream) = duplex(4096);
        let (turn, mut lease) = Turn::begin(Gate::new(stream));
        client.write_all(HEAD).await.unwrap();
        assert_eq!(read(&mut lease).await, HEAD.len());
        assert!(!turn.rests(), "hyper has a head that it has not begun with");
        let serving = turn.serve();
        assert!(!turn.rests(), "a request is under way");
        lease.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        drop(serving);
        assert!(!turn.rests(), "the answer is not flushed");
        lease.flush().await.unwrap();
        assert!(turn.rests());

        client.write_all(&HEAD[..5]).await.unwrap();
        assert!(futures_util::FutureExt::now_or_never(read(&mut lease)).is_none());
        assert!(turn.rests(), "the beginning of a head stays in the gate");
        drop(lease);
        let mut gate = turn.take().unwrap();
        client.write_all(&HEAD[5..]).await.unwrap();
        assert!(std::future::poll_fn(|cx| gate.poll_head(cx)).await.unwrap());
        let (turn, mut lease) = Turn::begin(gate);
        assert_eq!(read(&mut lease).await, HEAD.len());
        assert!(!turn.rests(), "the head counts for the new turn");
    }

    #[tokio::test]
    async fn requests_that_came_together_are_all_begun_before_it_rests() {
        let (mut client, stream) = duplex(4096);
        let (turn, mut lease) = Turn::begin(Gate::new(stream));
        client.write_all(&HEAD.repeat(2)).await.unwrap();
        assert_eq!(read(&mut lease).await, HEAD.len() * 2);
        drop(turn.serve());
        assert!(!turn.rests(), "one of the two has not begun");
        drop(turn.serve());
        assert!(turn.rests());
    }

    #[tokio::test]
    async fn a_body_is_no_rest() {
        let (mut client, stream) = duplex(4096);
        let (turn, mut lease) = Turn::begin(Gate::new(stream));
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        client.write_all(head).await.unwrap();
        assert_eq!(read(&mut lease).await, head.len());
        drop(turn.serve());
        assert!(!turn.rests(), "the rest of the body comes");
        client.write_all(b"abc").await.unwrap();
        assert_eq!(read(&mut lease).await, 3);
        assert!(turn.rests());
    }
}
