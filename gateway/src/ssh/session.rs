//! A session channel: through the right door.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::record::Machine;
use russh::server::{self, Msg};
use russh::{Channel, ChannelMsg};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tracing::debug;

use super::Gateway;
use super::bridge::{self, End, Held, STDERR};
use super::handler::Guest;
use crate::lobby;
use crate::route::{Destination, Door};
use crate::upstream::Wanted;

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
    /// A place among the connection's channels, given back with the visit.
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Visit {
    /// Where the guest is let in for `destination`, by what is known now.
    pub fn door(&self, destination: Destination<'_>) -> Door {
        self.guest.door(&self.gateway.directory.borrow(), destination)
    }
}

/// Serves a session until it ends.
pub async fn run(visit: Visit, mut channel: Channel<Msg>) {
    match visit.door(Destination::Session) {
        Door::Machine(machine) | Door::Port(machine, _) => enter(visit, channel, machine).await,
        Door::Lobby(account) => {
            let lobby = visit.gateway.lobby.clone();
            lobby::serve(lobby, account, channel).await;
        }
        Door::Refuse(why) => {
            if until_begun(&mut channel).await {
                let (_, to) = channel.split();
                bridge::refuse(&to, &why).await;
            }
        }
    }
}

/// Waits for the request that begins the session; false when the client closes before.
async fn until_begun(channel: &mut Channel<Msg>) -> bool {
    while let Some(message) = channel.wait().await {
        if begins(&message) {
            return true;
        }
    }
    false
}

fn begins(message: &ChannelMsg) -> bool {
    matches!(
        message,
        ChannelMsg::RequestShell { .. } | ChannelMsg::Exec { .. } | ChannelMsg::RequestSubsystem { .. }
    )
}

async fn enter(visit: Visit, mut channel: Channel<Msg>, machine: Arc<Machine>) {
    let opening = visit.gateway.pool.open(&machine.account, &machine, &Wanted::Session);
    tokio::pin!(opening);
    let mut waiting = Waiting::new(&machine);
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
    match opened {
        Ok((mut lease, machine_side)) => {
            let end = bridge::session(channel, waiting.held, &visit.client, machine_side, &mut lease).await;
            debug!(machine = %machine.slug, ?end, "ssh: session ended");
            if end == End::Clean {
                lease.give_back();
            }
        }
        Err(error) => {
            if waiting.begun || until_begun(&mut channel).await {
                let (_, to) = channel.split();
                bridge::refuse(&to, &error.to_string()).await;
            }
        }
    }
}

/// What happens on the client's side while the machine is being connected to.
struct Waiting {
    slug: String,
    held: Held,
    bytes: usize,
    begun: bool,
    /// Somebody sits at a terminal: what is said on standard error gets into no scp, rsync or git.
    terminal: bool,
    told: bool,
    patience: std::pin::Pin<Box<Sleep>>,
}

impl Waiting {
    fn new(machine: &Machine) -> Self {
        Self {
            slug: machine.slug.to_string(),
            held: VecDeque::new(),
            bytes: 0,
            begun: false,
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
            let line = format!("mashines: waiting for machine {} to answer\r\n", self.slug);
            let _gone = channel.extended_data_bytes(STDERR, line.into_bytes()).await;
        }
    }
}
