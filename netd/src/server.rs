//! The unix socket: lines in, lines out.
//!
//! Invariants: no client costs more than one line of memory, a silent one is let go, and too many at once are turned away
//! rather than kept waiting.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as PlainStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::api::{MAX_LINE, Reply};
use crate::error::Error;
use crate::shell::Shell;

/// Connections at once. A host has a daemon and a few monitors in a migration.
const CONNECTIONS: usize = 128;

/// How long a client may say nothing, or read nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// Binds the socket; a stale file of a netd that was killed is replaced, a living netd's is not.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let wrap = |operation: &'static str| {
        move |source: io::Error| Error::File { operation, path: path.to_owned(), source }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(wrap("create the directory of the socket"))?;
    }
    if PlainStream::connect(path).is_ok() {
        return Err(wrap("listen on")(io::Error::from(io::ErrorKind::AddrInUse)));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrap("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(wrap("listen on"))?;
    // Whoever reaches the socket can turn any machine's address: root, and root's group.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(wrap("restrict"))?;
    Ok(listener)
}

/// Serves for ever.
pub(crate) async fn serve(listener: UnixListener, shell: Arc<Shell>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept on netd's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            tracing::warn!(CONNECTIONS, "a connection to netd's socket was turned away: too many at once");
            continue;
        };
        let shell = Arc::clone(&shell);
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &shell).await {
                tracing::debug!(%error, "a client of netd's socket left");
            }
            drop(seat);
        });
    }
}

async fn converse(stream: UnixStream, shell: &Arc<Shell>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    let cap = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    loop {
        line.clear();
        let count = timeout(SILENCE, (&mut read).take(cap).read_until(b'\n', &mut line)).await??;
        if count == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let why =
                format!("a request is one line of JSON of at most {MAX_LINE} bytes, ended by a newline");
            return answer(&mut write, &Reply::Refused(why)).await;
        }
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => shell.handle(request).await,
            Err(error) => Reply::Refused(format!("this is no request of netd: {error}")),
        };
        if let Reply::Refused(why) = &reply {
            tracing::info!(%why, "refused");
        }
        answer(&mut write, &reply).await?;
    }
}

async fn answer(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(reply)?;
    bytes.push(b'\n');
    timeout(SILENCE, write.write_all(&bytes)).await?
}
