//! One host's work: starts monitors, volumes, images, both sides of a move.
//!
//! ```text
//!  control ──mTLS──▶ api ──▶ host ──┬─ lifecycle  boot, stop, remove, what follows an exit
//!                                   ├─ migrate    incoming, outgoing, cancel, resolve, finish
//!                                   └─ volumes
//!            decide: pure rules        │
//!            instance, moves: records  ▼
//!                         machine (slot and lock) ◀── supervise (process, status) ── mashines-vmm
//! ```
//!
//! Invariants:
//! - Nothing starts because a daemon or a host came back; control's word starts machines ([`decide`]).
//! - One monitor a machine on one host, kept by a lock that the kernel releases with the process ([`process`]).
//! - Monitors outlive this daemon; a restart finds them again and deals with those that ended meanwhile ([`host`]).
//! - A call that fails leaves nothing behind, or says what.

pub mod agent;
pub mod api;
pub mod capacity;
pub mod config;
pub mod decide;
pub mod error;
pub mod files;
pub mod host;
pub mod image;
pub mod instance;
pub mod layout;
pub mod lifecycle;
pub mod lines;
pub mod machine;
pub mod migrate;
pub mod monitor;
pub mod moves;
pub mod network;
pub mod process;
pub mod spec;
mod supervise;
pub mod volumes;

use std::sync::Arc;

use anyhow::Context as _;
use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::host_api::HostState;
use mashines_fleet::pki::ClientCertificates;
use mashines_fleet::rpc::{Limits, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use crate::config::{Config, Node};
use crate::host::Host;

/// The role: takes up what runs, then serves control until the daemon ends. Monitors live on.
///
/// Every change of what is here goes to `state`, for whoever reports it.
///
/// # Errors
/// The state directory cannot be used, the address cannot be bound, or the certificate does not serve.
pub fn run(
    node: Node,
    config: Config,
    common: Common,
    state: watch::Sender<HostState>,
) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        let listen = config.listen;
        let host = Host::open(node, config)?;
        host.adopt().await?;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listen on {listen} for control ([host] listen)"))?;
        tracing::info!(%listen, state = %host.layout.state().display(), "host: serving control");
        let tls = common.identity.server_config(ClientCertificates::Required)?;
        let publish = tokio::spawn(publish(Arc::clone(&host), state));
        let served = serve(listener, api::router(host), tls, Limits::default(), common.stopped()).await;
        publish.abort();
        served.context("serve control")
    })
}

/// Hands every change on. Changes that come while one is handed on are one.
async fn publish(host: Arc<Host>, state: watch::Sender<HostState>) {
    let mut changes = host.changes();
    loop {
        changes.borrow_and_update();
        let source = Arc::clone(&host);
        // It reads directories.
        if let Ok(now) = tokio::task::spawn_blocking(move || source.state()).await {
            state.send_replace(now);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // Images come and go without a word, and CPU times run.
            () = tokio::time::sleep(std::time::Duration::from_secs(3)) => {}
        }
    }
}
