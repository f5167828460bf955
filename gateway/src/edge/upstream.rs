//! Connections to machines, kept for the next request.
//!
//! Invariants:
//! - An HTTP/1 connection is driven by the task of the request that has it, and by nobody while it rests: no task of its own, no
//!   message between tasks for each frame.
//! - It goes back when the answer was read to its end, and only then; so it holds nothing of an earlier request.
//! - A connection belongs to a machine's address and port, never to a host or an epoch: it stays open over a move.
//! - How many rest is bounded, for one port and for all, and for how long.
//! - None takes requests for more than a few seconds: a machine whose server was replaced (`git push`) is not held to the old one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::body::Upload;
use super::framing::LONGEST_HEAD;
use crate::metered::Metered;

/// How long a connection takes new requests, and how long one may rest. What passes TCP on in a machine, as the front of pushed releases does,
/// has the next connection go to the next release; one that is never at rest would stay with the last. Servers wait for longer than
/// that, and whoever closes first loses no request.
const AGE: Duration = Duration::from_secs(5);

/// How many rest for one port, and for all.
const RESTING_EACH: usize = 512;
const RESTING: usize = 8192;

/// Header lines of an answer.
const MOST_HEADERS: usize = 128;

/// HTTP/2: what may be under way to us, for a request and for the connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

type Io = TokioIo<Metered>;

/// An HTTP/1 connection to a machine.
struct H1 {
    sender: http1::SendRequest<Upload>,
    connection: Pin<Box<http1::Connection<Io, Upload>>>,
    over: bool,
    made: Instant,
}

impl H1 {
    /// Lets the connection work.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over && self.connection.as_mut().poll(cx).is_ready() {
            self.over = true;
        }
    }
}

/// The connections that rest.
#[derive(Default)]
struct Resting {
    sum: usize,
    h1: HashMap<SocketAddr, Vec<H1>>,
    h2: HashMap<SocketAddr, (http2::SendRequest<Upload>, Instant)>,
}

/// Connections to machines.
#[derive(Default)]
pub struct Upstreams(Mutex<Resting>);

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstreams")
    }
}

/// A connection that one request has.
pub struct Checkout {
    h1: H1,
    address: SocketAddr,
    /// It was used before: it may have been closed by the machine meanwhile.
    pub reused: bool,
    home: Arc<Upstreams>,
}

impl Checkout {
    /// Lets the connection work.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.h1.drive(cx);
    }

    /// Keeps it for the next request.
    pub fn give_back(self) {
        if self.h1.over || self.h1.made.elapsed() >= AGE {
            return;
        }
        let mut resting = self.home.lock();
        let sum = resting.sum;
        let those = resting.h1.entry(self.address).or_default();
        if those.len() < RESTING_EACH && sum < RESTING {
            those.push(self.h1);
            resting.sum += 1;
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// hyper's; with the request itself when nothing of it was sent.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        let answer = self.h1.sender.try_send_request(request);
        let h1 = (&mut self.h1.connection, &mut self.h1.over);
        let (connection, over) = h1;
        tokio::pin!(answer);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if !*over && connection.as_mut().poll(cx).is_ready() {
                *over = true;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }
}

impl Upstreams {
    fn lock(&self) -> std::sync::MutexGuard<'_, Resting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that rests and still works.
    pub async fn resting(self: &Arc<Self>, address: SocketAddr) -> Option<Checkout> {
        loop {
            let mut h1 = {
                let mut resting = self.lock();
                let h1 = resting.h1.get_mut(&address)?.pop()?;
                resting.sum -= 1;
                h1
            };
            let good = std::future::poll_fn(|cx| {
                // Once to notice the end of the last answer, or of the connection; and once to say that it is ready.
                h1.drive(cx);
                h1.drive(cx);
                Poll::Ready(!h1.over && h1.sender.is_ready())
            });
            if good.await && h1.made.elapsed() < AGE {
                return Some(Checkout { h1, address, reused: true, home: Arc::clone(self) });
            }
        }
    }

    /// A new HTTP/1 connection over `stream`.
    ///
    /// # Errors
    /// hyper's.
    pub async fn begin(self: &Arc<Self>, stream: Metered, address: SocketAddr) -> hyper::Result<Checkout> {
        let (sender, connection) = settings().handshake(TokioIo::new(stream)).await?;
        let h1 = H1 { sender, connection: Box::pin(connection), over: false, made: Instant::now() };
        Ok(Checkout { h1, address, reused: false, home: Arc::clone(self) })
    }

    /// The machine's HTTP/2 connection.
    pub fn shared(&self, address: SocketAddr) -> Option<http2::SendRequest<Upload>> {
        let mut resting = self.lock();
        let (sender, made) = resting.h2.get(&address)?;
        // What is under way on it goes on to its end.
        if sender.is_closed() || made.elapsed() >= AGE {
            resting.h2.remove(&address);
            return None;
        }
        Some(sender.clone())
    }

    /// A new HTTP/2 connection over `stream`, shared from now on. It has a task, since many requests are in it.
    ///
    /// # Errors
    /// hyper's.
    pub async fn begin_shared(
        &self,
        stream: Metered,
        address: SocketAddr,
    ) -> hyper::Result<http2::SendRequest<Upload>> {
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(60));
        let (sender, connection) = settings.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "edge: the machine's connection ended");
            }
        });
        self.lock().h2.insert(address, (sender.clone(), Instant::now()));
        Ok(sender)
    }

    /// Closes what has rested for long; runs until the edge ends.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = interval(AGE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let old = self.take_old(Instant::now());
            drop(old);
        }
    }

    /// The connections that are to be closed: outside of the lock.
    fn take_old(&self, now: Instant) -> Vec<H1> {
        let mut resting = self.lock();
        let mut old = Vec::new();
        resting.h1.retain(|_, those| {
            let (gone, kept) = those.drain(..).partition(|h1| now.duration_since(h1.made) >= AGE);
            *those = kept;
            let gone: Vec<_> = gone;
            old.extend(gone);
            !those.is_empty()
        });
        resting.h2.retain(|_, (sender, made)| !sender.is_closed() && made.elapsed() < AGE);
        resting.sum -= old.len();
        old
    }
}

fn settings() -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings.max_headers(MOST_HEADERS).max_header_size(LONGEST_HEAD);
    settings
}

/// A connection of its own for one request that may become another protocol; it has a task.
///
/// # Errors
/// hyper's.
pub async fn begin_upgradable(stream: Metered) -> hyper::Result<http1::SendRequest<Upload>> {
    let (sender, connection) = settings().handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ended = connection.with_upgrades().await;
    });
    Ok(sender)
}
