//! The TLS and HTTP edge: who asks for a name at ports 80 and 443 (and others that machines have) is led to its machine.
//!
//! ```text
//! accept ─▶ PROXY header? ─▶ places ─▶ first byte ─┬─▶ SSH (443): crate::ssh
//!                                                   ├─▶ TLS ─▶ hello ─▶ name ─▶ site ─┬─▶ acme-tls/1 (challenge)
//!                                                   │                                 ├─▶ pass: untouched, spliced
//!                                                   │                                 └─▶ end TLS ─┬─▶ pass: bytes
//!                                                   └─▶ HTTP ──────────────────────────────────────┴─▶ serve: hyper behind the gate
//!   each request: name (421, 400) ─▶ site ─▶ port ─▶ redirect? ─▶ health ─▶ place ─▶ machine (hold, wake) ─▶ answer, streamed
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`sites`], [`certs`] | names to machines, names to certificates: pure projections of the replica |
//! | [`hello`], [`tls`], [`tickets`] | the beginning of TLS, its settings, resumption at any entry |
//! | [`framing`], [`gate`] | where a request ends: stricter than hyper, against smuggling |
//! | [`request`], [`headers`] | whose request it is, what the machine is told |
//! | `serve`, [`turn`], `rest`, `proxy`, `upgrade` | a client's connection, whether it rests, one request, one that becomes another protocol |
//! | [`upstream`], `reach` | connections to machines: kept, or made, whatever the machine is doing |
//! | [`body`] | bodies, a frame at a time |
//! | [`places`], [`tally`] | how much at once |
//! | [`health`], `checks` | whether at all, and telling it |
//! | `pass` | bytes that nobody looks into |
//! | [`page`] | what is said when the machine does not answer |
//!
//! Invariants:
//! - Nothing is buffered but what one window holds; whoever reads slowly slows its own writer.
//! - Names are looked up at each request, so nothing here is tied to a host, an epoch or a record's life; connections to machines stay
//!   open over a move.
//! - What a client sends before a machine is chosen is bounded in bytes and in time.

pub mod body;
pub mod certs;
mod checks;
pub mod framing;
pub mod gate;
pub mod headers;
pub mod health;
pub mod hello;
pub mod page;
mod pass;
pub mod places;
mod proxy;
mod reach;
pub mod request;
mod rest;
mod serve;
pub mod sites;
pub mod tally;
pub mod tickets;
pub mod tls;
pub mod turn;
mod upgrade;
pub mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use mashines_fleet::daemon::Common;
use mashines_fleet::id::MachineId;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::certs::Certs;
use self::health::Health;
use self::places::Places;
use self::sites::Sites;
use self::tally::{Held, Tally};
use self::tls::Tls;
use self::upstream::Upstreams;
use crate::accounts::Accounts;
use crate::arrival::{Arrival, Speech};
use crate::control::Control;
use crate::directory::Directory;
use crate::limits::{Door, Limits, Refusal, Slot};

/// The `[gateway.edge]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Connections at once, of all and of one source, and how fast one source opens them.
    pub limits: Limits,
    /// Connections at once to names of one machine.
    pub per_machine: usize,
    /// Seconds for a TLS handshake.
    pub handshake_s: u64,
    /// Seconds that a connection may rest before and between requests; a request's head must be whole within them.
    pub keep_alive_s: u64,
    /// Requests of one HTTP/2 connection at once.
    pub streams: u32,
    /// Requests at once in one service of a machine whose owner sets no `hard_limit`, and the most that one may set.
    pub per_service: usize,
    /// Requests that wait for machines to start: all, and of one machine.
    pub holds: usize,
    /// Of one machine.
    pub holds_per_machine: usize,
    /// Proxies whose word about their clients is believed (`X-Forwarded-For`, `Forwarded`).
    pub trusted_proxies: Vec<IpNetwork>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits { total: 16_384, per_source: 512, per_source_per_second: 256 },
            per_machine: 8192,
            handshake_s: 10,
            keep_alive_s: 60,
            streams: 128,
            per_service: 4096,
            holds: 4096,
            holds_per_machine: 256,
            trusted_proxies: Vec::new(),
        }
    }
}

/// What all connections share.
pub struct Edge {
    settings: Settings,
    sites: watch::Receiver<Arc<Sites>>,
    certs: watch::Receiver<Arc<Certs>>,
    tls: Tls,
    /// Connections in all.
    pub door: Arc<Door>,
    machines: Arc<Tally<MachineId>>,
    holds: Arc<Tally<Option<MachineId>>>,
    places: Places,
    health: Arc<Health>,
    upstreams: Arc<Upstreams>,
    accounts: Arc<Accounts>,
    control: Control,
    directory: watch::Receiver<Arc<Directory>>,
    /// Connections that became another protocol.
    bridges: TaskTracker,
    /// Nobody is accepted any more: connections end with the request that they are at.
    closing: CancellationToken,
    /// Whoever is there has to go.
    ending: CancellationToken,
}

/// A client's connection, as far as it is known before its first request.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Both ends.
    pub arrival: Arrival,
    /// The public port.
    pub port: u16,
    /// The name of the TLS handshake; none without TLS.
    pub sni: Option<Arc<str>>,
}

impl Edge {
    /// An edge, with the tasks that it needs in `tasks`.
    pub fn new(
        settings: Settings,
        common: &Common,
        (control, accounts): (Control, Arc<Accounts>),
        directory: watch::Receiver<Arc<Directory>>,
        (bridges, closing, ending): (TaskTracker, CancellationToken, CancellationToken),
        tasks: &mut JoinSet<()>,
    ) -> Arc<Self> {
        let (sites, certs) = project(common, tasks);
        let health = Arc::new(Health::default());
        tasks.spawn(health::follow(Arc::clone(&health), sites.clone()));
        if control.is_known() {
            tasks.spawn(checks::tell(Arc::clone(&health), control.clone()));
        }
        let upstreams = Arc::new(Upstreams::default());
        tasks.spawn(Arc::clone(&upstreams).sweep());
        Arc::new(Self {
            tls: Tls::new(certs.clone(), common.secret.clone()),
            door: Door::new(settings.limits),
            settings,
            sites,
            certs,
            machines: Tally::new(),
            holds: Tally::new(),
            places: Places::default(),
            health,
            upstreams,
            accounts,
            control,
            directory,
            bridges,
            closing,
            ending,
        })
    }

    /// Takes a place for a connection.
    ///
    /// # Errors
    /// There is none.
    pub fn enter(&self, source: IpAddr) -> Result<Slot, Refusal> {
        self.door.enter(source, Instant::now())
    }

    /// What a client speaks at a port without SSH, by its first byte, which stays in the stream.
    ///
    /// # Errors
    /// It has gone, or says nothing for as long as a connection may rest.
    pub async fn speech(&self, stream: &TcpStream) -> std::io::Result<Speech> {
        let mut first = [0];
        match tokio::time::timeout(self.keep_alive(), stream.peek(&mut first)).await {
            Ok(Ok(0)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) if Speech::of(first[0]) == Speech::Tls => Ok(Speech::Tls),
            Ok(Ok(_)) => Ok(Speech::Other),
            Ok(Err(error)) => Err(error),
            Err(_silent) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Serves a connection to public port `port` that begins with that.
    pub async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        arrival: Arrival,
        port: u16,
        speech: Speech,
        slot: Slot,
    ) {
        let _slot = slot;
        if crate::dial::prepare(&stream).is_err() {
            return;
        }
        let peer = arrival.peer;
        let visit = Visit { arrival, port, sni: None };
        let ended = match speech {
            Speech::Tls => self.tls(stream, visit).await,
            Speech::Other | Speech::Ssh => self.plain(stream, visit).await,
        };
        match ended {
            Ok(()) => debug!(%peer, port, "edge: connection ended"),
            Err(error) => debug!(%peer, port, %error, "edge: connection ended"),
        }
    }

    /// Names to machines, as they are now.
    fn sites(&self) -> Arc<Sites> {
        Arc::clone(&self.sites.borrow())
    }

    /// A place among the connections of a machine.
    fn visit_machine(&self, machine: &MachineId) -> Option<Held<MachineId>> {
        self.machines.enter(machine.clone(), self.settings.per_machine)
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.settings.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.settings.keep_alive_s)
    }
}

/// The projections, which follow the replica and the secret.
fn project(
    common: &Common,
    tasks: &mut JoinSet<()>,
) -> (watch::Receiver<Arc<Sites>>, watch::Receiver<Arc<Certs>>) {
    let (mut views, mut secrets) = (common.view.clone(), common.secret.clone());
    let mut shown = Arc::clone(&views.borrow_and_update());
    let secret = secrets.borrow_and_update().clone();
    let (sites, sites_seen) = watch::channel(Arc::new(Sites::project(&shown, &Sites::default())));
    let (certs, certs_seen) =
        watch::channel(Arc::new(Certs::project(&shown, secret.as_ref(), &Certs::default())));
    tasks.spawn(async move {
        loop {
            let secret_changed = tokio::select! {
                changed = views.changed() => match changed {
                    Ok(()) => false,
                    // The replica's end is the daemon's end: what is known stays in force until then.
                    Err(_) => return std::future::pending().await,
                },
                Ok(()) = secrets.changed() => true,
            };
            let view = Arc::clone(&views.borrow_and_update());
            let secret = secrets.borrow_and_update().clone();
            if !secret_changed && sites::is_same(&shown, &view) {
                continue;
            }
            let (sites_now, certs_now) = (Arc::clone(&sites.borrow()), Arc::clone(&certs.borrow()));
            certs.send_replace(Arc::new(Certs::project(&view, secret.as_ref(), &certs_now)));
            sites.send_replace(Arc::new(Sites::project(&view, &sites_now)));
            shown = view;
        }
    });
    (sites_seen, certs_seen)
}
