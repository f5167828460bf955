//! `ssh -R`: ports and sockets that the machine listens on for a client, for as long as its connection lives.
//!
//! Ports are the machine's loopback's, whatever address was asked for (`sshd_config(5)`, GatewayPorts no).

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use russh::server::Handle;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::forward::join;

/// Ports and sockets of one client.
const MAX_PLACES: usize = 16;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An address and a port, 0 for any.
    Tcp(String, u32),
    /// A socket's path.
    Unix(String),
}

/// What one client has its machine listen on; all of it ends when this is dropped.
#[derive(Debug, Default)]
pub struct Remote(HashMap<Place, DropGuard>);

impl Remote {
    /// Begins to listen; the port that was chosen.
    pub async fn begin(&mut self, place: Place, client: Handle) -> io::Result<u32> {
        if self.0.len() >= MAX_PLACES || self.0.contains_key(&place) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let over = CancellationToken::new();
        match place {
            Place::Tcp(address, port) => {
                let wanted = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await?;
                let chosen = listener.local_addr()?.port();
                // A kernel without IPv6 listens on the one loopback that it has.
                let other = TcpListener::bind((Ipv6Addr::LOCALHOST, chosen)).await.ok();
                for listener in [Some(listener), other].into_iter().flatten() {
                    let leading = tcp(listener, client.clone(), address.clone(), chosen.into());
                    tokio::spawn(over.clone().run_until_cancelled_owned(leading));
                }
                self.0.insert(Place::Tcp(address, chosen.into()), over.drop_guard());
                Ok(chosen.into())
            }
            Place::Unix(path) => {
                let listener = UnixListener::bind(&path)?;
                let socket = Socket(path.clone().into());
                tokio::spawn(over.clone().run_until_cancelled_owned(unix(
                    listener,
                    socket,
                    client,
                    path.clone(),
                )));
                self.0.insert(Place::Unix(path), over.drop_guard());
                Ok(0)
            }
        }
    }

    /// Listens there no longer; whether it did.
    pub fn end(&mut self, place: &Place) -> bool {
        self.0.remove(place).is_some()
    }
}

async fn tcp(listener: TcpListener, client: Handle, address: String, port: u32) {
    while let Ok((stream, from)) = listener.accept().await {
        let (client, address) = (client.clone(), address.clone());
        tokio::spawn(async move {
            let (peer, peer_port) = (from.ip().to_string(), u32::from(from.port()));
            let opened = client.channel_open_forwarded_tcpip(address, port, peer, peer_port).await;
            if let Ok(channel) = opened {
                let (from, to) = stream.into_split();
                join(channel, from, to).await;
            }
        });
    }
}

/// A socket's file; removed when dropped.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever removed it before has done the same.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn unix(listener: UnixListener, _socket: Socket, client: Handle, path: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            if let Ok(channel) = client.channel_open_forwarded_streamlocal(path).await {
                let (from, to) = stream.into_split();
                join(channel, from, to).await;
            }
        });
    }
}
