//! Authoritative names of the fleet, and the resolver for a host's machines ([`internal`]).
//!
//! ```text
//! replica ──Projector──▶ Zones ──┬── UDP: packets ──answer──▶ packets     one thread a core, recvmmsg/sendmmsg
//! (View)    pure, zone/          ├── TCP: the same, framed
//!                                └── TLS: the same, padded
//! ```
//!
//! [`zone::Projector::apply`] and [`answer::answer`] are pure. What is left is sockets, limits and the cache of signatures. The server
//! never asks control anything: it answers from the replica while control is down, and a new machine's name is served as
//! soon as its record is in the replica.

pub mod answer;
pub mod cookie;
mod denial;
mod desk;
mod follow;
pub mod internal;
pub mod kind;
pub mod limit;
pub mod message;
mod mmsg;
pub mod name;
pub mod operations;
pub mod query;
pub mod reply;
pub mod reverse;
pub mod rrset;
mod server;
mod shares;
pub mod sign;
pub mod signer;
mod sshfp;
mod stream;
mod tls;
pub mod transfer;
pub mod tsig;
mod udp;
pub mod update;
pub mod zone;

use std::net::SocketAddr;

use anyhow::Context as _;
use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::rpc::Client;
use serde::{Deserialize, Serialize};
use tracing::info;

pub use crate::server::Server;
use crate::transfer::secondary::SecondaryConfig;

/// The `[dns]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses that UDP and TCP are served on. Name each public address: behind `0.0.0.0` or `::` a host with
    /// several addresses would answer from another one than it was asked at.
    pub listen: Vec<SocketAddr>,
    /// Addresses that TLS is served on (RFC 7858; the port is 853).
    pub tls_listen: Vec<SocketAddr>,
    /// Threads that answer UDP at each address; 0 for one a core.
    pub threads: usize,
    /// What this server calls itself in NSID and `hostname.bind`; nothing when empty.
    pub identity: String,
    /// What `version.bind` says; nothing when empty.
    pub version: String,
    /// Equal answers a second to one network over UDP; 0 for no limit.
    pub responses_per_second: u32,
    /// Signatures made a second for names that exist, and as many for those that do not.
    pub signatures_per_second: u32,
    /// Signatures kept, 80 bytes each.
    pub signatures_kept: usize,
    /// Servers that get copies of the zones and are told of changes.
    pub secondaries: Vec<SecondaryConfig>,
    /// Control's addresses, `https://ADDRESS:PORT`, to which dynamic updates are handed. The daemon fills them in.
    pub control: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tls_listen: Vec::new(),
            threads: 0,
            identity: String::new(),
            version: String::new(),
            responses_per_second: 200,
            signatures_per_second: 20_000,
            signatures_kept: 262_144,
            secondaries: Vec::new(),
            control: Vec::new(),
        }
    }
}

/// The role: binds, then serves until the daemon ends.
///
/// # Errors
/// An address cannot be bound, or a socket failed; the error names it.
pub fn run(config: Config, common: Common) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        let control = config.control.iter().map(|url| Client::to_control(&common.identity, url));
        let control = control.collect::<Result<Vec<_>, _>>().context("[dns] control")?;
        let server = Server::bind(&config).await?.with_control(control);
        info!(addresses = ?server.addresses()?, tls = ?server.tls_addresses()?, "name server listens");
        let (view, secret) = (common.view.clone(), common.secret.clone());
        server.serve(view, secret, async move { common.stopped().await }).await
    })
}
