//! One connection: TCP, key exchange, host key, authentication.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::record::Machine;
use mashines_ssh::algorithms;
use russh::client::{self, AuthResult, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelOpenFailure, server};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::credentials::{Credentials, NoCertificate};
use super::pins::{HostKeyMismatch, Pins};
use crate::accounts::Purse;
use crate::dial::{DialError, dial, patience};
use crate::ssh::{CHANNEL_QUEUE, bridge};

/// Key exchange and authentication together. Generous: a guest's first logins are slow.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long a first certificate may take that is on its way.
const CERTIFICATE: Duration = Duration::from_secs(5);

/// Channels at once that a machine may open over one connection.
const MAX_CHANNELS: usize = 64;

/// Why a machine was not entered.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("machine {0} cannot be reached: {1}")]
    Dial(String, DialError),
    /// The gateway's fault.
    #[error(transparent)]
    Certificate(#[from] NoCertificate),
    /// Somebody else answers.
    #[error(transparent)]
    HostKey(HostKeyMismatch),
    /// It did not finish in time.
    #[error("machine {0} accepted the connection, but its sshd did not answer within {HANDSHAKE:?}")]
    Slow(String),
    /// Its sshd does not take the certificate.
    #[error(
        "machine {0} does not let the gateway in: its sshd does not trust the platform's CA (TrustedUserCAKeys). \
         Your own keys still work: ssh root@{0} over IPv6"
    )]
    Denied(String),
    /// SSH went wrong.
    #[error("the connection to machine {0} broke: {1}")]
    Ssh(String, russh::Error),
}

/// The client that gets what a machine opens, when there is one.
#[derive(Debug, Clone, Default)]
pub struct Sink(Arc<Mutex<Option<Taker>>>);

/// A client, and what pays for what it gets and says.
#[derive(Debug, Clone)]
pub struct Taker {
    /// The client's connection.
    pub client: server::Handle,
    /// Its account's.
    pub purse: Purse,
}

/// What a machine may open towards a client over one connection.
#[derive(Debug, Clone, Default)]
pub struct Sinks {
    /// Connections to the client's agent: the client whose channel the connection carries.
    pub agent: Sink,
    /// Connections to what the machine listens on for the client.
    pub forwards: Sink,
}

impl Sink {
    /// From now on to that client, or to nobody.
    pub fn set(&self, client: Option<Taker>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn get(&self) -> Option<Taker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The gateway's side of one connection.
pub(super) struct Events {
    machine: Arc<Machine>,
    pins: Arc<Pins>,
    sinks: Sinks,
    /// Places for channels that the machine opens.
    channels: Arc<Semaphore>,
    /// Why the host key was refused; russh itself only says that it was.
    mismatch: Arc<Mutex<Option<HostKeyMismatch>>>,
}

impl client::Handler for Events {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        // Host certificates are not asked for yet, so none is accepted.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match self.pins.check(&self.machine, key) {
            Ok(()) => Ok(true),
            Err(mismatch) => {
                *self.mismatch.lock().unwrap_or_else(PoisonError::into_inner) = Some(mismatch);
                Ok(false)
            }
        }
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        machine_side: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let client = self.sinks.agent.get();
        self.lead_on(machine_side, reply, client, async |client: server::Handle| {
            client.channel_open_agent().await
        })
        .await;
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        machine_side: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (at, from) = (connected_address.to_owned(), originator_address.to_owned());
        let open = async move |client: server::Handle| {
            client.channel_open_forwarded_tcpip(at, connected_port, from, originator_port).await
        };
        self.lead_on(machine_side, reply, self.sinks.forwards.get(), open).await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        machine_side: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let path = socket_path.to_owned();
        let open = async move |client: server::Handle| client.channel_open_forwarded_streamlocal(path).await;
        self.lead_on(machine_side, reply, self.sinks.forwards.get(), open).await;
        Ok(())
    }
}

impl Events {
    /// Joins a channel that the machine opened with one that `open` opens to the client.
    async fn lead_on<Opening>(
        &self,
        machine_side: Channel<Msg>,
        reply: ChannelOpenHandle,
        taker: Option<Taker>,
        open: impl FnOnce(server::Handle) -> Opening + Send + 'static,
    ) where
        Opening: Future<Output = Result<Channel<server::Msg>, russh::Error>> + Send,
    {
        let Some(Taker { client, purse }) = taker else {
            // Nobody asked the machine for this.
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        };
        let Ok(place) = Arc::clone(&self.channels).try_acquire_owned() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        tokio::spawn(async move {
            match open(client).await {
                Ok(client_side) => {
                    reply.accept().await;
                    bridge::plain(machine_side, client_side, &purse).await;
                }
                Err(_gone) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
            drop(place);
        });
    }
}

/// What every connection needs.
#[derive(Debug)]
pub(super) struct Connector {
    pub credentials: Arc<Credentials>,
    pub pins: Arc<Pins>,
    pub port: u16,
    config: Arc<client::Config>,
}

impl Connector {
    pub fn new(credentials: Arc<Credentials>, port: u16) -> Self {
        let config = client::Config {
            preferred: algorithms::preferred(),
            nodelay: true,
            channel_buffer_size: CHANNEL_QUEUE,
            // Sessions may be silent for days. Three unanswered minutes are a dead machine; a move is a fraction of a second.
            inactivity_timeout: None,
            keepalive_interval: Some(Duration::from_secs(30)),
            keepalive_max: 6,
            ..client::Config::default()
        };
        Self { credentials, pins: Arc::default(), port, config: Arc::new(config) }
    }

    pub async fn connect(&self, machine: &Arc<Machine>) -> Result<(Handle<Events>, Sinks), UpstreamError> {
        let slug = || machine.slug.to_string();
        let (key, certificate) = self.credentials.wait(CERTIFICATE).await?;
        let address = SocketAddr::new(machine.net.ipv6.into(), self.port);
        let stream =
            dial(address, patience(machine)).await.map_err(|error| UpstreamError::Dial(slug(), error))?;
        let sinks = Sinks::default();
        let mismatch = Arc::new(Mutex::new(None));
        let events = Events {
            machine: Arc::clone(machine),
            pins: Arc::clone(&self.pins),
            sinks: sinks.clone(),
            channels: Arc::new(Semaphore::new(MAX_CHANNELS)),
            mismatch: Arc::clone(&mismatch),
        };
        let shake = async {
            let mut handle = client::connect_stream(Arc::clone(&self.config), stream, events).await?;
            let answer = handle.authenticate_openssh_cert("root", key, certificate).await?;
            Ok((handle, answer))
        };
        let outcome = timeout(HANDSHAKE, shake).await.map_err(|_elapsed| UpstreamError::Slow(slug()))?;
        match outcome {
            Ok((handle, AuthResult::Success)) => Ok((handle, sinks)),
            Ok((_, AuthResult::Failure { .. })) => Err(UpstreamError::Denied(slug())),
            Err(error) => {
                let mismatch = mismatch.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(mismatch.map_or_else(|| UpstreamError::Ssh(slug(), error), UpstreamError::HostKey))
            }
        }
    }
}
