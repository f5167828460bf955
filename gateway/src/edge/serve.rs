//! One client's connection: the beginning of TLS, then HTTP/1 behind the gate or HTTP/2, until it rests for too long or the edge ends.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mashines_fleet::id::MachineId;
use mashines_fleet::record::services::{Handler, ServicePort};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout_at};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::framing::LONGEST_HEAD;
use super::gate::Gate;
use super::hello::{self, Alert, Hello};
use super::rest::Rest;
use super::sites::Site;
use super::tally::Held;
use super::tls::Terms;
use super::turn::Turn;
use super::{Edge, Visit, proxy};

/// Header lines of a request: beyond it, 431.
const MOST_HEADERS: usize = 100;

/// What hyper holds of one connection, each way.
const BUFFER: usize = 64 * 1024;

/// HTTP/2: what may be under way to us, for a request and for a connection. The second bounds what a client can make us hold.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What is held of answers for a client that does not read, of each request.
const SEND_BUFFER: usize = 64 * 1024;
/// Requests that a client reset before anybody began with them (CVE-2023-44487).
const RESET_EARLY: usize = 32;
/// HTTP/2: a client that answers no ping for so long has gone.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// A client that takes nothing of an answer for so long has gone, or wants to hold a machine's places.
const STALL: Duration = Duration::from_secs(120);

/// What PostgreSQL's clients begin with when they want TLS (its protocol's `SSLRequest`); `S` is the yes.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How long a client may take for the last request after it was told that the connection ends because it rests.
const PARTING: Duration = Duration::from_secs(5);

/// How often it is looked whether a connection rests, or has to go: nothing of that is looked at with each request.
const LOOK: Duration = Duration::from_secs(1);

/// A connection whose TLS is ended here.
struct Begun {
    /// In a box: it is large, and is handed on a few times.
    stream: Box<TlsStream<TcpStream>>,
    visit: Visit,
    site: Arc<Site>,
    port: Arc<ServicePort>,
    _held: Held<MachineId>,
}

impl Edge {
    /// A connection that begins with TLS.
    pub(super) async fn tls(self: &Arc<Self>, stream: TcpStream, visit: Visit) -> io::Result<()> {
        // In a box, so that a connection that rests does not keep the room that its beginning needed.
        let Some(begun) = Box::pin(self.begin_tls(stream, visit)).await? else { return Ok(()) };
        let Begun { stream, visit, site, port, _held } = begun;
        if !port.has(Handler::Http) {
            return Box::pin(self.pass_ended(stream, &visit, &site)).await;
        }
        set_stall(stream.get_ref().0)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Box::pin(self.h2(stream, visit)).await,
            _ => self.h1(stream, visit).await,
        }
    }

    /// Leads a connection to its machine and ends its TLS; none when there is nothing left to do.
    async fn begin_tls(self: &Arc<Self>, mut stream: TcpStream, visit: Visit) -> io::Result<Option<Begun>> {
        let deadline = Instant::now() + Duration::from_secs(self.settings.handshake_s);
        let hello = timeout_at(deadline, hello::read(&mut stream)).await;
        let hello = hello.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some(name) = hello.name.clone() else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(io::Error::other("the client names no host"));
        };
        if hello.validates {
            return timeout_at(deadline, self.validate(stream, hello, &name)).await?.map(|()| None);
        }
        let refused = |why: &str| io::Error::other(format!("{name}: {why}"));
        let site = self.sites().find(&name).cloned();
        let Some(site) = site else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(refused("no machine has that name"));
        };
        let Some(port) = site.at(visit.port).map(|at| Arc::clone(&at.port)) else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(refused("the machine has no service at this port"));
        };
        let Some(_held) = self.visit_machine(&site.machine.id) else {
            hello::refuse(&mut stream, Alert::InternalError).await;
            return Err(refused("the machine has all the connections that it may have"));
        };
        let visit = Visit { sni: Some(name.as_str().into()), ..visit };
        if !port.has(Handler::Tls) && !port.has(Handler::PgTls) {
            return self.pass_untouched(stream, hello, &visit, &site).await.map(|()| None);
        }
        if self.certs.borrow().find(&name).is_none() {
            let ready = self.certs.borrow().has_secret();
            let alert = if ready { Alert::UnrecognizedName } else { Alert::InternalError };
            hello::refuse(&mut stream, alert).await;
            return Err(refused("there is no certificate for it yet; see: mashines certs"));
        }
        let config = self.tls.config(&terms(&port)).map_err(io::Error::other)?;
        let begun = StartHandshake::from_parts(hello.accepted, stream).into_stream(config);
        let stream = Box::new(timeout_at(deadline, begun).await??);
        Ok(Some(Begun { stream, visit, site, port, _held }))
    }

    /// An issuer looks whether a name leads here (RFC 8737 §3).
    async fn validate(&self, mut stream: TcpStream, hello: Hello, name: &str) -> io::Result<()> {
        let now = proxy::now();
        let digest = self.sites().tls_alpn_01(name, now).map(str::to_owned);
        let Some(digest) = digest else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(io::Error::other(format!("{name}: nobody waits for a validation")));
        };
        let config = self.tls.challenge(name, &digest).map_err(io::Error::other)?;
        let mut stream = StartHandshake::from_parts(hello.accepted, stream).into_stream(config).await?;
        stream.shutdown().await
    }

    /// A connection that begins without TLS: HTTP, or PostgreSQL, whose clients ask for TLS first (the handler `pg_tls`).
    pub(super) async fn plain(self: &Arc<Self>, mut stream: TcpStream, visit: Visit) -> io::Result<()> {
        let mut first = [0];
        let peeked = timeout_at(Instant::now() + self.keep_alive(), stream.peek(&mut first)).await??;
        // No request of HTTP begins with a zero.
        if peeked > 0 && first[0] == SSL_REQUEST[0] {
            let deadline = Instant::now() + Duration::from_secs(self.settings.handshake_s);
            let mut asked = [0; SSL_REQUEST.len()];
            timeout_at(deadline, stream.read_exact(&mut asked)).await??;
            if asked != SSL_REQUEST {
                return Err(io::Error::other("neither HTTP nor TLS nor PostgreSQL's request for TLS"));
            }
            stream.write_all(b"S").await?;
            return self.tls(stream, visit).await;
        }
        set_stall(&stream)?;
        self.h1(stream, visit).await
    }

    /// HTTP/1: hyper has the connection while requests come, and the gate alone while it rests.
    async fn h1<S>(self: &Arc<Self>, stream: S, visit: Visit) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let visit = Arc::new(visit);
        let mut gate = Gate::new(stream);
        let mut since = Instant::now();
        loop {
            let head = timeout_at(since + self.keep_alive(), poll_fn(|cx| gate.poll_head(cx)));
            let comes = tokio::select! {
                head = head => matches!(head, Ok(Ok(true))),
                () = self.closing.cancelled() => false,
            };
            if !comes {
                // Whether it hears that is its own affair.
                let _told = timeout_at(Instant::now() + PARTING, gate.shutdown()).await;
                return Ok(());
            }
            let Some(rests) = Box::pin(self.h1_requests(gate, &visit)).await? else { return Ok(()) };
            (gate, since) = (rests, Instant::now());
        }
    }

    /// Serves requests until there are none for a moment; then the stream comes back.
    async fn h1_requests<S>(
        self: &Arc<Self>,
        gate: Gate<S>,
        visit: &Arc<Visit>,
    ) -> io::Result<Option<Gate<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (turn, lease) = Turn::begin(gate);
        let service = service_fn(|request| {
            let serving = turn.serve();
            let answer = proxy::answer(Arc::clone(self), Arc::clone(visit), request);
            // In a box of its own, so that it is not carried about with the connection.
            Box::pin(async move { answer.await.map(|answer| answer.map(|body| body.within(serving))) })
        });
        let mut settings = http1::Builder::new();
        // The gate lets whole heads pass, and looks at the clock itself.
        settings.header_read_timeout(None).max_headers(MOST_HEADERS).max_header_size(LONGEST_HEAD);
        settings.max_buf_size(BUFFER);
        let connection = settings.serve_connection(TokioIo::new(lease), service).with_upgrades();
        let mut connection = Box::pin(connection);
        let (mut looks, mut requests, mut closing) = (looks(), 0, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    drop(connection);
                    if let Some(gate) = turn.take() {
                        linger(gate).await;
                    }
                    return told(ended).map(|()| None);
                }
                _ = looks.tick() => (),
            }
            if self.ending.is_cancelled() {
                return Err(io::Error::other("the edge ends"));
            }
            if self.closing.is_cancelled() && !closing {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            if turn.rests() && turn.requests() == requests && !closing {
                drop(connection);
                return Ok(turn.take());
            }
            requests = turn.requests();
        }
    }

    async fn h2<S>(self: &Arc<Self>, stream: S, visit: Visit) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let visit = Arc::new(visit);
        let rest = Rest::new();
        let service = service_fn(|request| {
            let busy = rest.busy();
            let answer = proxy::answer(Arc::clone(self), Arc::clone(&visit), request);
            // In a box: hyper moves it a few times before it is looked at.
            Box::pin(async move { answer.await.map(|answer| answer.map(|body| body.watched(busy))) })
        });
        let mut settings = http2::Builder::new(TokioExecutor::new());
        settings
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.settings.streams)
            .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESET_EARLY)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .enable_connect_protocol();
        let connection = settings.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let (mut looks, mut told_to_go) = (looks(), None);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => return told(ended),
                _ = looks.tick() => (),
            }
            if self.ending.is_cancelled() {
                return Err(io::Error::other("the edge ends"));
            }
            if rest.stalled(STALL) {
                return Err(io::Error::other("the client does not read"));
            }
            match told_to_go {
                None if self.closing.is_cancelled() || rest.longer_than(self.keep_alive()) => {
                    told_to_go = Some(Instant::now());
                    connection.as_mut().graceful_shutdown();
                }
                Some(when) if when.elapsed() >= PARTING && rest.longer_than(PARTING) => {
                    return Err(io::Error::other("it rested for too long"));
                }
                _ => (),
            }
        }
    }
}

/// Waits for a client that still sends what nobody will read: closing at once would have the kernel reset the connection, and the client lose
/// the answer that says why (RFC 9112 §9.6).
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut gate: Gate<S>) {
    if gate.is_at_head() {
        return;
    }
    let parting = async {
        // What hyper ends because of a fault it does not shut.
        let _shut = gate.shutdown().await;
        gate.forget().await
    };
    let _late = timeout_at(Instant::now() + PARTING, parting).await;
}

/// When a connection that somebody has is looked at.
fn looks() -> Interval {
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// The kernel ends a connection whose client takes nothing: data that is not acknowledged, or a window of zero.
fn set_stall(stream: &TcpStream) -> io::Result<()> {
    let most = u32::try_from(STALL.as_millis()).unwrap_or(u32::MAX);
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &most)?)
}

/// What the owner of a port chose of TLS.
fn terms(port: &ServicePort) -> Terms {
    let options = port.tls_options.as_ref();
    let told: &[String] = options.map_or(&[], |options| &options.alpn);
    let alpn = match (told, port.has(Handler::Http)) {
        ([], true) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        // What PostgreSQL 17's clients offer; older ones offer nothing.
        ([], false) if port.has(Handler::PgTls) => vec![b"postgresql".to_vec()],
        (told, _) => told.iter().map(|name| name.as_bytes().to_vec()).collect(),
    };
    let versions: &[String] = options.map_or(&[], |options| &options.versions);
    let has = |version: &str| versions.is_empty() || versions.iter().any(|told| told == version);
    Terms { alpn, tls12: has("TLSv1.2"), tls13: has("TLSv1.3") }
}

fn told(ended: hyper::Result<()>) -> io::Result<()> {
    ended.map_err(io::Error::other)
}
