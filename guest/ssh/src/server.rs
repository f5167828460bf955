//! Port 22: accepts, limits, and gives each connection its login grace.
//!
//! Invariants: whoever else listens on the port keeps it; who has not proved anything within [`GRACE`] is cut off; at most
//! [`MAX_CONNECTIONS`] connections, of which [`MAX_STRANGERS`] have proved nothing yet.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mashines_guest::Config;
use mashines_ssh::{Severable, algorithms};
use russh::keys::key::safe_rng;
use russh::keys::{Algorithm, Certificate, PrivateKey};
use russh::{Disconnect, MethodKind, MethodSet, SshId, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::handler::Connection;

/// Port 22 of every address, of both families.
pub const EVERYWHERE: &str = "[::]:22";

const MAX_CONNECTIONS: usize = 256;
/// The gateway opens a connection for each session that begins while all its others are busy, so many may come at once.
const MAX_STRANGERS: usize = 100;

/// To prove a key.
const GRACE: Duration = Duration::from_secs(30);

/// How long a client that was told to go may take to go.
const PARTING: Duration = Duration::from_secs(1);

/// Between attempts to get a port that another program has.
const RETRY: Duration = Duration::from_secs(10);

/// How long the image's own process has to take the port before us: an image that brings an SSH server gets more.
const HEAD_START: Duration = Duration::from_millis(300);
const HEAD_START_OF_SSHD: Duration = Duration::from_secs(3);
const SSH_SERVERS: [&str; 4] =
    ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/sbin/dropbear", "/usr/bin/dropbear"];

/// Messages that wait for a channel's task (gateway/src/ssh/mod.rs says why so many).
const CHANNEL_QUEUE: usize = 8192;

/// What all connections share.
#[derive(Debug)]
pub struct Machine {
    /// Who may enter.
    pub access: Access,
    /// What the machine is told about itself.
    pub config: Config,
}

/// Serves for ever.
///
/// # Errors
/// When the configuration or its host key cannot be used.
pub fn run(config: &str, address: &str) -> Result<()> {
    let text = std::fs::read(config).with_context(|| format!("reading {config}"))?;
    let config: Config = serde_json::from_slice(&text).with_context(|| format!("understanding {config}"))?;
    let address: SocketAddr =
        address.parse().with_context(|| format!("'{address}' is no address with a port"))?;
    let settings = Arc::new(settings(&config)?);
    let access = Access::new(&config, PathBuf::from("/root/.ssh/authorized_keys"));
    let machine = Arc::new(Machine { access, config });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(async {
        if address.port() == 22 {
            sleep(head_start(|path| Path::new(path).exists())).await;
        }
        serve(listen(address).await, &machine, &settings).await
    });
    Ok(())
}

fn head_start(exists: impl Fn(&str) -> bool) -> Duration {
    if SSH_SERVERS.into_iter().any(exists) { HEAD_START_OF_SSHD } else { HEAD_START }
}

fn settings(config: &Config) -> Result<server::Config> {
    let (mut keys, mut certificates) = (Vec::new(), Vec::new());
    for key in &config.ssh_host_keys {
        keys.push(PrivateKey::from_openssh(&key.private_pem).context("the machine's host key")?);
        if let Some(certificate) = &key.certificate {
            certificates
                .push(Certificate::from_openssh(certificate.trim()).context("the host key's certificate")?);
        }
    }
    if keys.is_empty() {
        keys.push(PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).context("making a host key")?);
    }
    Ok(server::Config {
        server_id: SshId::Standard("SSH-2.0-mashines-guest".into()),
        methods: methods(),
        // Keys are compared with public ones: there is no secret whose comparison could be timed.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 20,
        keys,
        certificates,
        preferred: algorithms::preferred(),
        channel_buffer_size: CHANNEL_QUEUE,
        // Sessions may be silent for days; a client that answers no keepalive for ten minutes has gone.
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(60)),
        keepalive_max: 10,
        nodelay: true,
        ..server::Config::default()
    })
}

/// Keys and certificates; the other way is there to tell people why there is none.
pub fn methods() -> MethodSet {
    MethodSet::from([MethodKind::PublicKey, MethodKind::KeyboardInteractive].as_slice())
}

/// The port, as soon as nobody else has it.
async fn listen(address: SocketAddr) -> TcpListener {
    loop {
        let any_ipv4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                if let Ok(listener) = TcpListener::bind(any_ipv4).await {
                    return listener;
                }
            }
            // The image's own server has it, and is not to be disturbed by a word.
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

async fn serve(listener: TcpListener, machine: &Arc<Machine>, settings: &Arc<server::Config>) {
    let everyone = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // For want of file descriptors, for example.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = Arc::clone(&everyone).try_acquire_owned();
        let stranger = Arc::clone(&strangers).try_acquire_owned();
        let (Ok(place), Ok(stranger)) = (place, stranger) else {
            // Before the version line a server may say what it likes (RFC 4253 §4.2).
            let _gone =
                stream.try_write(b"mashines: this machine has as many SSH connections as it takes\r\n");
            continue;
        };
        let (machine, settings) = (Arc::clone(machine), Arc::clone(settings));
        tokio::spawn(async move {
            converse(stream, peer, machine, settings, stranger).await;
            drop(place);
        });
    }
}

/// One connection, from its first byte to its last.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    machine: Arc<Machine>,
    settings: Arc<server::Config>,
    stranger: OwnedSemaphorePermit,
) {
    let Ok(local) = stream.local_addr() else { return };
    // A peer that vanished is noticed by the keepalives above this; it costs nothing to have the kernel's too.
    let _ = stream.set_nodelay(true);
    let proved = CancellationToken::new();
    let handler = Connection::new(machine, peer, local, proved.clone());
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    let grace = sleep(GRACE);
    tokio::pin!(grace);
    let begun = tokio::select! {
        begun = server::run_stream(settings, Severable::new(stream, cut), handler) => begun,
        // It has not even sent its version.
        () = &mut grace => return,
    };
    let Ok(mut running) = begun else { return };
    tokio::select! {
        _ended = &mut running => return,
        () = proved.cancelled() => {}
        () = &mut grace => {
            let why = format!("no key was proved within {} s", GRACE.as_secs());
            let handle = running.handle();
            let parting = handle.disconnect(Disconnect::ByApplication, why, "en".to_owned());
            let _gone = timeout(PARTING, parting).await;
            let _gone = timeout(PARTING, &mut running).await;
            return;
        }
    }
    drop(stranger);
    // How a client leaves is its own affair.
    let _ended = running.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_an_ssh_server_gets_a_longer_head_start() {
        assert_eq!(head_start(|_| false), HEAD_START);
        assert_eq!(head_start(|path| path == "/usr/sbin/dropbear"), HEAD_START_OF_SSHD);
    }

    #[test]
    fn a_machine_without_a_host_key_gets_one_of_its_own() {
        assert_eq!(settings(&Config::new("m", "h")).unwrap().keys.len(), 1);
    }
}
