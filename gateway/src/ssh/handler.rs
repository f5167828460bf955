//! One client's connection, as russh calls it.
//!
//! Thin on purpose: these run inside the session's loop, so nothing here waits for anything but russh itself. Each channel gets a
//! task of its own, and the messages of the channel reach that task through its queue, in order.
//!
//! Requests are answered here and at once, before the machine was asked: russh remembers one wanted reply a channel, and OpenSSH sends
//! `pty-req`, `env` and `shell` in one go, so an answer given later would be taken for another request's. What the machine then
//! refuses is told on standard error.

use std::sync::Arc;
use std::time::SystemTime;

use mashines_fleet::record::{Machine, UnixMs};
use mashines_ssh::algorithms;
use russh::keys::Certificate;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, server};
use tokio::sync::Semaphore;
use tracing::{debug, info};

use super::newcomer::Newcomer;
use super::remote::Remote;
use super::{Gateway, Login, forward, session};
use crate::arrival::Arrival;
use crate::certificate::Terms;
use crate::directory::{Directory, Person, Proof};
use crate::route::{Asker, Destination, Door, route};
use crate::upstream::Place;

/// Channels at once in one connection. A channel holds at most a window and a queue, so this bounds a connection's memory.
const MAX_CHANNELS: usize = 64;

/// Who is at the other end, once that is known.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The name that was logged in as.
    pub user: String,
    /// What was proved. Whose it is, is looked up at each door: a key that was taken out of an account opens none, and no
    /// certificate that has expired does.
    pub proof: Proof,
    /// Where they are, and where they came in.
    pub arrival: Arrival,
}

impl Guest {
    /// Who it is, by what is known now.
    ///
    /// # Errors
    /// Nobody any more, and why.
    pub fn person(&self, directory: &Directory) -> Result<Person, String> {
        directory.person(&self.proof, self.arrival.peer.ip(), SystemTime::now())
    }

    /// Where the guest is let in for `destination`, and who they are. Noted in the audit trail (the log's target `audit`): who, from
    /// where, what, and whether.
    pub fn door(&self, directory: &Directory, destination: Destination<'_>) -> (Door, Option<Person>) {
        let (door, person) = self.look(directory, destination);
        let Self { user, proof, arrival: Arrival { peer, at } } = self;
        match &door {
            Door::Machine(machine) | Door::Port(machine, _) => {
                let Machine { slug, account, .. } = &**machine;
                info!(target: "audit", %peer, %at, user, %proof, asked = ?destination, machine = %slug, %account);
            }
            Door::Lobby(account) => {
                info!(target: "audit", %peer, %at, user, %proof, asked = ?destination, lobby = %account);
            }
            Door::Refuse(why) => {
                info!(target: "audit", %peer, %at, user, %proof, asked = ?destination, refused = why)
            }
        }
        (door, person)
    }

    /// The same, when nothing is entered yet.
    fn look(&self, directory: &Directory, destination: Destination<'_>) -> (Door, Option<Person>) {
        let person = match self.person(directory) {
            Ok(person) => person,
            Err(why) => return (Door::Refuse(why), None),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = UnixMs::try_from(now).unwrap_or(UnixMs::MAX);
        let asker = Asker { user: &self.user, person: &person, at: self.arrival.at, now };
        (route(directory, asker, destination), Some(person))
    }
}

/// State of one connection.
pub struct Connection {
    gateway: Arc<Gateway>,
    login: Arc<Login>,
    arrival: Arrival,
    guest: Option<Guest>,
    channels: Arc<Semaphore>,
    remote: Remote,
    newcomer: Newcomer,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(gateway: Arc<Gateway>, login: Arc<Login>, arrival: Arrival) -> Self {
        let channels = Arc::new(Semaphore::new(MAX_CHANNELS));
        let newcomer = Newcomer::default();
        Self { gateway, login, arrival, guest: None, channels, remote: Remote::default(), newcomer }
    }

    /// What a channel's task is given: who asks, and a place among the connection's channels.
    fn visit(&self, session: &Session) -> Result<session::Visit, ChannelOpenFailure> {
        let guest = self.guest.clone().ok_or(ChannelOpenFailure::AdministrativelyProhibited)?;
        let slot = Arc::clone(&self.channels)
            .try_acquire_owned()
            .map_err(|_full| refusal(format!("no more than {MAX_CHANNELS} channels in one connection")))?;
        Ok(session::Visit::new(Arc::clone(&self.gateway), guest, session.handle(), slot))
    }

    /// On which terms the guest is here; on none once nobody knows them any more.
    fn terms(&self) -> Option<Terms> {
        let person = self.guest.as_ref()?.person(&self.gateway.directory.borrow()).ok()?;
        Some(person.holder.terms)
    }

    /// Has the machine listen for this client. A refusal has no words in the protocol, so they go to the log.
    async fn listen(&mut self, client: server::Handle, place: Place) -> Option<u32> {
        let guest = self.guest.as_ref()?;
        let begun = self.remote.begin(&self.gateway, guest, client, place.clone()).await;
        begun
            .inspect_err(|why| debug!(peer = %self.arrival.peer, ?place, %why, "ssh: remote forward refused"))
            .ok()
    }

    /// Lets somebody in who proved that.
    fn welcome(&mut self, user: &str, proof: Proof) -> Auth {
        let guest = Guest { user: user.to_owned(), proof, arrival: self.arrival };
        match guest.person(&self.gateway.directory.borrow()) {
            Ok(person) => {
                let account = person.home.as_ref().map_or("-", |home| home.as_str());
                info!(peer = %self.arrival.peer, user, account, proof = %guest.proof, "ssh: authenticated");
                self.guest = Some(guest);
                Auth::Accept
            }
            Err(why) => {
                self.newcomer.refused(&guest.proof, why);
                Auth::reject()
            }
        }
    }
}

/// A key that is not taken, and how the client may go on.
fn declined(methods: MethodSet) -> Auth {
    Auth::Reject { proceed_with_methods: Some(methods), partial_success: false }
}

/// A refusal with words; OpenSSH prints them.
pub fn refusal(reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: ChannelOpenFailure::AdministrativelyProhibited.code(), reason }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        self.login.spoke();
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
        self.login.spoke();
        if !algorithms::is_acceptable(offer.algorithm) {
            return Ok(Auth::reject());
        }
        let directory = self.gateway.directory.borrow();
        // A certificate is offered as the key in it, which no account lists: where certificates are trusted at all, what comes of a key
        // shows only with its signature. Elsewhere unknown keys are declined at once, so that a client with many comes to the right one.
        if directory.is_known(offer.public_key) || directory.trusts_cas() || self.newcomer.may_show_any_key()
        {
            return Ok(Auth::Accept);
        }
        let sign_up = directory.sign_up();
        drop(directory);
        Ok(declined(self.newcomer.showed(offer.public_key, sign_up)))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        // The user name may have changed since the offer, and the replica too: only what is proven now counts.
        if !algorithms::is_acceptable(key.algorithm) {
            return Ok(Auth::reject());
        }
        let proof = Proof::Key(Arc::new(key.public_key.clone()));
        let (known, sign_up) = {
            let directory = self.gateway.directory.borrow();
            (directory.is_known(key.public_key), directory.sign_up())
        };
        // On the heap: what is awaited here would otherwise be room in each connection's task for as long as it lives.
        if !known && !Box::pin(self.newcomer.sign_up(&self.gateway, key.public_key, self.arrival)).await {
            return Ok(declined(self.newcomer.showed(key.public_key, sign_up)));
        }
        Ok(self.welcome(user, proof))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        Ok(self.welcome(user, Proof::Certificate(Arc::new(certificate.clone()))))
    }

    /// Not a way in, but the one way to talk with a person who has none yet: its texts are shown by ssh, and what is answered begins
    /// the sign-up, which the key then ends.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let (domain, sign_up) = {
            let directory = self.gateway.directory.borrow();
            (directory.domain().to_owned(), directory.sign_up())
        };
        let Some(response) = response else {
            let (instructions, prompts) = self.newcomer.greeting(&domain, sign_up);
            return Ok(Auth::Partial {
                name: "".into(),
                instructions: instructions.into(),
                prompts: prompts.into(),
            });
        };
        let answers = response.map(|answer| String::from_utf8_lossy(&answer).trim().to_owned()).collect();
        let goes_on = self.newcomer.answered(answers);
        let methods = MethodSet::from([MethodKind::PublicKey].as_slice());
        // A partial success has the client show its keys again, from the one after the last.
        Ok(Auth::Reject { proceed_with_methods: Some(methods), partial_success: goes_on })
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
                tokio::spawn(forward::tcp(visit, channel, reply, host.to_owned(), port));
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
                tokio::spawn(forward::unix_socket(visit, channel, reply, path.to_owned()));
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
        // The channel's task sees the request too, and by the same terms.
        if self.terms().is_some_and(|terms| terms.pty) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
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
        let (door, person) = guest.look(&self.gateway.directory.borrow(), Destination::Session);
        Ok(matches!(door, Door::Machine(_)) && person.is_some_and(|person| person.holder.terms.agent))
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let chosen = Box::pin(self.listen(session.handle(), Place::Tcp(address.to_owned(), *port))).await;
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
        Ok(Box::pin(self.remote.end(Place::Tcp(address.to_owned(), port))).await)
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, Self::Error> {
        Ok(Box::pin(self.listen(session.handle(), Place::UnixSocket(path.to_owned()))).await.is_some())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(Box::pin(self.remote.end(Place::UnixSocket(path.to_owned()))).await)
    }
}
