//! What every role of `mashinesd` is given when it runs.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::pki::Identity;
use crate::sealed::EntrySecret;
use crate::view::View;

/// A role that runs. In a box, so that all of it is compiled with its crate, and not once more in each program that runs it.
pub type RoleFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The surroundings of a role: `pub fn run(config: Config, common: Common) -> RoleFuture<anyhow::Result<()>>`.
#[derive(Debug, Clone)]
pub struct Common {
    /// The daemon's own directory; a role takes a folder in it.
    pub state_dir: PathBuf,
    /// Its certificate.
    pub identity: Identity,
    /// The fleet, as last heard from control.
    pub view: watch::Receiver<Arc<View>>,
    /// What opens the secrets among the facts: at control and at entries; none elsewhere, and until an entry has it of control.
    pub secret: watch::Receiver<Option<EntrySecret>>,
    /// Becomes true once: the role puts its things in order and returns. A dropped sender means the same.
    pub shutdown: watch::Receiver<bool>,
}

impl Common {
    /// Returns when the daemon is to end.
    pub async fn stopped(&self) {
        let mut shutdown = self.shutdown.clone();
        // An error means that the sender is gone: the daemon is ending.
        let _ended = shutdown.wait_for(|stop| *stop).await;
    }
}
