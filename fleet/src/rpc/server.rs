//! A listener for members (with certificates) and, where it is told so, for people (with tokens).

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::pki::PeerName;

/// What a listener bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections in all; more wait in the kernel's queue.
    pub connections: usize,
    /// Open connections of one address; more are closed at once.
    pub per_address: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for a request's head; an idle connection is closed after it.
    pub head: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_address: 512,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
        }
    }
}

/// Who sent a request: in the extensions of every request that [`serve`] hands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name of its verified certificate; none when it showed none.
    pub name: Option<PeerName>,
    /// Where it came from.
    pub address: SocketAddr,
}

/// Serves until `shutdown` is done; connections that are open then are ended.
///
/// # Errors
/// None while it runs: a connection's error ends that connection, and a full table of descriptors is waited out.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: ServerConfig,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let counts = Counts::default();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => return Ok(()),
            _ = connections.join_next(), if connections.len() >= limits.connections => continue,
            accepted = listener.accept(), if connections.len() < limits.connections => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // EMFILE and its like last until some connection ends; trying at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = counts.take(address.ip(), limits.per_address) else { continue };
        let (acceptor, app) = (acceptor.clone(), app.clone());
        connections.spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(stream, address, acceptor, app, limits).await {
                tracing::debug!(%address, %error, "connection ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    app: Router,
    limits: Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let name = certificate.map(PeerName::of_certificate).transpose()?;
    let peer = Peer { name, address };
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        app.clone().oneshot(request)
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    let http2 = &mut server.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(limits.head).max_concurrent_streams(64);
    server.serve_connection(TokioIo::new(stream), service).await
}

/// Open connections by address.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One counted connection; dropping it gives the place back.
struct Slot {
    counts: Counts,
    address: IpAddr,
}

impl Counts {
    fn take(&self, address: IpAddr, cap: usize) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= cap {
            return None;
        }
        *count += 1;
        Some(Slot { counts: self.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
