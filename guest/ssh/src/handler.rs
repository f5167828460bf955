//! One client's connection, as russh calls it.
//!
//! Thin on purpose: these run inside the session's loop, so nothing here waits for anything but russh itself. Each request is answered
//! here, once and at once: a client waits for ever for an answer that does not come. Programs are started here too, so that the answer is
//! true; a task of the channel's own then carries their bytes. Signals and sizes do not go by that task, whose queue may be full.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use mashines_ssh::algorithms;
use russh::keys::Certificate;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::access::{Terms, USER};
use crate::forward;
use crate::program::{self, Request};
use crate::remote::{Place, Remote};
use crate::server::{Machine, methods};
use crate::session::{self, Asked, Controls};
use crate::terminal::Terminal;

/// Channels at once in one connection.
const MAX_CHANNELS: usize = 64;

/// Variables that a client may set in one session.
const MAX_VARIABLES: usize = 64;

/// State of one connection.
pub struct Connection {
    machine: Arc<Machine>,
    peer: SocketAddr,
    local: SocketAddr,
    proved: CancellationToken,
    /// None until something was proved.
    terms: Option<Terms>,
    channels: Arc<Semaphore>,
    seats: HashMap<ChannelId, Seat>,
    remote: Remote,
}

/// A session channel.
enum Seat {
    /// What runs in it is not known yet.
    Waiting(Box<Waiting>),
    /// Something runs in it; dropping the guard ends that.
    Running(Controls, #[allow(dead_code, reason = "held for its drop")] DropGuard),
}

struct Waiting {
    channel: Channel<Msg>,
    slot: OwnedSemaphorePermit,
    variables: Vec<(String, OsString)>,
    terminal: Option<Terminal>,
    agent: Option<forward::AgentSocket>,
}

impl Connection {
    /// A connection that has just been accepted; `proved` is told when somebody has logged in.
    pub fn new(
        machine: Arc<Machine>,
        peer: SocketAddr,
        local: SocketAddr,
        proved: CancellationToken,
    ) -> Self {
        let channels = Arc::new(Semaphore::new(MAX_CHANNELS));
        let (terms, seats, remote) = (None, HashMap::new(), Remote::default());
        Self { machine, peer, local, proved, terms, channels, seats, remote }
    }

    /// A place for a channel, of somebody who is on `allowed` terms.
    fn slot(&self, allowed: impl FnOnce(&Terms) -> bool) -> Result<OwnedSemaphorePermit, ChannelOpenFailure> {
        if !self.terms.as_ref().is_some_and(allowed) {
            return Err(ChannelOpenFailure::AdministrativelyProhibited);
        }
        Arc::clone(&self.channels).try_acquire_owned().map_err(|_full| ChannelOpenFailure::ResourceShortage)
    }

    fn may_forward(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.forwarding)
    }

    fn waiting(&mut self, channel: ChannelId) -> Option<&mut Waiting> {
        match self.seats.get_mut(&channel) {
            Some(Seat::Waiting(waiting)) => Some(waiting),
            Some(Seat::Running(..)) | None => None,
        }
    }

    /// Begins what a session is for.
    fn begin(&mut self, id: ChannelId, request: Request, session: &mut Session) -> Result<(), russh::Error> {
        let Some(Seat::Waiting(waiting)) = self.seats.remove(&id) else {
            return session.channel_failure(id);
        };
        let Waiting { channel, slot, mut variables, terminal, agent } = *waiting;
        let request = self.forced(request, &mut variables);
        variables.extend(self.connection(terminal.as_ref(), agent.as_ref()));
        let asked = Asked { request, terminal, variables };
        let gone = CancellationToken::new();
        let controls = Controls::default();
        let started = session::start(asked, &self.machine.config.env, &controls);
        self.seats.insert(id, Seat::Running(controls.clone(), gone.clone().drop_guard()));
        // Before the first byte that the program says.
        session.channel_success(id)?;
        let client = session.handle();
        tokio::spawn(async move {
            let agent = agent.map(|agent| agent.serve(client.clone()));
            match started {
                Ok(running) => session::run(channel, running, client, gone).await,
                Err(why) => session::refuse(&channel, &why).await,
            }
            controls.over();
            drop((agent, slot));
        });
        Ok(())
    }

    /// A certificate's command in place of what was asked for, which is told in `SSH_ORIGINAL_COMMAND` (`sshd_config(5)`, ForceCommand).
    fn forced(&self, request: Request, variables: &mut Vec<(String, OsString)>) -> Request {
        let Some(forced) = self.terms.as_ref().and_then(|terms| terms.force_command.clone()) else {
            return request;
        };
        let original = match request {
            Request::Shell => None,
            Request::Exec(line) => Some(String::from_utf8_lossy(&line).into_owned()),
            Request::Sftp => Some("internal-sftp".to_owned()),
        };
        variables.extend(original.map(|line| ("SSH_ORIGINAL_COMMAND".to_owned(), line.into())));
        Request::Exec(forced.into_bytes())
    }

    /// What `ssh(1)`, ENVIRONMENT, promises.
    fn connection(
        &self,
        terminal: Option<&Terminal>,
        agent: Option<&forward::AgentSocket>,
    ) -> Vec<(String, OsString)> {
        let (from, from_port) = (self.peer.ip().to_canonical(), self.peer.port());
        let (to, to_port) = (self.local.ip().to_canonical(), self.local.port());
        let mut all = vec![
            ("SSH_CLIENT".to_owned(), format!("{from} {from_port} {to_port}").into()),
            ("SSH_CONNECTION".to_owned(), format!("{from} {from_port} {to} {to_port}").into()),
        ];
        if let Some(terminal) = terminal {
            all.push(("SSH_TTY".to_owned(), terminal.path.clone().into()));
            all.push(("TERM".to_owned(), terminal.kind.clone().into()));
        }
        all.extend(agent.map(|agent| ("SSH_AUTH_SOCK".to_owned(), agent.path().into())));
        all
    }

    fn welcome(&mut self, terms: Terms) -> Auth {
        self.terms = Some(terms);
        Auth::Accept
    }
}

/// Not this key, but maybe another one.
fn declined() -> Auth {
    Auth::Reject { proceed_with_methods: Some(methods()), partial_success: false }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(declined())
    }

    async fn auth_password(&mut self, _user: &str, _password: &str) -> Result<Auth, Self::Error> {
        Ok(declined())
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let access = &self.machine.access;
        // A certificate is offered as the key in it: what comes of that shows only with its signature.
        let may_open = user == USER
            && algorithms::is_acceptable(offer.algorithm)
            && (access.knows(offer.public_key) || access.takes_certificates());
        Ok(if may_open { Auth::Accept } else { declined() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let opens = user == USER
            && algorithms::is_acceptable(key.algorithm)
            && self.machine.access.knows(key.public_key);
        Ok(if opens { self.welcome(Terms::FREE) } else { declined() })
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        if user != USER {
            return Ok(declined());
        }
        match self.machine.access.judge(certificate, SystemTime::now()) {
            Ok(terms) => Ok(self.welcome(terms)),
            Err(why) => {
                crate::note(format_args!(
                    "{}: a certificate ({}) is refused: {why}",
                    self.peer,
                    certificate.key_id()
                ));
                Ok(declined())
            }
        }
    }

    /// Not a way in, but the one way to tell people why there is none: clients show its instructions.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        if response.is_some() {
            let methods = MethodSet::from([MethodKind::PublicKey].as_slice());
            return Ok(Auth::Reject { proceed_with_methods: Some(methods), partial_success: false });
        }
        let instructions = if user == USER {
            "mashines: none of your keys opens this machine; its account's keys do, as they were at its last start".to_owned()
        } else {
            let user: String = user.chars().filter(|c| !c.is_control()).take(32).collect();
            format!("mashines: this machine runs a single process and has no user {user}: log in as {USER}")
        };
        Ok(Auth::Partial { name: "".into(), instructions: instructions.into(), prompts: Vec::new().into() })
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.proved.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.seats.retain(|_, seat| !matches!(seat, Seat::Running(controls, _) if controls.is_over()));
        match self.slot(|_| true) {
            Ok(slot) => {
                reply.accept().await;
                let id = channel.id();
                let waiting = Waiting { channel, slot, variables: Vec::new(), terminal: None, agent: None };
                self.seats.insert(id, Seat::Waiting(Box::new(waiting)));
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
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.slot(|terms| terms.forwarding) {
            Ok(slot) => drop(tokio::spawn(forward::tcp(channel, reply, host.to_owned(), port, slot))),
            Err(failure) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.slot(|terms| terms.forwarding) {
            Ok(slot) => drop(tokio::spawn(forward::unix_socket(channel, reply, path.to_owned(), slot))),
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

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.seats.remove(&channel);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let allowed = self.terms.as_ref().is_some_and(|terms| terms.pty);
        let Some(waiting) = self.waiting(channel).filter(|waiting| allowed && waiting.terminal.is_none())
        else {
            return session.channel_failure(channel);
        };
        match Terminal::open(term, (columns, rows, width, height), modes) {
            Ok(terminal) => {
                waiting.terminal = Some(terminal);
                session.channel_success(channel)
            }
            Err(error) => {
                crate::note(format_args!("no terminal (is /dev/pts mounted?): {error}"));
                session.channel_failure(channel)
            }
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let takes = |waiting: &&mut Waiting| {
            program::may_set(name) && !value.contains('\0') && waiting.variables.len() < MAX_VARIABLES
        };
        match self.waiting(channel).filter(takes) {
            Some(waiting) => {
                waiting.variables.push((name.to_owned(), value.into()));
                session.channel_success(channel)
            }
            None => session.channel_failure(channel),
        }
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.begin(channel, Request::Shell, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.begin(channel, Request::Exec(command.to_vec()), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == "sftp" {
            self.begin(channel, Request::Sftp, session)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = (columns, rows, width, height);
        match self.seats.get(&channel) {
            Some(Seat::Running(controls, _)) => controls.resize(size),
            Some(Seat::Waiting(waiting)) => {
                // A terminal that is gone has no size.
                let _ = waiting.terminal.as_ref().map(|terminal| terminal.ours.resize(size));
            }
            None => {}
        }
        session.channel_success(channel)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(Seat::Running(controls, _)) = self.seats.get(&channel) {
            controls.signal(&signal);
        }
        Ok(())
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

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let allowed = self.terms.as_ref().is_some_and(|terms| terms.agent);
        let Some(waiting) = self.waiting(channel).filter(|_| allowed) else { return Ok(false) };
        match forward::AgentSocket::new() {
            Ok(socket) => waiting.agent = Some(socket),
            Err(error) => {
                crate::note(format_args!("no socket for a client's agent: {error}"));
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if !self.may_forward() {
            return Ok(false);
        }
        let place = Place::Tcp(address.to_owned(), *port);
        let Ok(chosen) = self.remote.begin(place, session.handle()).await else { return Ok(false) };
        *port = chosen;
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.remote.end(&Place::Tcp(address.to_owned(), port)))
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.may_forward()
            && self.remote.begin(Place::Unix(path.to_owned()), session.handle()).await.is_ok())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.remote.end(&Place::Unix(path.to_owned())))
    }
}
