//! Every public door: SSH (lobby, machines, jump), shared IPv4 ports.
//!
//! | module | what |
//! | --- | --- |
//! | [`directory`], [`route`] | who there is, who may enter what: pure projections of the replica |
//! | [`ssh`] | port 22: sessions, forwarding, the lobby's front |
//! | [`upstream`] | the gateway's own connections into machines |
//! | [`lobby`] | the CLI's commands for people who name no machine |
//! | [`ports`], [`splice`] | shared IPv4 ports, through the kernel |
//! | [`proxied`] | who a load balancer speaks for |
//! | [`limits`] | how many connections, how fast, before anybody is known |
//!
//! Control is asked for two things only: certificates (kept on disk, renewed early) and the lobby's commands. Everything else goes on
//! while it is down.

pub mod control;
pub mod dial;
pub mod directory;
mod farewell;
pub mod host_key;
pub mod keys;
pub mod limits;
pub mod lobby;
pub mod ports;
pub mod proxied;
pub mod route;
pub mod splice;
pub mod ssh;
pub mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use mashines_fleet::daemon::Common;
use mashines_fleet::id::HostId;
use mashines_fleet::view::View;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use crate::control::Control;
use crate::directory::Directory;
use crate::host_key::HostKey;
use crate::limits::{Door, Limits};
use crate::lobby::Lobby;
use crate::ports::Ports;
use crate::proxied::Balancers;
use crate::ssh::Gateway;
use crate::upstream::Pool;
use crate::upstream::credentials::Credentials;

/// The `[gateway]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses where SSH is ended: `["203.0.113.160:22", "[2001:db8:160::22]:22"]`.
    pub ssh_listen: Vec<SocketAddr>,
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
    /// Seconds to prove a key.
    #[serde(default = "grace")]
    pub login_grace_s: u64,
    /// Networks of load balancers: a connection from there begins with a PROXY header (version 1 or 2), which says who the client is.
    #[serde(default)]
    pub proxy_from: Vec<IpNetwork>,
    /// Limits of port 22. Connections that have proved no key get a quarter of the places.
    #[serde(default)]
    pub ssh_limits: Limits,
    /// Limits of all shared ports together.
    #[serde(default)]
    pub port_limits: Limits,
}

fn ssh_port() -> u16 {
    22
}

fn grace() -> u64 {
    30
}

/// The role: binds, then serves until the daemon ends.
///
/// # Errors
/// An address cannot be bound, or a key's file cannot be used; the error names it.
pub async fn run(config: Config, common: Common) -> anyhow::Result<()> {
    let doors = Doors::open(&config, &common).await?;
    info!(ssh = ?doors.ssh_addresses()?, "gateway listens");
    doors.serve(common).await
}

/// The gateway's doors, bound and ready.
pub struct Doors {
    listeners: Vec<TcpListener>,
    host_key: HostKey,
    credentials: Arc<Credentials>,
    control: Control,
    ports: Option<Ports>,
    config: Config,
}

impl Doors {
    /// Loads the keys and binds the addresses.
    pub async fn open(config: &Config, common: &Common) -> anyhow::Result<Self> {
        let directory = common.state_dir.join("gateway");
        let host_key = config.host_key.clone().unwrap_or_else(|| directory.join("host_key"));
        let host_key = HostKey::load(&host_key)?;
        let credentials = Credentials::load(&directory)?;
        let control = Control::new(&common.identity, &config.control).context("the entry's certificate")?;
        let mut listeners = Vec::new();
        for address in &config.ssh_listen {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("listening for SSH on {address}: is the host's own sshd there? Move that to another port or address")
            })?;
            listeners.push(listener);
        }
        let ports = ports_of(config, common)?;
        Ok(Self { listeners, host_key, credentials, control, ports, config: config.clone() })
    }

    /// Where SSH is ended.
    pub fn ssh_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves until the daemon ends.
    pub async fn serve(self, common: Common) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        let mut views = common.view.clone();
        let shown = Arc::clone(&views.borrow_and_update());
        let (tables, directory) = watch::channel(Arc::new(Directory::project(&shown)));
        tasks.spawn(follow(views, shown, tables));
        tasks.spawn(Arc::clone(&self.credentials).keep_fresh(self.control.clone()));
        let settings = self.host_key.settings();
        if !self.config.control.is_empty() {
            tasks.spawn(self.host_key.keep_certified(self.control.clone()));
        }
        if let Some(ports) = self.ports {
            let views = common.view.clone();
            tasks.spawn(async move { ports.serve(views).await });
        }
        let gateway = Arc::new(Gateway {
            pool: Pool::new(self.credentials, self.config.machine_port),
            lobby: Lobby::new(self.control, directory.clone()),
            directory,
            machine_port: self.config.machine_port,
            login_grace: Duration::from_secs(self.config.login_grace_s),
            balancers: Balancers::new(self.config.proxy_from),
            door: Door::new(self.config.ssh_limits),
            strangers: Door::new(ssh::stranger_limits(self.config.ssh_limits)),
        });
        for listener in self.listeners {
            tasks.spawn(Arc::clone(&gateway).serve(listener, settings.clone()));
        }
        tokio::select! {
            () = common.stopped() => Ok(()),
            Some(ended) = tasks.join_next() => ended.context("a task of the gateway"),
        }
    }
}

fn ports_of(config: &Config, common: &Common) -> anyhow::Result<Option<Ports>> {
    if config.ports_bind.is_empty() {
        return Ok(None);
    }
    let entry = config.entry.clone().or_else(|| common.identity.host());
    let entry = entry.context(
        "[gateway] ports_bind is set, but not whose ports these are: set `entry` to this entry's host id",
    )?;
    Ok(Some(Ports {
        entry,
        bind: config.ports_bind.clone(),
        machine_port: config.machine_port,
        balancers: Balancers::new(config.proxy_from.clone()),
        limits: config.port_limits,
    }))
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
