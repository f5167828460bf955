//! Port 22 of the gateway: ends SSH and leads on.
//!
//! ```text
//! accept ─▶ limits ─▶ login grace ─▶ handler ─▶ route ─┬─▶ lobby            (the CLI's commands)
//!          (total, source)   30 s    (thin)    (pure)  ├─▶ session ─▶ pool  (the machine's sshd)
//!                                                      └─▶ forward          (the machine's ports)
//! ```
//!
//! Invariants:
//! - Nobody is silently dropped: whoever is turned away reads why, before the version line, as a banner or on standard error.
//! - Who has not proved a key within the grace is cut off, whatever they send or do not send.
//! - A connection's task never waits for a machine, but for a remote forward (`-R`), and then 10 s at most. The tasks of its channels do.
//! - What a client sends to a channel that takes nothing is queued up to the channel's window (2 MiB), which is granted anew as it is
//!   read; the connection's other channels go on. This is the one change in `vendor/russh`.

pub(crate) mod bridge;
mod forward;
mod git;
mod handler;
mod newcomer;
mod remote;
pub(crate) mod session;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mashines_ssh::Severable;
use russh::keys::{Certificate, PrivateKey};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::accounts::Accounts;
use crate::arrival::{self, Arrival, Speech};
use crate::control::Control;
use crate::dial::prepare;
use crate::directory::Directory;
use crate::edge::Edge;
use crate::farewell::turn_away;
use crate::host_key::Settings;
use crate::limits::{Door, Limits};
use crate::lobby::Lobby;
use crate::proxied::Balancers;
use crate::recording::Recordings;
use crate::strangers::{Stranger, Strangers};
use crate::upstream::Pool;

/// Pause after an accept that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client that was told to go may take to go.
const PARTING: Duration = Duration::from_secs(1);

/// A session whose client sends nothing at all, not even answers to keepalives, is over after this.
const DEAD: Duration = Duration::from_secs(12 * 3600);

/// Messages that wait for a channel's task. Only full if a client fills the window with packets smaller than 256 bytes; then its own
/// connection waits, so that its memory is bounded.
pub(crate) const CHANNEL_QUEUE: usize = 8192;

/// What all connections share.
pub struct Gateway {
    /// Who comes for a name: TLS and HTTP.
    pub edge: Arc<Edge>,
    /// Who there is and what there is to enter.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Connections to machines.
    pub pool: Arc<Pool>,
    /// The commands for people who name no machine.
    pub lobby: Lobby,
    /// The port of machines' sshd.
    pub machine_port: u16,
    /// Time to prove a key.
    pub login_grace: Duration,
    /// Who speaks for others.
    pub balancers: Balancers,
    /// Connections in all.
    pub door: Arc<Door>,
    /// Connections that have not proved a key.
    pub strangers: Arc<Strangers>,
    /// Control, for what a door itself asks of it: starting, making, signing up.
    pub control: Control,
    /// What accounts have open at once.
    pub accounts: Arc<Accounts>,
    /// Where sessions at terminals are recorded, of machines that want it.
    pub recordings: Recordings,
    /// The connections that are there.
    pub connections: TaskTracker,
    /// Nobody is accepted any more.
    pub closing: CancellationToken,
    /// Whoever is there has to go.
    pub ending: CancellationToken,
}

/// The limits for connections that have not proved a key: a quarter of a door's.
pub fn stranger_limits(limits: Limits) -> Limits {
    Limits { total: limits.total.div_ceil(4), per_source: limits.per_source.div_ceil(4), ..limits }
}

/// The way in, and the way to be told why there is none.
fn methods() -> MethodSet {
    MethodSet::from([MethodKind::PublicKey, MethodKind::KeyboardInteractive].as_slice())
}

/// russh's settings.
pub fn server_config(
    host_key: PrivateKey,
    certificate: Option<Certificate>,
    preferred: &Preferred,
) -> Arc<server::Config> {
    Arc::new(server::Config {
        server_id: SshId::Standard("SSH-2.0-mashines".into()),
        methods: methods(),
        // Keys are looked up in a map: there is no secret whose comparison could be timed, and an agent may hold many keys.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 20,
        keys: vec![host_key],
        certificates: certificate.into_iter().collect(),
        preferred: preferred.clone(),
        channel_buffer_size: CHANNEL_QUEUE,
        // Sessions may be silent for days; a client that answers no keepalive for ten minutes has gone.
        inactivity_timeout: Some(DEAD),
        keepalive_interval: Some(Duration::from_secs(60)),
        keepalive_max: 10,
        nodelay: true,
        ..server::Config::default()
    })
}

/// How far a connection's login has come.
#[derive(Debug)]
pub(crate) struct Login {
    done: Notify,
    stranger: Mutex<Option<Stranger>>,
}

impl Login {
    fn new(stranger: Stranger) -> Self {
        Self { done: Notify::new(), stranger: Mutex::new(Some(stranger)) }
    }

    /// Keys were exchanged: this is no connection that says nothing.
    fn spoke(&self) {
        if let Some(stranger) = &*self.stranger.lock().unwrap_or_else(PoisonError::into_inner) {
            stranger.spoke();
        }
    }

    /// A key was proved: the grace no longer applies, and the place among the strangers is free.
    fn succeeded(&self) {
        let stranger = self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stranger) = stranger {
            stranger.logged_in();
        }
        self.done.notify_one();
    }
}

/// What a listener is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// SSH alone: port 22.
    Ssh,
    /// SSH beside TLS, told apart by the first byte: port 443, for networks that let nothing else out.
    SshAndTls,
    /// TLS, or HTTP without it: that public port.
    Web(u16),
}

/// The public port of TLS.
const HTTPS: u16 = 443;

impl Gateway {
    /// Accepts on `listener` until the gateway closes.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        listens: Listens,
        settings: watch::Receiver<Arc<Settings>>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let settings = Arc::clone(&settings.borrow());
                    self.connections.spawn(Arc::clone(&self).receive(stream, peer, listens, settings));
                }
                Err(error) => {
                    warn!(%error, "accepting an SSH connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets in, or turns away, whoever a connection belongs to.
    async fn receive(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        listens: Listens,
        settings: Arc<Settings>,
    ) {
        // Before the header of a balancer nobody is counted but the balancer, whose connections are its own affair.
        let arrival = match arrival::of(&mut stream, peer, &self.balancers).await {
            Ok(arrival) => arrival,
            Err(error) => return warn!(%peer, %error, "ssh: a load balancer's connection is refused"),
        };
        match listens {
            Listens::Ssh => (),
            Listens::SshAndTls | Listens::Web(_) => match self.lead_to_edge(stream, arrival, listens).await {
                Some(ssh) => stream = ssh,
                None => return,
            },
        }
        let now = Instant::now();
        let slots = self.door.enter(arrival.peer.ip(), now).and_then(|slot| {
            let stranger = self.strangers.enter(arrival.peer.ip(), now)?;
            Ok((slot, stranger))
        });
        let (_slot, stranger) = match slots {
            Ok(slots) => slots,
            Err(refusal) => {
                debug!(peer = %arrival.peer, %refusal, "ssh: turned away");
                return turn_away(&stream, &refusal.to_string());
            }
        };
        let config = Arc::clone(settings.at(arrival.at));
        let replaced = stranger.replaced.clone();
        sleep(stranger.wait).await;
        self.converse(stream, arrival, config, Login::new(stranger), replaced).await;
    }

    /// Leads who speaks TLS or HTTP to the edge, in a task of its own, since SSH's takes more room. The stream of who speaks SSH comes back.
    async fn lead_to_edge(&self, stream: TcpStream, arrival: Arrival, listens: Listens) -> Option<TcpStream> {
        let slot = match self.edge.enter(arrival.peer.ip()) {
            Ok(slot) => slot,
            // Nobody knows yet what they speak, so there are no words to say it in.
            Err(refusal) => {
                debug!(peer = %arrival.peer, %refusal, "edge: turned away");
                return None;
            }
        };
        let (port, speech) = match listens {
            Listens::Web(port) => (port, self.edge.speech(&stream).await),
            Listens::Ssh | Listens::SshAndTls => (HTTPS, arrival::speech(&stream).await),
        };
        match (speech, listens) {
            (Ok(Speech::Ssh), Listens::Ssh | Listens::SshAndTls) => return Some(stream),
            (Ok(speech), _) => {
                self.connections.spawn(Arc::clone(&self.edge).serve(stream, arrival, port, speech, slot));
            }
            (Err(_gone), _) => (),
        }
        None
    }

    /// Accepts nobody any more, and waits for those who are there; after `patience` they are told and cut off.
    pub async fn drain(&self, patience: Duration) {
        self.closing.cancel();
        self.connections.close();
        let there = self.connections.len();
        if there > 0 {
            info!(connections = there, ?patience, "ssh: waiting for connections to end");
        }
        if timeout(patience, self.connections.wait()).await.is_err() {
            self.ending.cancel();
            let _stuck = timeout(PARTING * 3, self.connections.wait()).await;
        }
    }

    /// One connection, from its first byte to its last.
    async fn converse(
        self: Arc<Self>,
        stream: TcpStream,
        arrival: Arrival,
        config: Arc<server::Config>,
        login: Login,
        replaced: CancellationToken,
    ) {
        let peer = arrival.peer;
        if prepare(&stream).is_err() {
            return;
        }
        let late = sleep(self.login_grace);
        tokio::pin!(late);
        let (cut, login) = (CancellationToken::new(), Arc::new(login));
        let handler = handler::Connection::new(Arc::clone(&self), Arc::clone(&login), arrival);
        let begun = server::run_stream(config, Severable::new(stream, cut.clone()), handler);
        let running = tokio::select! {
            running = begun => running,
            // It has not even sent its version.
            () = &mut late => return,
            () = replaced.cancelled() => return,
        };
        let mut running = match running {
            Ok(running) => running,
            Err(error) => return debug!(%peer, %error, "ssh: no SSH client"),
        };
        let unknown = tokio::select! {
            outcome = &mut running => return ended(peer, outcome),
            () = login.done.notified() => None,
            () = &mut late => Some(format!("no key was proved within {:?}", self.login_grace)),
            () = replaced.cancelled() => Some("the gateway is full, and others wait that do prove a key; try again".to_owned()),
        };
        let why = match unknown {
            Some(why) => why,
            None => tokio::select! {
                outcome = &mut running => return ended(peer, outcome),
                () = self.ending.cancelled() => "this gateway restarts; connect again in a moment".to_owned(),
            },
        };
        let handle = running.handle();
        let parting = handle.disconnect(Disconnect::ByApplication, why, "en".to_owned());
        let _gone = timeout(PARTING, parting).await;
        if let Ok(outcome) = timeout(PARTING, &mut running).await {
            return ended(peer, outcome);
        }
        cut.cancel();
        ended(peer, running.await);
    }
}

fn ended(peer: SocketAddr, outcome: Result<(), russh::Error>) {
    match outcome {
        Ok(()) => debug!(%peer, "ssh: connection ended"),
        Err(error) => debug!(%peer, %error, "ssh: connection ended"),
    }
}
