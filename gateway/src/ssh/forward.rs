//! TCP and unix sockets through a connection: `ssh -J`, `-W`, `-L`.
//!
//! A channel is confirmed only once the other side is connected, so that a client sees a refusal as a refusal.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use mashines_fleet::record::Machine;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::bridge::{self, End};
use super::handler::refusal;
use super::session::Visit;
use crate::dial::{dial, patience};
use crate::route::{Destination, Door};
use crate::upstream::Wanted;

/// Read at once from a machine: OpenSSH's packet size.
const CHUNK: usize = 32 * 1024;

/// A `direct-tcpip` channel.
pub async fn tcp(mut visit: Visit, channel: Channel<Msg>, reply: ChannelOpenHandle, host: String, port: u32) {
    match visit.door(Destination::Tcp { host: &host, port }) {
        Door::Port(machine, port) => straight(visit, channel, reply, machine, port).await,
        Door::Machine(machine) => match u16::try_from(port) {
            Ok(port) => inside(visit, channel, reply, machine, Wanted::Tcp(host, port)).await,
            Err(_) => reply.reject(refusal(format!("{port} is no TCP port"))).await,
        },
        Door::Refuse(why) => reply.reject(refusal(why)).await,
        Door::Lobby(_) => reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
    }
}

/// A `direct-streamlocal` channel.
pub async fn unix_socket(mut visit: Visit, channel: Channel<Msg>, reply: ChannelOpenHandle, path: String) {
    match visit.door(Destination::UnixSocket) {
        Door::Machine(machine) | Door::Port(machine, _) => {
            inside(visit, channel, reply, machine, Wanted::UnixSocket(path)).await;
        }
        Door::Refuse(why) => reply.reject(refusal(why)).await,
        Door::Lobby(_) => reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
    }
}

/// To a port of the machine's address.
async fn straight(
    visit: Visit,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    machine: Arc<Machine>,
    port: u16,
) {
    let port = if port == 22 { visit.gateway.machine_port } else { port };
    let connected = async {
        let machine = visit.awake(machine).await?;
        let stream = dial(SocketAddr::new(machine.net.ipv6.into(), port), patience(&machine)).await;
        stream.map_err(|error| format!("machine {} cannot be reached: {error}", machine.slug))
    };
    match connected.await {
        Ok(stream) => {
            reply.accept().await;
            splice(channel, stream, &visit).await;
        }
        Err(reason) => reply.reject(unreachable(reason)).await,
    }
}

fn unreachable(reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: ChannelOpenFailure::ConnectFailed.code(), reason }
}

/// From inside the machine, through its sshd.
async fn inside(
    visit: Visit,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    machine: Arc<Machine>,
    wanted: Wanted,
) {
    let opened = async {
        let machine = visit.awake(machine).await?;
        let opened = visit.gateway.pool.open(&machine.account, &machine, &wanted).await;
        opened.map_err(|error| error.to_string())
    };
    match opened.await {
        Ok((lease, machine_side)) => {
            reply.accept().await;
            if bridge::plain(channel, machine_side, &visit.purse()).await == End::Clean {
                lease.give_back();
            }
        }
        Err(reason) => {
            debug!(%reason, "ssh: forwarding refused");
            reply.reject(unreachable(reason)).await;
        }
    }
}

/// Joins a channel and a TCP connection until both directions have ended, or either side is gone.
async fn splice(channel: Channel<Msg>, stream: TcpStream, visit: &Visit) {
    let (mut from_client, to_client) = channel.split();
    let (mut from_machine, mut to_machine) = stream.into_split();
    let client_ended = CancellationToken::new();
    // Watched to the end: a client may close its channel long after it has said that it has no more to send.
    let forth = client_to_machine(&mut from_client, &mut to_machine, &client_ended, visit);
    let back = async {
        if machine_to_client(&mut from_machine, &to_client, visit).await.is_ok() {
            client_ended.cancelled().await;
        }
    };
    tokio::select! {
        _closed = forth => (),
        () = back => (),
    }
    let _gone = to_client.close().await;
}

/// Ends when the client closes, or the machine takes no more.
async fn client_to_machine(
    from: &mut ChannelReadHalf,
    to: &mut OwnedWriteHalf,
    ended: &CancellationToken,
    visit: &Visit,
) -> std::io::Result<()> {
    while let Some(message) = from.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                visit.pay(data.len()).await;
                to.write_all(&data).await?;
            }
            ChannelMsg::Eof => {
                to.shutdown().await?;
                ended.cancel();
            }
            ChannelMsg::Close => return Ok(()),
            _ => (),
        }
    }
    Ok(())
}

async fn machine_to_client(
    from: &mut OwnedReadHalf,
    to: &ChannelWriteHalf<Msg>,
    visit: &Visit,
) -> Result<(), russh::Error> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK);
        if from.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return to.eof().await;
        }
        visit.pay(buffer.len()).await;
        to.data_bytes(buffer.split().freeze()).await?;
    }
}
