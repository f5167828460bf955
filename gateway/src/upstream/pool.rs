//! Connections that wait for their next channel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::id::{AccountId, MachineId};
use mashines_fleet::record::Machine;
use russh::client::{Handle, Msg};
use russh::{Channel, Disconnect};
use tokio::time::{Instant, sleep, timeout};

use super::connect::{Connector, Events, Sinks, Taker, UpstreamError};
use super::credentials::Credentials;

/// Connections that wait, for one account and machine.
const IDLE_EACH: usize = 4;

/// How long a waiting connection may take to open a channel before it is taken for dead.
const REOPEN: Duration = Duration::from_secs(3);

type Key = (AccountId, MachineId);

struct Waiting {
    handle: Handle<Events>,
    sinks: Sinks,
    since: Instant,
}

/// All connections to machines that carry no channel at the moment.
pub struct Pool {
    connector: Connector,
    /// How long a connection waits for its next channel.
    idle: Duration,
    waiting: Mutex<HashMap<Key, Vec<Waiting>>>,
}

/// What kind of channel is wanted in the machine.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A session.
    Session,
    /// A TCP connection from inside the machine: host and port.
    Tcp(String, u16),
    /// A unix socket inside the machine.
    UnixSocket(String),
}

/// A connection while it carries a channel.
pub struct Lease {
    pool: Arc<Pool>,
    key: Key,
    handle: Handle<Events>,
    sinks: Sinks,
    reusable: bool,
}

impl Pool {
    /// An empty pool that enters machines' `port` with `credentials`, and keeps connections for `idle` between their channels.
    pub fn new(credentials: Arc<Credentials>, port: u16, idle: Duration) -> Arc<Self> {
        Arc::new(Self { connector: Connector::new(credentials, port), idle, waiting: Mutex::default() })
    }

    /// A channel into `machine` for `account`.
    pub async fn open(
        self: &Arc<Self>,
        account: &AccountId,
        machine: &Arc<Machine>,
        wanted: &Wanted,
    ) -> Result<(Lease, Channel<Msg>), UpstreamError> {
        let key = (account.clone(), machine.id.clone());
        while let Some(waiting) = self.take(&key) {
            let lease = self.lease(key.clone(), waiting.handle, waiting.sinks);
            match timeout(REOPEN, lease.open(wanted)).await {
                Ok(Ok(channel)) => return Ok((lease, channel)),
                // It answered, so it is alive; the machine does not want this channel.
                Ok(Err(error @ russh::Error::ChannelOpenFailure(_))) => {
                    lease.give_back();
                    return Err(UpstreamError::Ssh(machine.slug.to_string(), error));
                }
                // The machine restarted meanwhile. A fresh connection will tell.
                Ok(Err(_)) | Err(_) => drop(lease),
            }
        }
        let (handle, sinks) = self.connector.connect(machine).await?;
        let lease = self.lease(key, handle, sinks);
        let channel =
            lease.open(wanted).await.map_err(|error| UpstreamError::Ssh(machine.slug.to_string(), error))?;
        Ok((lease, channel))
    }

    /// A connection into `machine` on which it listens for `taker`, and on nothing else's behalf.
    pub async fn listen_for(&self, machine: &Arc<Machine>, taker: Taker) -> Result<Listening, UpstreamError> {
        let (handle, sinks) = self.connector.connect(machine).await?;
        sinks.forwards.set(Some(taker));
        Ok(Listening { handle: Some(handle) })
    }

    fn lease(self: &Arc<Self>, key: Key, handle: Handle<Events>, sinks: Sinks) -> Lease {
        Lease { pool: Arc::clone(self), key, handle, sinks, reusable: true }
    }

    fn take(&self, key: &Key) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let list = waiting.get_mut(key)?;
        let taken = std::iter::from_fn(|| list.pop()).find(|waiting| !waiting.handle.is_closed());
        if list.is_empty() {
            waiting.remove(key);
        }
        taken
    }

    fn put(self: &Arc<Self>, key: Key, handle: Handle<Events>, sinks: Sinks) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let list = waiting.entry(key).or_default();
        if list.len() >= IDLE_EACH {
            return;
        }
        list.push(Waiting { handle, sinks, since: Instant::now() });
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            sleep(pool.idle).await;
            pool.forget_old();
        });
    }

    fn forget_old(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, list| {
            list.retain(|w| w.since.elapsed() < self.idle && !w.handle.is_closed());
            !list.is_empty()
        });
    }
}

/// A connection on which a machine listens for one client; the machine ends that when it is dropped.
pub struct Listening {
    /// Always there until it is dropped.
    handle: Option<Handle<Events>>,
}

/// What a machine listens on.
#[derive(Debug, Clone)]
pub enum Place {
    /// A TCP port, 0 for one of the machine's choice, at an address as the client wrote it.
    Tcp(String, u32),
    /// A unix socket.
    UnixSocket(String),
}

impl Listening {
    /// Begins to listen. Returns the port that the machine chose, when it was to choose.
    pub async fn begin(&self, place: Place) -> Result<u32, russh::Error> {
        let handle = self.handle.as_ref().ok_or(russh::Error::Disconnect)?;
        match place {
            Place::Tcp(address, port) => handle.tcpip_forward(address, port).await,
            Place::UnixSocket(path) => handle.streamlocal_forward(path).await.map(|()| 0),
        }
    }

    /// Listens there no longer.
    pub async fn end(&self, place: Place) -> Result<(), russh::Error> {
        let handle = self.handle.as_ref().ok_or(russh::Error::Disconnect)?;
        match place {
            Place::Tcp(address, port) => handle.cancel_tcpip_forward(address, port).await,
            Place::UnixSocket(path) => handle.cancel_streamlocal_forward(path).await,
        }
    }

    /// The connection has ended, for example with the machine.
    pub fn is_over(&self) -> bool {
        self.handle.as_ref().is_none_or(Handle::is_closed)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            tokio::spawn(async move {
                let _gone = handle.disconnect(Disconnect::ByApplication, "", "").await;
            });
        }
    }
}

impl Lease {
    async fn open(&self, wanted: &Wanted) -> Result<Channel<Msg>, russh::Error> {
        match wanted {
            Wanted::Session => self.handle.channel_open_session().await,
            Wanted::Tcp(host, port) => {
                self.handle.channel_open_direct_tcpip(host.as_str(), u32::from(*port), "127.0.0.1", 0).await
            }
            Wanted::UnixSocket(path) => self.handle.channel_open_direct_streamlocal(path.as_str()).await,
        }
    }

    /// Sends the machine's agent connections to that client.
    pub fn forward_agent(&mut self, taker: Taker) {
        self.sinks.agent.set(Some(taker));
        // The machine's sshd keeps the agent's socket for as long as the connection lives: nobody else may find it.
        self.reusable = false;
    }

    /// The channel has ended in order: the connection waits for the next one, if it may.
    pub fn give_back(self) {
        if self.reusable && !self.pool.idle.is_zero() && !self.handle.is_closed() {
            let Self { pool, key, handle, sinks, .. } = self;
            pool.put(key, handle, sinks);
        } else {
            tokio::spawn(async move {
                let _gone = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
            });
        }
    }
}
