//! The resolver's sockets. Nobody waits for what is forwarded for another, and connections are shared out by account and address.
//!
//! How fast one machine may ask is netd's to bound (its chain `input`): what is dropped only here has already pushed out others' questions.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::view::View;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::names::Directory;
use super::{AtOnce, Most, Places, Resolver};
use crate::follow::{advance, follow};
use crate::message::HEADER;

/// TCP connections at once.
const CONNECTIONS: Most = Most { in_all: 128, of_account: 32, of_address: 8 };
/// A connection that has not finished its next question by then is closed; one that does not take its answer, too.
const IDLE: Duration = Duration::from_secs(10);
/// The longest question that is read over UDP.
const LONGEST_QUESTION: usize = 2048;
/// What the kernel holds while questions come faster than they are read, as far as it allows.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;
/// Between two tries to bind.
const AGAIN: Duration = Duration::from_secs(5);

/// The role's part: answers a host's machines at `address` until the daemon ends, and asks `forward` for what is not theirs.
///
/// While the address is somebody else's this is no reason for a host to end: its machines run, and ask the next of their resolvers.
///
/// # Errors
/// A socket failed.
pub fn run(address: SocketAddr, forward: Vec<SocketAddr>, common: Common) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        if forward.is_empty() {
            warn!(
                "machines are answered `.internal` names only: set `guest_dns` in [host] to the resolvers that know all others"
            );
        }
        let serve = async {
            let sockets = bind_patiently(address).await;
            info!(%address, ?forward, "answering machines' questions for names");
            sockets.serve(common.view.clone(), forward).await
        };
        tokio::select! {
            () = common.stopped() => Ok(()),
            ended = serve => ended,
        }
    })
}

async fn bind_patiently(address: SocketAddr) -> Sockets {
    let mut told = None;
    loop {
        match Sockets::bind(address) {
            Ok(sockets) => return sockets,
            Err(error) => {
                let error = format!("{error:#}");
                if told.as_ref() != Some(&error) {
                    warn!("{error}; trying again every {AGAIN:?}");
                    told = Some(error);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// UDP and TCP at one address.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both, whether or not any interface has the address: netd leads packets to it by a route. Port 0 takes a free one.
    ///
    /// # Errors
    /// The address is taken; the error names it and says what to look at.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let tcp = bind(address, Type::STREAM, Protocol::TCP).and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        });
        let tcp = tcp.with_context(|| format!("machines' resolver at TCP {address}: {HINT}"))?;
        let address = tcp.local_addr()?;
        let udp = bind(address, Type::DGRAM, Protocol::UDP).and_then(|socket| {
            // Less than asked for is no error.
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            UdpSocket::from_std(socket.into())
        });
        let udp = udp.with_context(|| format!("machines' resolver at UDP {address}: {HINT}"))?;
        Ok(Self { udp, tcp })
    }

    /// Where they are.
    ///
    /// # Errors
    /// The socket's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Answers by what `views` says, and asks `forward` for the rest, for ever.
    ///
    /// # Errors
    /// A socket failed.
    pub async fn serve(
        self,
        views: watch::Receiver<Arc<View>>,
        forward: Vec<SocketAddr>,
    ) -> anyhow::Result<()> {
        let (directories, directory) = watch::channel(Directory::default());
        let resolver = Resolver::new(directory, forward);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(views, move |before, view| {
            advance(&directories, before, view, Directory::follow);
        }));
        let (Self { udp, tcp }, other) = (self, resolver.clone());
        tasks.spawn(async move { serve_udp(udp, other).await.context("the socket for machines") });
        tasks.spawn(async move { serve_tcp(tcp, resolver).await.context("the listener for machines") });
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of machines' resolver")??;
        }
        Ok(())
    }
}

const HINT: &str = "does another name server listen there, or on every address of this box? `ss -lnp 'sport = :53'` shows it";

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    if kind == Type::STREAM {
        // Connections of the one before that are not quite over are no reason to wait.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Answers on `socket` until it fails.
async fn serve_udp(socket: UdpSocket, resolver: Resolver) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LONGEST_QUESTION];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier answer is reported here. It says nothing about the socket.
            Err(error) => {
                debug!(%error, "receiving a machine's question");
                continue;
            }
        };
        let packet = buffer.get(..length).unwrap_or_default();
        if packet.len() < HEADER {
            continue;
        }
        match resolver.at_once(packet, peer.ip(), false) {
            AtOnce::Silence => {}
            AtOnce::Reply(reply) => {
                let _ = socket.try_send_to(&reply, peer);
            }
            AtOnce::Forward(question) => {
                let (socket, resolver, packet) = (Arc::clone(&socket), resolver.clone(), packet.to_vec());
                tokio::spawn(async move {
                    if let Some(reply) = resolver.forward(&packet, question, false).await {
                        let _ = socket.send_to(&reply, peer).await;
                    }
                });
            }
        }
    }
}

/// Accepts on `listener` for ever.
async fn serve_tcp(listener: TcpListener, resolver: Resolver) -> io::Result<()> {
    let connections = Places::new(CONNECTIONS);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a machine's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Strangers are not even read.
        let Some(account) = resolver.asker(peer.ip()) else { continue };
        let Some(place) = connections.take(account, peer.ip()) else { continue };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, peer, &resolver).await {
                debug!(%error, %peer, "a machine's connection");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, resolver: &Resolver) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let packet = timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await.map(|_| packet)
        });
        let Ok(Ok(packet)) = packet.await else { return Ok(()) };
        let Some(reply) = resolver.answer(&packet, peer.ip(), true).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await??;
    }
}
