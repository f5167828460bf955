//! One client's connection: the beginning of TLS, then HTTP/1 behind the gate or HTTP/2, until it rests for too long or the edge ends.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mashines_fleet::record::services::{Handler, ServicePort};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::framing::LONGEST_HEAD;
use super::gate::Gate;
use super::hello::{self, Alert, Hello};
use super::sites::Site;
use super::tls::Terms;
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

/// How long a client may take for the last request after it was told that the connection ends because it rests.
const PARTING: Duration = Duration::from_secs(5);

impl Edge {
    /// A connection that begins with TLS.
    pub(super) async fn tls(self: &Arc<Self>, mut stream: TcpStream, visit: Visit) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.settings.handshake_s);
        // In a box, so that a connection that rests does not keep the room that its handshake needed.
        let hello = Box::pin(timeout_at(deadline, hello::read(&mut stream))).await;
        let hello = hello.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some(name) = hello.name.clone() else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(io::Error::other("the client names no host"));
        };
        if hello.validates {
            return Box::pin(timeout_at(deadline, self.validate(stream, hello, &name))).await?;
        }
        let refused = |why: &str| io::Error::other(format!("{name}: {why}"));
        let sites = self.sites();
        let site = sites.find(&name).cloned();
        drop(sites);
        let Some(site) = site else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(refused("no machine has that name"));
        };
        let Some(port) = site.at(visit.port).map(|(_, port)| port.clone()) else {
            hello::refuse(&mut stream, Alert::UnrecognizedName).await;
            return Err(refused("the machine has no service at this port"));
        };
        let Some(_held) = self.visit_machine(&site.machine.id) else {
            hello::refuse(&mut stream, Alert::InternalError).await;
            return Err(refused("the machine has all the connections that it may have"));
        };
        let visit = Visit { sni: Some(name.as_str().into()), ..visit };
        if !port.has(Handler::Tls) {
            return Box::pin(self.pass_untouched(stream, hello, &visit, &site)).await;
        }
        if self.certs.borrow().find(&name).is_none() {
            let ready = self.certs.borrow().has_secret();
            let alert = if ready { Alert::UnrecognizedName } else { Alert::InternalError };
            hello::refuse(&mut stream, alert).await;
            return Err(refused("there is no certificate for it yet; see: mashines certs"));
        }
        let config = self.tls.config(&terms(&port)).map_err(io::Error::other)?;
        let begun = StartHandshake::from_parts(hello.accepted, stream).into_stream(config);
        let stream = Box::pin(timeout_at(deadline, begun)).await??;
        self.after_tls(stream, visit, &site, &port).await
    }

    async fn after_tls(
        self: &Arc<Self>,
        stream: TlsStream<TcpStream>,
        visit: Visit,
        site: &Arc<Site>,
        port: &ServicePort,
    ) -> io::Result<()> {
        if !port.has(Handler::Http) {
            return Box::pin(self.pass_ended(stream, &visit, site)).await;
        }
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.h2(stream, visit).await,
            _ => self.h1(stream, visit).await,
        }
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

    /// A connection that begins without TLS.
    pub(super) async fn http(self: &Arc<Self>, stream: TcpStream, visit: Visit) -> io::Result<()> {
        self.h1(stream, visit).await
    }

    async fn h1<S>(self: &Arc<Self>, stream: S, visit: Visit) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let visit = Arc::new(visit);
        let service = service_fn(|request| proxy::answer(Arc::clone(self), Arc::clone(&visit), request));
        let mut settings = http1::Builder::new();
        settings
            .timer(TokioTimer::new())
            .header_read_timeout(self.keep_alive())
            .max_headers(MOST_HEADERS)
            .max_header_size(LONGEST_HEAD)
            .max_buf_size(BUFFER);
        let connection = settings.serve_connection(TokioIo::new(Gate::new(stream)), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return told(ended),
            () = self.closing.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection => told(ended),
            () = self.ending.cancelled() => Err(io::Error::other("the edge ends")),
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
            async move {
                let answer = answer.await;
                drop(busy);
                answer
            }
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
        tokio::select! {
            ended = connection.as_mut() => return told(ended),
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                return tokio::select! {
                    ended = connection => told(ended),
                    () = self.ending.cancelled() => Err(io::Error::other("the edge ends")),
                };
            }
            () = rest.longer_than(self.keep_alive()) => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection => told(ended),
            () = rest.longer_than(PARTING) => Err(io::Error::other("it rested for too long")),
            () = self.ending.cancelled() => Err(io::Error::other("the edge ends")),
        }
    }
}

/// What the owner of a port chose of TLS.
fn terms(port: &ServicePort) -> Terms {
    let options = port.tls_options.as_ref();
    let told: &[String] = options.map_or(&[], |options| &options.alpn);
    let alpn = match (told, port.has(Handler::Http)) {
        ([], true) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        (told, _) => told.iter().map(|name| name.as_bytes().to_vec()).collect(),
    };
    let versions: &[String] = options.map_or(&[], |options| &options.versions);
    let has = |version: &str| versions.is_empty() || versions.iter().any(|told| told == version);
    Terms { alpn, tls12: has("TLSv1.2"), tls13: has("TLSv1.3") }
}

fn told(ended: hyper::Result<()>) -> io::Result<()> {
    ended.map_err(io::Error::other)
}

/// How long an HTTP/2 connection has had no request.
#[derive(Debug, Clone)]
struct Rest(Arc<Resting>);

#[derive(Debug)]
struct Resting {
    open: AtomicUsize,
    since: Mutex<Instant>,
}

/// A request is under way.
struct Busy(Rest);

impl Rest {
    fn new() -> Self {
        Self(Arc::new(Resting { open: AtomicUsize::new(0), since: Mutex::new(Instant::now()) }))
    }

    fn busy(&self) -> Busy {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Returns when there has been no request for that long.
    async fn longer_than(&self, most: Duration) {
        loop {
            let since = *self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
            let busy = self.0.open.load(Ordering::Relaxed) > 0;
            let due = if busy { Instant::now() + most } else { since + most };
            if !busy && due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let rest = &self.0.0;
        *rest.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        rest.open.fetch_sub(1, Ordering::Relaxed);
    }
}
