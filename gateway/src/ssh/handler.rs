//! One client's connection, as russh calls it.
//!
//! Thin on purpose: these run inside the session's loop, so nothing here waits for anything but russh itself. Each channel gets a
//! task of its own, and the messages of the channel reach that task through its queue, in order.
//!
//! Requests are answered here and at once, before the machine was asked: russh remembers one wanted reply a channel, and OpenSSH sends
//! `pty-req`, `env` and `shell` in one go, so an answer given later would be taken for another request's. What the machine then
//! refuses is told on standard error.

use std::net::SocketAddr;
use std::sync::Arc;

use mashines_fleet::record::Machine;
use russh::keys::{Certificate, HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, server};
use tokio::sync::Semaphore;
use tracing::{debug, info};

use super::remote::Remote;
use super::{Gateway, Login, forward, session};
use crate::directory::Directory;
use crate::route::{Destination, Door, route};
use crate::upstream::Place;

/// Channels at once in one connection. A channel holds at most a window and a queue, so this bounds a connection's memory.
const MAX_CHANNELS: usize = 64;

/// Who is at the other end, once that is known.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The name that was logged in as.
    pub user: String,
    /// The key that was proved. Whose it is, is looked up at each door: a key that was taken out of an account opens none.
    pub key: Arc<PublicKey>,
    /// Where they are.
    pub peer: SocketAddr,
}

impl Guest {
    /// Where the guest is let in for `destination`, by what is known now. Noted in the audit trail (the log's target `audit`): who,
    /// from where, what, and whether.
    pub fn door(&self, directory: &Directory, destination: Destination<'_>) -> Door {
        let door = self.look(directory, destination);
        let key = self.key.fingerprint(HashAlg::Sha256);
        let Self { user, peer, .. } = self;
        match &door {
            Door::Machine(machine) | Door::Port(machine, _) => {
                let Machine { slug, account, .. } = &**machine;
                info!(target: "audit", %peer, user, %key, asked = ?destination, machine = %slug, %account);
            }
            Door::Lobby(account) => {
                info!(target: "audit", %peer, user, %key, asked = ?destination, lobby = %account);
            }
            Door::Refuse(why) => {
                info!(target: "audit", %peer, user, %key, asked = ?destination, refused = why)
            }
        }
        door
    }

    /// The same, when nothing is entered yet.
    fn look(&self, directory: &Directory, destination: Destination<'_>) -> Door {
        match directory.person(&self.key) {
            Some(person) => route(directory, &self.user, &person, destination),
            None => Door::Refuse("the key you came with has been taken out of its account".to_owned()),
        }
    }
}

/// State of one connection.
pub struct Connection {
    gateway: Arc<Gateway>,
    login: Arc<Login>,
    peer: SocketAddr,
    guest: Option<Guest>,
    channels: Arc<Semaphore>,
    remote: Remote,
    /// Fingerprints of the keys that were offered and are unknown, for the message to a person who gets nowhere.
    unknown: Vec<String>,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(gateway: Arc<Gateway>, login: Arc<Login>, peer: SocketAddr) -> Self {
        let channels = Arc::new(Semaphore::new(MAX_CHANNELS));
        Self { gateway, login, peer, guest: None, channels, remote: Remote::default(), unknown: Vec::new() }
    }

    /// What a channel's task is given: who asks, and a place among the connection's channels.
    fn visit(&self, session: &Session) -> Result<session::Visit, ChannelOpenFailure> {
        let guest = self.guest.clone().ok_or(ChannelOpenFailure::AdministrativelyProhibited)?;
        let slot = Arc::clone(&self.channels)
            .try_acquire_owned()
            .map_err(|_full| refusal(format!("no more than {MAX_CHANNELS} channels in one connection")))?;
        Ok(session::Visit {
            gateway: Arc::clone(&self.gateway),
            guest,
            client: session.handle(),
            _slot: slot,
        })
    }

    /// Has the machine listen for this client. A refusal has no words in the protocol, so they go to the log.
    async fn listen(&mut self, client: server::Handle, place: Place) -> Option<u32> {
        let guest = self.guest.as_ref()?;
        let begun = self.remote.begin(&self.gateway, guest, client, place.clone()).await;
        begun.inspect_err(|why| debug!(peer = %self.peer, ?place, %why, "ssh: remote forward refused")).ok()
    }

    /// What a person is told whose keys are all unknown.
    fn stranger(&self) -> String {
        let domain = self.gateway.directory.borrow().domain().to_owned();
        let keys = match self.unknown.as_slice() {
            [] => "You showed no public key.".to_owned(),
            [key] => format!("The key you showed is in no account: {key}."),
            keys => format!("None of the keys you showed is in an account: {}.", keys.join(", ")),
        };
        format!(
            "{domain} lets people in by public key only. {keys}\n\
             Make one with `ssh-keygen -t ed25519`, and have its .pub added to your account.\n"
        )
    }
}

/// A refusal with words; OpenSSH prints them.
pub fn refusal(reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: ChannelOpenFailure::AdministrativelyProhibited.code(), reason }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Reject { proceed_with_methods: Some(super::methods()), partial_success: false })
    }

    async fn auth_password(&mut self, _user: &str, _password: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Reject { proceed_with_methods: Some(super::methods()), partial_success: false })
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = self.gateway.directory.borrow().person(offer.public_key).is_some();
        if known && super::algorithms::is_acceptable(offer.algorithm) {
            return Ok(Auth::Accept);
        }
        if self.unknown.len() < 8 {
            self.unknown.push(offer.public_key.fingerprint(HashAlg::Sha256).to_string());
        }
        Ok(Auth::reject())
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        // The user name may have changed since the offer, and the replica too: only what is proven now counts.
        let person = self.gateway.directory.borrow().person(key.public_key);
        let Some(person) = person.filter(|_| super::algorithms::is_acceptable(key.algorithm)) else {
            return Ok(Auth::reject());
        };
        let fingerprint = key.public_key.fingerprint(HashAlg::Sha256);
        info!(peer = %self.peer, user, account = %person.home, key = %fingerprint, "ssh: authenticated");
        let key = Arc::new(key.public_key.clone());
        self.guest = Some(Guest { user: user.to_owned(), key, peer: self.peer });
        Ok(Auth::Accept)
    }

    async fn auth_openssh_certificate(
        &mut self,
        _user: &str,
        _certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        // No CA vouches for people here.
        Ok(Auth::reject())
    }

    /// Not a way in, but the one way to tell a person why there is none: its text is shown by ssh.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        if response.is_some() {
            let methods = MethodSet::from([MethodKind::PublicKey].as_slice());
            return Ok(Auth::Reject { proceed_with_methods: Some(methods), partial_success: false });
        }
        Ok(Auth::Partial { name: "".into(), instructions: self.stranger().into(), prompts: (&[]).into() })
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.login.succeeded();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.visit(session) {
            Ok(visit) => {
                reply.accept().await;
                tokio::spawn(session::run(visit, channel));
            }
            Err(failure) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.visit(session) {
            Ok(visit) => {
                let door = visit.door(Destination::Tcp { host, port });
                tokio::spawn(forward::tcp(visit, channel, reply, door, host.to_owned(), port));
            }
            Err(failure) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.visit(session) {
            Ok(visit) => {
                let door = visit.door(Destination::UnixSocket);
                tokio::spawn(forward::unix_socket(visit, channel, reply, door, path.to_owned()));
            }
            Err(failure) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Servers open these, not clients.
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    /// An agent is forwarded into machines, not into the lobby.
    async fn agent_request(
        &mut self,
        _channel: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(guest) = &self.guest else { return Ok(false) };
        let door = guest.look(&self.gateway.directory.borrow(), Destination::Session);
        Ok(matches!(door, Door::Machine(_)))
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let chosen = self.listen(session.handle(), Place::Tcp(address.to_owned(), *port)).await;
        if let Some(chosen) = chosen.filter(|_| *port == 0) {
            *port = chosen;
        }
        Ok(chosen.is_some())
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.remote.end(Place::Tcp(address.to_owned(), port)).await)
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.listen(session.handle(), Place::UnixSocket(path.to_owned())).await.is_some())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.remote.end(Place::UnixSocket(path.to_owned())).await)
    }
}
