//! A session channel: through the right door.

use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::id::AccountId;
use mashines_fleet::record::Machine;
use russh::server::{self, Msg};
use russh::{Channel, ChannelMsg};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tracing::debug;

use super::Gateway;
use super::bridge::{self, End, Held, Passage, STDERR};
use super::handler::Guest;
use crate::accounts::{Place, Purse};
use crate::certificate::Terms;
use crate::control::Caller;
use crate::directory::wakes;
use crate::lobby;
use crate::recording::Terminal;
use crate::route::{Destination, Door};
use crate::upstream::Wanted;
use crate::{git, wake};

/// After this long without a connection, the person is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that are kept for a machine that is not connected yet; more stays with the client.
const HELD_BYTES: usize = 1 << 20;

/// What a channel's task knows of its connection.
pub struct Visit {
    pub(super) gateway: Arc<Gateway>,
    pub(super) guest: Guest,
    /// The client's connection.
    pub(super) client: server::Handle,
    /// On which terms they are here.
    pub(super) terms: Terms,
    /// Whoever it is, for records: an account's name.
    name: String,
    /// A place among what the account has open, given back with the visit.
    place: Option<Place>,
    /// A place among the connection's channels, given back with the visit.
    _slot: OwnedSemaphorePermit,
}

impl Visit {
    /// A channel that was just opened, over `client`.
    pub fn new(
        gateway: Arc<Gateway>,
        guest: Guest,
        client: server::Handle,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let (terms, name) = (Terms::FREE, String::new());
        Self { gateway, guest, client, terms, name, place: None, _slot: slot }
    }

    /// Where the guest is let in for `destination`, by what is known now, and while their account has not all it may have.
    pub fn door(&mut self, destination: Destination<'_>) -> Door {
        let (door, person) = self.guest.door(&self.gateway.directory.borrow(), destination);
        let Some(person) = person else { return door };
        let owner = match &door {
            Door::Machine(machine) | Door::Port(machine, _) => &machine.account,
            Door::Lobby(account) => account,
            Door::Refuse(_) => return door,
        };
        let payer = person.home.as_ref().unwrap_or(owner);
        if self.place.is_none() {
            match self.gateway.accounts.enter(payer) {
                Ok(place) => self.place = Some(place),
                Err(full) => return Door::Refuse(full.to_string()),
            }
        }
        self.name = payer.to_string();
        self.terms = person.holder.terms;
        door
    }

    /// As what the guest acts in the lobby.
    pub fn caller(&self, account: AccountId) -> Result<Caller, String> {
        let person = self.guest.person(&self.gateway.directory.borrow())?;
        let standing = person.holder.whole.accounts().find(|(id, _)| **id == account);
        let standing =
            standing.map(|(_, standing)| standing).ok_or("the lobby is not open to you any more")?;
        Ok(Caller { account, standing })
    }

    /// Whoever it is, for records.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the account may move so many bytes more.
    pub async fn pay(&self, bytes: usize) {
        if let Some(place) = &self.place {
            place.purse().pay(bytes).await;
        }
    }

    /// What its bytes are paid from.
    pub fn purse(&self) -> Purse {
        self.place.as_ref().map(|place| place.purse().clone()).unwrap_or_default()
    }

    /// The machine, awake and with an address to dial.
    pub async fn awake(&self, machine: Arc<Machine>) -> Result<Arc<Machine>, String> {
        wake::awake(&self.gateway.control, &self.gateway.directory, machine).await
    }
}

/// Serves a session until it ends.
pub async fn run(mut visit: Visit, mut channel: Channel<Msg>) {
    match visit.door(Destination::Session) {
        Door::Machine(machine) | Door::Port(machine, _) => enter(visit, channel, machine, Held::new()).await,
        // Rare and large, so not part of each session's task.
        Door::Lobby(account) => Box::pin(lobby_or_git(visit, channel, account)).await,
        Door::Refuse(why) => {
            if begun(&mut channel, &visit.terms).await.is_some() {
                let (_, to) = channel.split();
                bridge::refuse(&to, &why).await;
            }
        }
    }
}

/// What was asked of a session before it began, and what began it.
#[derive(Debug)]
pub struct Begun {
    /// The terminal, if there is one.
    pub terminal: Option<Terminal>,
    /// The client's `GIT_PROTOCOL`.
    pub git_protocol: Option<String>,
    /// What it is.
    pub request: Request,
}

/// What a session is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A shell.
    Shell,
    /// One command.
    Exec(String),
    /// A subsystem, by its name.
    Subsystem(String),
}

/// Waits for the request that begins the session; none when the client closes before.
async fn begun(channel: &mut Channel<Msg>, terms: &Terms) -> Option<Begun> {
    let (mut terminal, mut git_protocol) = (None, None);
    loop {
        let request = match channel.wait().await? {
            ChannelMsg::RequestPty { term, col_width, row_height, .. } if terms.pty => {
                terminal = Some(Terminal { kind: term, size: (col_width, row_height) });
                continue;
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } if variable_name == "GIT_PROTOCOL" => {
                git_protocol = Some(variable_value);
                continue;
            }
            ChannelMsg::RequestShell { .. } => Request::Shell,
            ChannelMsg::Exec { command, .. } => Request::Exec(String::from_utf8_lossy(&command).into_owned()),
            ChannelMsg::RequestSubsystem { name, .. } => Request::Subsystem(name),
            ChannelMsg::Close => return None,
            _ => continue,
        };
        let request = terms.force_command.clone().map_or(request, Request::Exec);
        return Some(Begun { terminal, git_protocol, request });
    }
}

async fn lobby_or_git(visit: Visit, mut channel: Channel<Msg>, account: AccountId) {
    let Some(begun) = begun(&mut channel, &visit.terms).await else { return };
    let git = match &begun.request {
        Request::Exec(line) if visit.terms.force_command.is_none() => git::parse(line),
        Request::Exec(_) | Request::Shell | Request::Subsystem(_) => None,
    };
    match git {
        Some(Ok(command)) => super::git::run(visit, channel, command, begun.git_protocol.as_deref()).await,
        Some(Err(why)) => bridge::refuse(&channel.split().1, &why).await,
        None => match visit.caller(account) {
            Ok(caller) => lobby::serve(visit.gateway.lobby.clone(), caller, channel, begun).await,
            Err(why) => bridge::refuse(&channel.split().1, &why).await,
        },
    }
}

fn begins(message: &ChannelMsg) -> bool {
    matches!(
        message,
        ChannelMsg::RequestShell { .. } | ChannelMsg::Exec { .. } | ChannelMsg::RequestSubsystem { .. }
    )
}

/// Joins the channel to a session in the machine, where `held` is said first.
pub async fn enter(visit: Visit, mut channel: Channel<Msg>, machine: Arc<Machine>, held: Held) {
    let opening = async {
        let machine = visit.awake(Arc::clone(&machine)).await?;
        let opened = visit.gateway.pool.open(&machine.account, &machine, &Wanted::Session).await;
        opened.map_err(|error| error.to_string())
    };
    // Given back once it is open: a session is idle for most of its life.
    let mut opening = Box::pin(opening);
    let mut waiting = Waiting::new(&machine, held);
    let opened = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            message = channel.wait(), if waiting.has_room() => match message {
                None | Some(ChannelMsg::Close) => return,
                Some(message) => waiting.keep(message),
            },
            () = &mut waiting.patience, if !waiting.told => waiting.tell(&channel).await,
        }
    };
    drop(opening);
    match opened {
        Ok((mut lease, machine_side)) => {
            let passage = Passage { visit: &visit, machine: &machine };
            let end = bridge::session(channel, waiting.held, machine_side, &mut lease, &passage).await;
            debug!(machine = %machine.slug, ?end, "ssh: session ended");
            if end == End::Clean {
                lease.give_back();
            }
        }
        Err(why) => {
            if waiting.begun || begun(&mut channel, &visit.terms).await.is_some() {
                let (_, to) = channel.split();
                bridge::refuse(&to, &why).await;
            }
        }
    }
}

/// What happens on the client's side while the machine is being connected to.
struct Waiting {
    slug: String,
    asleep: bool,
    held: Held,
    bytes: usize,
    begun: bool,
    /// Somebody sits at a terminal: what is said on standard error gets into no scp, rsync or git.
    terminal: bool,
    told: bool,
    patience: std::pin::Pin<Box<Sleep>>,
}

impl Waiting {
    fn new(machine: &Machine, held: Held) -> Self {
        Self {
            slug: machine.slug.to_string(),
            asleep: wakes(machine),
            begun: held.iter().any(begins),
            held,
            bytes: 0,
            terminal: false,
            told: false,
            patience: Box::pin(sleep(PATIENCE)),
        }
    }

    fn has_room(&self) -> bool {
        self.bytes < HELD_BYTES && self.held.len() < 1024
    }

    fn keep(&mut self, message: ChannelMsg) {
        if let ChannelMsg::Data { data } = &message {
            self.bytes += data.len();
        }
        self.begun |= begins(&message);
        self.terminal |= matches!(message, ChannelMsg::RequestPty { .. });
        self.held.push_back(message);
    }

    async fn tell(&mut self, channel: &Channel<Msg>) {
        self.told = true;
        if self.begun && self.terminal {
            let what = if self.asleep { "start" } else { "answer" };
            let line = format!("mashines: waiting for machine {} to {what}\r\n", self.slug);
            let _gone = channel.extended_data_bytes(STDERR, line.into_bytes()).await;
        }
    }
}
