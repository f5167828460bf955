//! A daemon's own copy of the fleet: served from the disk at once, kept current by control's change stream.
//!
//! Invariants: it never blocks on control; what it hands out is whole and never goes back in revision within one
//! store; the file is replaced atomically, at most every [`PERSIST_EVERY`], so a crash costs a replay, not the copy.
//! Any control of the list will do: they show the same store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::pki::Identity;
use crate::rpc::{Client, Lines};
use crate::stream::{Follower, HEARTBEAT_MS, Line};
use crate::view::View;

/// The least time between two writes of the file.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// What to follow, and where to keep it.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Control's internal addresses: `https://ADDRESS:PORT`.
    pub control: Vec<String>,
    /// This daemon's certificate.
    pub tls: Identity,
    /// The copy on disk.
    pub file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct File {
    store: String,
    view: View,
}

/// Loads the file and follows control from there. The receiver shows the file's view at once (an empty one when there
/// is none); the task ends when all receivers are gone.
pub fn follow(config: ReplicaConfig) -> (watch::Receiver<Arc<View>>, JoinHandle<()>) {
    let follower = load(&config.file);
    let (sender, receiver) = watch::channel(Arc::clone(follower.view()));
    let task = tokio::spawn(Replica { persisted: None, dirty: false, follower, sender, config }.run());
    (receiver, task)
}

fn load(path: &Path) -> Follower {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Follower::default(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read the replica's file: starting empty");
            return Follower::default();
        }
    };
    match serde_json::from_slice::<File>(&text) {
        Ok(file) => Follower::resume(file.store, file.view),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the replica's file is damaged: starting empty");
            Follower::default()
        }
    }
}

struct Replica {
    config: ReplicaConfig,
    follower: Follower,
    sender: watch::Sender<Arc<View>>,
    /// When the file was last written.
    persisted: Option<Instant>,
    /// The view is newer than the file.
    dirty: bool,
}

impl Replica {
    async fn run(mut self) {
        let mut back_off = BACK_OFF_MIN;
        let mut turn = 0_usize;
        while !self.sender.is_closed() {
            let before = self.follower.view().revision;
            let Some(url) = self.config.control.get(turn % self.config.control.len().max(1)).cloned() else {
                tracing::error!("no address of control is configured: the replica stays as it is");
                return self.sender.closed().await;
            };
            if let Err(why) = self.session(&url).await {
                tracing::warn!(%url, %why, "the change stream ended; trying again");
            }
            self.persist().await;
            let moved = self.follower.view().revision != before;
            back_off = if moved { BACK_OFF_MIN } else { (back_off * 2).min(BACK_OFF_MAX) };
            turn = turn.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(jittered(back_off)) => {}
                () = self.sender.closed() => {}
            }
        }
    }

    /// One connection, until it ends.
    async fn session(&mut self, url: &str) -> Result<(), String> {
        self.follower.reconnected();
        let client = Client::to_control(&self.config.tls, url).map_err(|error| error.to_string())?;
        let client = client.with_timeout(Duration::from_secs(15));
        let mut lines =
            client.lines(&self.follower.request_path()).await.map_err(|error| error.to_string())?;
        loop {
            let persist_at = self.persisted.map_or_else(Instant::now, |at| at + PERSIST_EVERY);
            tokio::select! {
                () = self.sender.closed() => return Ok(()),
                () = tokio::time::sleep_until(persist_at), if self.dirty => self.persist().await,
                line = next_line(&mut lines) => self.take(&line?)?,
            }
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<(), String> {
        let line = match serde_json::from_slice::<Line>(line) {
            Ok(line) => line,
            Err(error) => return Err(format!("a line is not understood: {error}")),
        };
        let heard = self.follower.hear(line).map_err(|error| error.to_string())?;
        for skipped in heard.skipped {
            tracing::error!(%skipped, "a record was left out");
        }
        if heard.changed {
            self.dirty = true;
            self.sender.send_replace(Arc::clone(self.follower.view()));
        }
        Ok(())
    }

    async fn persist(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        self.persisted = Some(Instant::now());
        let path = self.config.file.clone();
        let (store, view) = (self.follower.store().to_owned(), Arc::clone(self.follower.view()));
        let written = tokio::task::spawn_blocking(move || write(&path, store, &view)).await;
        if let Ok(Err(error)) = written {
            // The copy in memory is good; the next change tries again.
            tracing::error!(path = %self.config.file.display(), %error, "cannot write the replica's file");
        }
    }
}

/// Writes beside the file and renames over it. A torn write would be seen as damage, so it is flushed before.
fn write(path: &Path, store: String, view: &View) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    let text = serde_json::to_vec(&File { store, view: view.clone() })?;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

async fn next_line(lines: &mut Lines) -> Result<bytes::Bytes, String> {
    let patience = Duration::from_millis(3 * HEARTBEAT_MS);
    match tokio::time::timeout(patience, lines.next()).await {
        Ok(Ok(Some(line))) => Ok(line),
        Ok(Ok(None)) => Err("control ended it".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not a line for {patience:?}")),
    }
}

/// Between half and all of it, so that a fleet does not come back in one moment.
fn jittered(back_off: Duration) -> Duration {
    back_off.mul_f64(rand::random_range(0.5..=1.0))
}
