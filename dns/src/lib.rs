//! Authoritative names of the fleet.
//!
//! ```text
//! replica ──project──▶ Zone ──┬── UDP: packet ──answer──▶ packet
//! (View)   pure, zone.rs      └── TCP: the same, framed
//! ```
//!
//! [`zone::Zone::project`] and [`answer::answer`] are pure. What is left here is sockets. The server never asks control
//! anything: it answers from the replica while control is down, and a new machine's name is served as soon as its
//! record is in the replica.

pub mod answer;
pub mod message;
pub mod reverse;
mod sshfp;
mod tcp;
pub mod tsig;
mod udp;
pub mod update;
pub mod zone;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use mashines_fleet::daemon::Common;
use mashines_fleet::view::View;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::zone::{Complaint, Zone};

/// The `[dns]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses that UDP and TCP are served on. Name each public address: behind `0.0.0.0` or `::` a host with
    /// several addresses would answer from another one than it was asked at.
    pub listen: Vec<SocketAddr>,
}

/// The role: binds, then serves until the daemon ends.
///
/// # Errors
/// An address cannot be bound, or a socket failed; the error names it.
pub async fn run(config: Config, common: Common) -> anyhow::Result<()> {
    let server = Server::bind(&config).await?;
    info!(addresses = ?server.addresses()?, "name server listens");
    server.serve(common.view.clone(), async move { common.stopped().await }).await
}

/// Sockets that are bound, so that whoever started them can say where before the first question comes.
#[derive(Debug)]
pub struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Server {
    /// Binds UDP and TCP at each address. Port 0 takes a free one, the same for both.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut server = Self { udp: Vec::new(), tcp: Vec::new() };
        anyhow::ensure!(!config.listen.is_empty(), "[dns] listen is empty: name the addresses to answer at");
        for address in &config.listen {
            if address.ip().is_unspecified() {
                warn!(%address, "listening at any address: on a host with several, answers may leave from another one than was asked");
            }
            let hint = "is another name server running there, or is this not one of the host's addresses?";
            let tcp = TcpListener::bind(address)
                .await
                .with_context(|| format!("listening for DNS on TCP {address}: {hint}"))?;
            let bound = tcp.local_addr()?;
            let udp = UdpSocket::bind(bound)
                .await
                .with_context(|| format!("listening for DNS on UDP {bound}: {hint}"))?;
            server.udp.push(udp);
            server.tcp.push(tcp);
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.tcp.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves what `views` says until `shutdown`.
    pub async fn serve(
        self,
        mut views: watch::Receiver<Arc<View>>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let mut complaints = Vec::new();
        let mut shown = Arc::clone(&views.borrow_and_update());
        let (zones, current) = watch::channel(project(&shown, &mut complaints));
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            tasks.spawn(udp::serve(socket, current.clone()));
        }
        for listener in self.tcp {
            tasks.spawn(tcp::serve(listener, current.clone()));
        }
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                changed = views.changed() => {
                    changed.context("the replica ended")?;
                    let view = Arc::clone(&views.borrow_and_update());
                    if !zone::is_same(&shown, &view) {
                        zones.send_replace(project(&view, &mut complaints));
                        shown = view;
                    }
                }
                Some(ended) = tasks.join_next() => {
                    ended.context("a DNS socket's task")?.context("a DNS socket")?;
                }
            }
        }
    }
}

/// Projects, and logs complaints that were not there before.
fn project(view: &View, known: &mut Vec<Complaint>) -> Arc<Zone> {
    let (zone, complaints) = Zone::project(view);
    for Complaint(text) in complaints.iter().filter(|complaint| !known.contains(complaint)) {
        warn!(revision = view.revision, "{text}");
    }
    *known = complaints;
    debug!(revision = view.revision, machines = view.machines.len(), "zone projected");
    Arc::new(zone)
}
