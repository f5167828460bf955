//! Destination: lets the one right peer in.
//!
//! Each connection has a few seconds for TLS and its `Hello`, in a thread of its own, and only a few are looked at at a
//! time: one that says nothing holds nobody up.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::frame::Message;
use super::gate::Gate;
use super::handshake::{Hello, Role, migration_hash};
use super::link::{Identity, Link};
use super::tls::Credentials;

/// Connections whose handshake is under way.
const MOST: usize = 32;
/// For the `Hello` after TLS.
const HELLO: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(3);

/// Accepts until dropped.
pub struct Listener {
    address: SocketAddr,
    guests: Receiver<(Link, Hello)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What each connection is measured against.
struct Door {
    credentials: Credentials,
    migration_id: String,
    busy: AtomicUsize,
    gate: Arc<Gate>,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn new(
        listen: SocketAddr,
        credentials: Credentials,
        migration_id: String,
        gate: Arc<Gate>,
    ) -> Result<Self> {
        let socket =
            TcpListener::bind(listen).with_context(|| format!("listening on {listen} for a migration"))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let (enter, guests) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let door = Arc::new(Door { credentials, migration_id, busy: AtomicUsize::new(0), gate });
        let stopped = Arc::clone(&stop);
        let work = move || accept(&socket, &door, &enter, &stopped);
        let thread = std::thread::Builder::new().name("migrate-accept".into()).spawn(work)?;
        Ok(Self { address, guests, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection of the right peer and the right migration.
    ///
    /// # Errors
    /// When none came until `deadline`.
    pub fn next(&self, deadline: Instant) -> Result<(Link, Hello)> {
        match self.guests.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(guest) => Ok(guest),
            Err(RecvTimeoutError::Timeout) => bail!("the source did not come to {} in time", self.address),
            Err(RecvTimeoutError::Disconnected) => bail!("listening on {} ended", self.address),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only ends by `stop`.
            let _ = thread.join();
        }
    }
}

fn accept(socket: &TcpListener, door: &Arc<Door>, enter: &Sender<(Link, Hello)>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let guest = match socket.accept() {
            Ok((guest, _)) => guest,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    tracing::warn!(%error, "accepting a migration connection");
                }
                std::thread::sleep(LOOK);
                continue;
            }
        };
        if door.busy.fetch_add(1, Ordering::Relaxed) >= MOST {
            door.busy.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (thread_door, enter) = (Arc::clone(door), enter.clone());
        let work = move || {
            greet(&thread_door, guest, &enter);
            thread_door.busy.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("migrate-greet".into()).spawn(work) {
            door.busy.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "a migration connection got no thread");
        }
    }
}

fn greet(door: &Door, guest: TcpStream, enter: &Sender<(Link, Hello)>) {
    let peer = guest.peer_addr().map_or_else(|_| "?".to_owned(), |peer| peer.to_string());
    match admit(door, guest) {
        // The receiver is gone only when the migration has all it needs.
        Ok(admitted) => drop(enter.send(admitted)),
        Err(error) => {
            tracing::warn!(peer, error = format!("{error:#}"), "a migration connection was turned away")
        }
    }
}

fn admit(door: &Door, guest: TcpStream) -> Result<(Link, Hello)> {
    guest.set_nonblocking(false)?;
    let mut link = Link::accept(guest, &door.credentials)?;
    link.patience(HELLO)?;
    let (header, message) = link.receive()?;
    let Message::Hello(json) = message else { bail!("it does not begin with Hello") };
    let hello: Hello = serde_json::from_slice(&json).context("its Hello is unreadable")?;
    let stream = match hello.role {
        Role::Control { .. } => 0,
        Role::Data { stream } => stream,
    };
    let migration = migration_hash(&door.migration_id);
    if hello.migration_id != door.migration_id || header.migration != migration {
        let why = format!("migration {} is expected here, not {}", door.migration_id, hello.migration_id);
        let identity = Identity { migration: header.migration, epoch: header.epoch, stream: header.stream };
        link.identify(identity).abort(&why);
        bail!(why);
    }
    ensure!(header.stream == stream && header.epoch == hello.next_epoch, "its Hello contradicts its header");
    door.gate.guard(link.socket())?;
    Ok((link.identify(Identity { migration, epoch: hello.next_epoch, stream }), hello))
}
