//! One peer's client: a keep-alive pool, time-outs, size caps, typed JSON.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::id::HostId;
use crate::pki::{Identity, PeerName, PkiError};

/// The longest answer that is read, in bytes. A host's state with 1,000 machines is a tenth of it.
const MAX_ANSWER: usize = 16 << 20;
/// The longest line of a stream.
const MAX_LINE: usize = 4 << 20;
/// TCP and TLS: the peer's CPU may be busy with machines, and signatures are dear on an emulated one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer or a body without content: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A call that did not bring what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// Nothing is known of what the peer did: no connection, or it broke, or the time was over.
    #[error("{method} {url}: {why}")]
    Unanswered {
        /// The method.
        method: Method,
        /// The address.
        url: String,
        /// What happened.
        why: String,
        /// False when the request surely never reached the peer.
        sent: bool,
    },
    /// The peer answered with an error.
    #[error("{method} {url}: {status}: {message}")]
    Refused {
        /// The method.
        method: Method,
        /// The address.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// `code` (daemons) or `status` (the public API) of the body, when there is one.
        code: Option<String>,
        /// The body's `error`, else the beginning of the body.
        message: String,
    },
    /// The peer did as asked, and its answer is not understood.
    #[error("{method} {url}: the answer is not understood: {why}")]
    Garbled {
        /// The method.
        method: Method,
        /// The address.
        url: String,
        /// What the decoder said.
        why: String,
    },
}

impl RpcError {
    /// The status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unanswered { .. } | Self::Garbled { .. } => None,
        }
    }

    /// The code of a refusal, for programs.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => code.as_deref(),
            Self::Unanswered { .. } | Self::Garbled { .. } => None,
        }
    }

    /// The peer could not be asked: the outcome of the call is in doubt.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }

    /// What a person should read: the peer's own words when it spoke.
    pub fn message(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            Self::Unanswered { .. } | Self::Garbled { .. } => self.to_string(),
        }
    }
}

type Pool = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;

/// A client of one peer. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Client {
    pool: Pool,
    base: Arc<str>,
    timeout: Duration,
    headers: Arc<Vec<(HeaderName, HeaderValue)>>,
}

impl Client {
    /// To `base` (`https://ADDRESS:PORT`), whose certificate must carry `server_name`.
    pub fn new(tls: ClientConfig, base: &str, server_name: ServerName<'static>) -> Self {
        let connector = Connector { tls: TlsConnector::from(Arc::new(tls)), server_name };
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        let base = base.trim_end_matches('/').into();
        Self { pool, base, timeout: DEFAULT_TIMEOUT, headers: Arc::default() }
    }

    /// To another member's internal API, expecting that member's certificate.
    ///
    /// # Errors
    /// [`PkiError`] when the identity's key does not fit.
    pub fn to_peer(identity: &Identity, base: &str, peer: &PeerName) -> Result<Self, PkiError> {
        Ok(Self::new(identity.client_config()?, base, peer.server_name()?))
    }

    /// To a host daemon.
    ///
    /// # Errors
    /// As [`Client::to_peer`].
    pub fn to_host(
        identity: &Identity,
        host: &HostId,
        address: std::net::SocketAddr,
    ) -> Result<Self, PkiError> {
        Self::to_peer(identity, &format!("https://{address}"), &PeerName::host(host))
    }

    /// To control.
    ///
    /// # Errors
    /// As [`Client::to_peer`].
    pub fn to_control(identity: &Identity, url: &str) -> Result<Self, PkiError> {
        Self::to_peer(identity, url, &PeerName::control())
    }

    /// The same pool with another time-out for whole calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same pool with one more header on each request.
    #[must_use]
    pub fn with_header(&self, name: HeaderName, value: HeaderValue) -> Self {
        let mut headers = (*self.headers).clone();
        headers.push((name, value));
        Self { headers: Arc::new(headers), ..self.clone() }
    }

    /// Where it speaks to.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, RpcError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// PUT with a JSON body.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn put<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, RpcError> {
        self.call(Method::PUT, path, self.encode(&Method::PUT, path, body)?).await
    }

    /// POST with a JSON body; [`Empty`] when there is nothing to say.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn post<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, RpcError> {
        self.call(Method::POST, path, self.encode(&Method::POST, path, body)?).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, RpcError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// Any method, with a body that is already JSON (or empty), and further headers; the answer as it came.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Response<Bytes>, RpcError> {
        let whole = async {
            let response = self.send(&method, path, headers, body).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.unanswered(&method, path, chain(&*error), true))?;
            self.check(&method, path, Response::from_parts(parts, body.to_bytes()))
        };
        let slow = || self.unanswered(&method, path, format!("no answer within {:?}", self.timeout), true);
        tokio::time::timeout(self.timeout, whole).await.unwrap_or_else(|_| Err(slow()))
    }

    /// GET of an endless answer of lines. The time-out covers the answer's head only.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn lines(&self, path: &str) -> Result<Lines, RpcError> {
        let method = Method::GET;
        let slow = || self.unanswered(&method, path, format!("no answer within {:?}", self.timeout), true);
        let response = tokio::time::timeout(self.timeout, self.send(&method, path, &[], Bytes::new()));
        let response = response.await.unwrap_or_else(|_| Err(slow()))?;
        if response.status().is_success() {
            let url = self.url(path);
            return Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), scanned: 0, url });
        }
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(self.timeout, Limited::new(body, MAX_LINE).collect()).await;
        let body = body.map(|b| b.map(|c| c.to_bytes()).unwrap_or_default()).unwrap_or_default();
        match self.check(&method, path, Response::from_parts(parts, body)) {
            Err(refused) => Err(refused),
            Ok(_) => Err(self.garbled(&method, path, "an answer that is neither good nor bad".to_owned())),
        }
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, RpcError> {
        let answer = self.request(method.clone(), path, &[], body).await?.into_body();
        let answer = if answer.is_empty() { Bytes::from_static(b"{}") } else { answer };
        serde_json::from_slice(&answer).map_err(|error| self.garbled(&method, path, error.to_string()))
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Response<Incoming>, RpcError> {
        let mut request = Request::builder().method(method).uri(self.url(path));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in self.headers.iter().chain(headers) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| self.unanswered(method, path, error.to_string(), false))?;
        let answer = self.pool.request(request).await;
        answer.map_err(|error| self.unanswered(method, path, chain(&error), !error.is_connect()))
    }

    fn check(
        &self,
        method: &Method,
        path: &str,
        answer: Response<Bytes>,
    ) -> Result<Response<Bytes>, RpcError> {
        #[derive(Deserialize)]
        struct Body {
            error: String,
            #[serde(alias = "status")]
            code: Option<String>,
        }
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let (code, message) = match serde_json::from_slice::<Body>(answer.body()) {
            Ok(body) => (body.code, body.error),
            Err(_) => (None, String::from_utf8_lossy(answer.body()).chars().take(500).collect()),
        };
        Err(RpcError::Refused { method: method.clone(), url: self.url(path), status, code, message })
    }

    fn encode<B: Serialize>(&self, method: &Method, path: &str, body: &B) -> Result<Bytes, RpcError> {
        let json = serde_json::to_vec(body);
        json.map(Bytes::from).map_err(|error| self.unanswered(method, path, error.to_string(), false))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn unanswered(&self, method: &Method, path: &str, why: String, sent: bool) -> RpcError {
        RpcError::Unanswered { method: method.clone(), url: self.url(path), why, sent }
    }

    fn garbled(&self, method: &Method, path: &str, why: String) -> RpcError {
        RpcError::Garbled { method: method.clone(), url: self.url(path), why }
    }
}

/// An error with its causes, which hyper keeps below a general word.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// An endless answer, line by line.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line's end.
    scanned: usize,
    url: String,
}

impl Lines {
    /// The next line without its end; none when the peer ended the answer. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`RpcError`] when the connection broke or a line is longer than 4 MiB.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RpcError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.scanned + at + 1);
                line.truncate(line.len() - 1);
                self.scanned = 0;
                return Ok(Some(line.freeze()));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(self.broken(format!("a line is longer than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(self.broken(chain(&error))),
                None => return Ok(None),
            }
        }
    }

    fn broken(&self, why: String) -> RpcError {
        RpcError::Unanswered { method: Method::GET, url: self.url.clone(), why, sent: true }
    }
}

/// Opens TCP and TLS with the fixed server name, whatever the address is.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    server_name: ServerName<'static>,
}

impl tower::Service<Uri> for Connector {
    type Response = Tls;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Tls>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tls, server_name } = self.clone();
        Box::pin(async move {
            let open = async {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
                stream.set_nodelay(true)?;
                tls.connect(server_name, stream).await
            };
            let slow = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no TLS connection within 5 s");
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, open).await.unwrap_or_else(|_| Err(slow()))?;
            Ok(Tls(TokioIo::new(stream)))
        })
    }
}

/// A TLS connection as hyper's pool wants it.
struct Tls(TokioIo<TlsStream<TcpStream>>);

impl Connection for Tls {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
