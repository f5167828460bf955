//! TCP and unix sockets through a connection: `ssh -L`, `-W`, `-J`, and the client's agent.
//!
//! A channel is confirmed only once the other side is connected, so that a client sees a refusal as a refusal.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::resolve::resolve;

/// Read at once: OpenSSH's packet size.
const CHUNK: usize = 32 * 1024;

/// For one address.
const CONNECT: Duration = Duration::from_secs(10);

/// A `direct-tcpip` channel.
pub async fn tcp(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    host: String,
    port: u32,
    _slot: OwnedSemaphorePermit,
) {
    match connect(&host, port).await {
        Ok(stream) => {
            reply.accept().await;
            let (from, to) = stream.into_split();
            join(channel, from, to).await;
        }
        Err(error) => reply.reject(unreachable(format!("{host} port {port}: {error}"))).await,
    }
}

/// A `direct-streamlocal` channel.
pub async fn unix_socket(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    path: String,
    _slot: OwnedSemaphorePermit,
) {
    match UnixStream::connect(&path).await {
        Ok(stream) => {
            reply.accept().await;
            let (from, to) = stream.into_split();
            join(channel, from, to).await;
        }
        Err(error) => reply.reject(unreachable(format!("{path}: {error}"))).await,
    }
}

fn unreachable(reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: ChannelOpenFailure::ConnectFailed.code(), reason }
}

async fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(|_| io::Error::other("that is no TCP port"))?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve(host).await? {
        let connected = timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await;
        match connected.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Joins a channel and a stream until both directions have ended, or either side is gone.
pub async fn join(
    channel: Channel<Msg>,
    mut stream_out: impl AsyncRead + Unpin,
    mut stream_in: impl AsyncWrite + Unpin,
) {
    let (mut from_client, to_client) = channel.split();
    let client_ended = CancellationToken::new();
    // Watched to the end: a client may close its channel long after it has said that it has no more to send.
    let forth = client_to_stream(&mut from_client, &mut stream_in, &client_ended);
    let back = async {
        if stream_to_client(&mut stream_out, &to_client).await.is_ok() {
            client_ended.cancelled().await;
        }
    };
    tokio::select! {
        _closed = forth => (),
        () = back => (),
    }
    let _gone = to_client.close().await;
}

/// Ends when the client closes, or the stream takes no more.
async fn client_to_stream(
    from: &mut ChannelReadHalf,
    to: &mut (impl AsyncWrite + Unpin),
    ended: &CancellationToken,
) -> io::Result<()> {
    while let Some(message) = from.wait().await {
        match message {
            ChannelMsg::Data { data } => to.write_all(&data).await?,
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

async fn stream_to_client(
    from: &mut (impl AsyncRead + Unpin),
    to: &ChannelWriteHalf<Msg>,
) -> Result<(), russh::Error> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK);
        if from.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return to.eof().await;
        }
        to.data_bytes(buffer.split().freeze()).await?;
    }
}

/// A socket in the machine that leads to the client's agent.
#[derive(Debug)]
pub struct AgentSocket {
    listener: UnixListener,
    folder: Folder,
}

/// A directory that only root may enter; removed when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A read-only machine keeps an empty directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl AgentSocket {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let base =
            ["/tmp", "/run"].into_iter().map(Path::new).find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let folder = base.join(format!("ssh-{:016x}", u64::from_ne_bytes(bytes)));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let folder = Folder(folder);
        let listener = UnixListener::bind(folder.0.join("agent"))?;
        Ok(Self { listener, folder })
    }

    /// What goes into `SSH_AUTH_SOCK`.
    pub fn path(&self) -> PathBuf {
        self.folder.0.join("agent")
    }

    /// Leads whoever connects to the client, until what is returned is dropped.
    pub fn serve(self, client: Handle) -> DropGuard {
        let over = CancellationToken::new();
        let guard = over.clone().drop_guard();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            let Self { listener, folder: _folder } = self;
            while let Ok((stream, _)) = listener.accept().await {
                let client = client.clone();
                tokio::spawn(async move {
                    if let Ok(channel) = client.channel_open_agent().await {
                        let (from, to) = stream.into_split();
                        join(channel, from, to).await;
                    }
                });
            }
        }));
        guard
    }
}
