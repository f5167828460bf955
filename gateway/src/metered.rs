//! A connection to a machine whose bytes, both ways, are paid for by the machine's account ([`crate::accounts`]).
//!
//! What has passed is paid for, and the next of the same direction waits: so a reader's buffer is never larger than what one read
//! brought, and whoever is too fast is slowed by its own TCP window. Without a limit it is a plain connection, spliced in the kernel
//! where nobody looks into it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};

use crate::accounts::Purse;
use crate::splice::{self, Moved};

/// What is held of each direction where the kernel cannot move the bytes.
const BUFFER: usize = 16 * 1024;

/// The connection.
#[derive(Debug)]
pub struct Metered {
    stream: TcpStream,
    purse: Purse,
    /// What was read last is not due yet.
    reading: Wait,
    /// What was written last is not due yet.
    writing: Wait,
}

/// A pause of one direction.
#[derive(Debug, Default)]
struct Wait(Option<Pin<Box<Sleep>>>);

impl Wait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.0 {
            ready!(sleep.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }

    fn after(&mut self, purse: &Purse, bytes: usize) {
        if bytes > 0
            && let Some(due) = purse.due(bytes)
        {
            self.0 = Some(Box::pin(sleep_until(due)));
        }
    }
}

impl Metered {
    /// A connection that `purse` pays for.
    pub fn new(stream: TcpStream, purse: Purse) -> Self {
        Self { stream, purse, reading: Wait::default(), writing: Wait::default() }
    }

    /// Joins it with a client's connection until both directions have ended, or one failed.
    ///
    /// # Errors
    /// Either connection's.
    pub async fn join(mut self, client: &mut TcpStream) -> io::Result<Moved> {
        if self.purse.is_free() {
            return splice::join(client, &self.stream).await;
        }
        let (forth, back) = copy_bidirectional_with_sizes(client, &mut self, BUFFER, BUFFER).await?;
        Ok(Moved { forth, back })
    }

    fn written(&mut self, outcome: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(bytes) = outcome {
            self.writing.after(&self.purse, bytes);
        }
        Poll::Ready(outcome)
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.reading.poll(cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.reading.after(&this.purse, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writing.poll(cx));
        let outcome = ready!(Pin::new(&mut this.stream).poll_write(cx, data));
        this.written(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writing.poll(cx));
        let outcome = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, data));
        this.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
