//! Every public door: SSH (lobby, machines, jump), shared IPv4 ports, TLS and HTTP.
//!
//! | module | what |
//! | --- | --- |
//! | [`directory`], [`route`] | who there is, who may enter what: pure projections of the replica |
//! | [`ssh`] | port 22: sessions, forwarding, the lobby's front |
//! | [`upstream`] | the gateway's own connections into machines |
//! | [`lobby`] | the CLI's commands for people who name no machine |
//! | [`edge`] | ports 443 and 80: TLS, HTTP, names to machines |
//! | [`ports`], [`splice`] | shared IPv4 ports, through the kernel |
//! | [`proxied`] | who a load balancer speaks for |
//! | [`certificate`] | user certificates of accounts' own CAs |
//! | [`git`] | what `git push` asks for |
//! | [`arrival`] | both ends of a connection, and what is spoken on it |
//! | [`limits`] | how many connections, how fast, before anybody is known |
//! | [`strangers`] | those of port 22 that have proved no key: who waits, who goes |
//! | [`accounts`], `metered` | how many sessions, how fast, of one account |
//! | `recording` | what terminals showed |
//!
//! Control is asked for certificates (kept on disk, renewed early), the lobby's commands, accounts for newcomers, and to start or make
//! a machine that somebody comes for. Everything else goes on while it is down.

pub mod accounts;
pub mod arrival;
pub mod certificate;
pub mod control;
pub mod dial;
pub mod directory;
pub mod edge;
mod farewell;
pub mod git;
pub mod host_key;
pub mod keys;
pub mod limits;
pub mod lobby;
mod metered;
pub mod ports;
pub mod proxied;
mod recording;
pub mod route;
pub mod splice;
pub mod ssh;
pub mod strangers;
pub mod upstream;
mod wake;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::id::HostId;
use mashines_fleet::view::View;
use mashines_ssh::algorithms;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::accounts::{AccountLimits, Accounts};
use crate::control::Control;
use crate::directory::Directory;
use crate::edge::Edge;
use crate::host_key::HostKey;
use crate::limits::{Door, Limits};
use crate::lobby::Lobby;
use crate::ports::Ports;
use crate::proxied::Balancers;
use crate::recording::Recordings;
pub use crate::recording::prune::RecordingLimits;
use crate::ssh::{Gateway, Listens};
use crate::strangers::Strangers;
use crate::upstream::Pool;
use crate::upstream::credentials::Credentials;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// The public port of HTTP.
const HTTP: u16 = 80;

/// The `[gateway]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses where SSH is ended: `["203.0.113.160:22", "[2001:db8:160::22]:22"]`.
    pub ssh_listen: Vec<SocketAddr>,
    /// Addresses of public port 443, where SSH is told apart from TLS: `["203.0.113.160:443"]`.
    #[serde(default)]
    pub tls_listen: Vec<SocketAddr>,
    /// Addresses of public port 80: `["203.0.113.160:80"]`.
    #[serde(default)]
    pub http_listen: Vec<SocketAddr>,
    /// Addresses of other public ports that machines' services may have: TLS, or HTTP without it.
    #[serde(default)]
    pub service_listen: Vec<ServiceListen>,
    /// The TLS and HTTP edge.
    #[serde(default)]
    pub edge: edge::Settings,
    /// Addresses that machines' shared ports are bound at; none when this entry has no shared ports.
    #[serde(default)]
    pub ports_bind: Vec<IpAddr>,
    /// This entry, as machines' shared ports name it. The host in the daemon's certificate when it is not set.
    #[serde(default)]
    pub entry: Option<HostId>,
    /// Control's addresses, for certificates and the lobby.
    #[serde(default)]
    pub control: Vec<String>,
    /// The host key's file; `gateway/host_key` in the state directory when it is not set. Made where there is none.
    #[serde(default)]
    pub host_key: Option<PathBuf>,
    /// The port of machines' sshd.
    #[serde(default = "ssh_port")]
    pub machine_port: u16,
    /// SSH clients must agree on a post-quantum key exchange (`mlkem768x25519-sha256`: OpenSSH 9.9 and later, paramiko 5). Without it, clients as old
    /// as any are served as well as they can be: PuTTY, dropbear, OpenSSH of Debian 12.
    #[serde(default)]
    pub post_quantum_only: bool,
    /// Seconds to prove a key.
    #[serde(default = "grace")]
    pub login_grace_s: u64,
    /// Seconds that a connection to a machine waits for its next channel; with 0 each channel has a connection of its own.
    #[serde(default = "machine_idle")]
    pub machine_idle_s: u64,
    /// Networks of load balancers: a connection from there begins with a PROXY header (version 1 or 2), which says who the client is.
    #[serde(default)]
    pub proxy_from: Vec<IpNetwork>,
    /// Limits of port 22. Connections that have proved no key get a quarter of the places.
    #[serde(default = "Limits::of_ssh")]
    pub ssh_limits: Limits,
    /// Limits of all shared ports together.
    #[serde(default)]
    pub port_limits: Limits,
    /// What one account may have open through this gateway.
    #[serde(default)]
    pub account_limits: AccountLimits,
    /// The directory for recordings of sessions in machines whose owner wants them; `gateway/recordings` in the state directory when it
    /// is not set.
    #[serde(default)]
    pub recordings: Option<PathBuf>,
    /// How long recordings are kept: 90 days and 10 GiB where nothing is set.
    #[serde(default)]
    pub recording_limits: RecordingLimits,
    /// Seconds that sessions have to end by themselves when the gateway is stopped.
    #[serde(default = "drain")]
    pub drain_s: u64,
}

/// An address of a public port that machines' services may have.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceListen {
    /// The address: `"203.0.113.160:8443"`.
    pub listen: SocketAddr,
    /// The public port, where it is not the address's: behind a balancer that changes it.
    #[serde(default)]
    pub port: Option<u16>,
}

fn drain() -> u64 {
    5
}

fn ssh_port() -> u16 {
    22
}

fn grace() -> u64 {
    30
}

fn machine_idle() -> u64 {
    60
}

/// The role: binds, then serves until the daemon ends.
///
/// # Errors
/// An address cannot be bound, or a key's file cannot be used; the error names it.
pub fn run(config: Config, common: Common) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        let doors = Doors::open(&config, &common).await?;
        info!(ssh = ?doors.ssh_addresses()?, "gateway listens");
        doors.serve(common).await
    })
}

/// The gateway's doors, bound and ready.
pub struct Doors {
    listeners: Vec<(TcpListener, Listens)>,
    recordings: Recordings,
    host_key: HostKey,
    credentials: Arc<Credentials>,
    control: Control,
    entry: Option<HostId>,
    config: Config,
}

impl Doors {
    /// Loads the keys and binds the addresses.
    pub async fn open(config: &Config, common: &Common) -> anyhow::Result<Self> {
        let directory = common.state_dir.join("gateway");
        let host_key = config.host_key.clone().unwrap_or_else(|| directory.join("host_key"));
        let algorithms =
            if config.post_quantum_only { algorithms::post_quantum() } else { algorithms::preferred() };
        let host_key = HostKey::load(&host_key, algorithms)?;
        let credentials = Credentials::load(&directory)?;
        let control = Control::new(&common.identity, &config.control).context("the entry's certificate")?;
        let mut listeners = Vec::new();
        for address in &config.ssh_listen {
            let listener = listen(*address).with_context(|| {
                format!("listening for SSH on {address}: is the host's own sshd there? Move that to another port or address")
            })?;
            listeners.push((listener, Listens::Ssh));
        }
        for address in &config.tls_listen {
            let listener = listen(*address).with_context(|| {
                format!("listening for SSH and TLS on {address}: does a web server run there?")
            })?;
            listeners.push((listener, Listens::SshAndTls));
        }
        let web = config.http_listen.iter().map(|address| (*address, HTTP));
        let others = &config.service_listen;
        let others = others.iter().map(|other| (other.listen, other.port.unwrap_or(other.listen.port())));
        for (address, port) in web.chain(others) {
            let listener = listen(address)
                .with_context(|| format!("listening for HTTP on {address}: does a web server run there?"))?;
            listeners.push((listener, Listens::Web(port)));
        }
        let recordings = config.recordings.clone().unwrap_or_else(|| directory.join("recordings"));
        let recordings = Recordings::new(recordings);
        let entry = entry_of(config, common)?;
        Ok(Self { listeners, recordings, host_key, credentials, control, entry, config: config.clone() })
    }

    /// Where SSH is ended, port 443's last.
    pub fn ssh_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        let ssh = self.listeners.iter().filter(|(_, listens)| !matches!(listens, Listens::Web(_)));
        ssh.map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Where HTTP is spoken: public port 80's first, then the others, as they are configured.
    pub fn web_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        let web = self.listeners.iter().filter(|(_, listens)| matches!(listens, Listens::Web(_)));
        web.map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Serves until the daemon ends.
    pub fn serve(self, common: Common) -> RoleFuture<anyhow::Result<()>> {
        Box::pin(async move {
            let mut tasks = JoinSet::new();
            let mut views = common.view.clone();
            let shown = Arc::clone(&views.borrow_and_update());
            let (tables, directory) = watch::channel(Arc::new(Directory::project(&shown)));
            tasks.spawn(follow(views, shown, tables));
            tasks.spawn(Arc::clone(&self.credentials).keep_fresh(self.control.clone()));
            let settings = self.host_key.settings();
            if !self.config.control.is_empty() {
                // Control certifies for the host of our own certificate, whatever ports are bound here.
                let entry = common.identity.host();
                tasks.spawn(self.host_key.keep_certified(self.control.clone(), entry, common.view.clone()));
            }
            let accounts = Accounts::new(self.config.account_limits);
            let recordings = self.recordings.directory().to_owned();
            tasks.spawn(recording::prune::keep_to(self.config.recording_limits, recordings));
            if let Some(entry) = self.entry {
                let ports = Ports {
                    entry,
                    bind: self.config.ports_bind.clone(),
                    machine_port: self.config.machine_port,
                    balancers: Balancers::new(self.config.proxy_from.clone()),
                    limits: self.config.port_limits,
                    accounts: Arc::clone(&accounts),
                    control: self.control.clone(),
                    directory: directory.clone(),
                };
                let views = common.view.clone();
                tasks.spawn(async move { ports.serve(views).await });
            }
            let (connections, closing, ending) =
                (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
            let edge = Edge::new(
                self.config.edge.clone(),
                &common,
                (self.control.clone(), Arc::clone(&accounts)),
                directory.clone(),
                (connections.clone(), closing.clone(), ending.clone()),
                &mut tasks,
            );
            let gateway = Arc::new(Gateway {
                edge,
                pool: Pool::new(
                    self.credentials,
                    self.config.machine_port,
                    Duration::from_secs(self.config.machine_idle_s),
                ),
                lobby: Lobby::new(self.control.clone(), directory.clone()),
                control: self.control,
                directory,
                machine_port: self.config.machine_port,
                login_grace: Duration::from_secs(self.config.login_grace_s),
                balancers: Balancers::new(self.config.proxy_from),
                door: Door::new(self.config.ssh_limits.without_rate()),
                strangers: Strangers::new(ssh::stranger_limits(self.config.ssh_limits)),
                accounts,
                recordings: self.recordings,
                connections,
                closing,
                ending,
            });
            for (listener, listens) in self.listeners {
                let serving = Arc::clone(&gateway).serve(listener, listens, settings.clone());
                // It ends when the gateway closes, which is no task's failure.
                tokio::spawn(serving);
            }
            tokio::select! {
                () = common.stopped() => {
                    gateway.drain(Duration::from_secs(self.config.drain_s)).await;
                    Ok(())
                }
                Some(ended) = tasks.join_next() => ended.context("a task of the gateway"),
            }
        })
    }
}

/// Binds with `SO_REUSEPORT`: the gateway that comes next listens while this one still drains.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    if address.is_ipv6() {
        // `[::]` stands beside `0.0.0.0` and not for it.
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whose shared ports are bound here; nobody's where none are.
fn entry_of(config: &Config, common: &Common) -> anyhow::Result<Option<HostId>> {
    if config.ports_bind.is_empty() {
        return Ok(None);
    }
    let entry = config.entry.clone().or_else(|| common.identity.host());
    let entry = entry.context(
        "[gateway] ports_bind is set, but not whose ports these are: set `entry` to this entry's host id",
    )?;
    Ok(Some(entry))
}

/// Projects each view of the replica that is about something else than `shown`.
async fn follow(
    mut views: watch::Receiver<Arc<View>>,
    mut shown: Arc<View>,
    tables: watch::Sender<Arc<Directory>>,
) {
    while views.changed().await.is_ok() {
        let view = Arc::clone(&views.borrow_and_update());
        if !directory::is_same(&shown, &view) {
            tables.send_replace(Arc::new(Directory::project(&view)));
            shown = view;
        }
    }
    // The replica's end is the daemon's end: what is known stays in force until then.
    std::future::pending().await
}
