//! Why a deployment that is under way should stop: asked at each step and each line, looked at ten times a second.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use mashines_guest::deployment::LEASE;
use nix::unistd::{Pid, getppid};

use super::turn::Claim;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(80);

/// Why it stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Ctrl-C, a closed laptop, a lost connection.
    #[error("cancelled: its client has gone")]
    ClientGone,
    /// `deploy cancel`.
    #[error("cancelled")]
    Asked,
    /// A newer push or operation.
    #[error("superseded by {0}")]
    Superseded(String),
}

/// Who must still be there for the work to go on.
enum Client {
    /// In a hook: git, the parent.
    Parent(Pid),
    /// In an operation: whoever touches this directory's `lease`, and makes no `cancel`.
    Lease(PathBuf),
    /// By hand: the terminal's Ctrl-C ends the process itself.
    Nobody,
}

/// Looks at all of it.
pub struct Watch {
    client: Client,
    claim: Option<Claim>,
    /// From here on nothing stops it: the new release serves.
    done: bool,
    looked: Option<Instant>,
}

impl Watch {
    /// In a hook: as long as the parent lives.
    pub fn parent() -> Self {
        Self { client: Client::Parent(getppid()), claim: None, done: false, looked: None }
    }

    /// In an operation: as long as it is followed.
    pub fn lease(directory: PathBuf) -> Self {
        Self { client: Client::Lease(directory), claim: None, done: false, looked: None }
    }

    /// Nothing stops it but a claim.
    pub fn idle() -> Self {
        Self { client: Client::Nobody, claim: None, done: false, looked: None }
    }

    /// From here on a newer claim stops it too.
    pub fn heed(&mut self, claim: Claim) {
        self.claim = Some(claim);
    }

    /// The point of no return.
    pub fn passed(&mut self) {
        self.done = true;
    }

    /// Whether to stop, and why.
    pub fn stopped(&mut self) -> Option<Stopped> {
        if self.done || self.looked.is_some_and(|at| at.elapsed() < PERIOD) {
            return None;
        }
        self.looked = Some(Instant::now());
        match &self.client {
            Client::Parent(parent) if getppid() != *parent => return Some(Stopped::ClientGone),
            Client::Lease(directory) if directory.join("cancel").exists() => return Some(Stopped::Asked),
            Client::Lease(directory) if silent_for(directory) > LEASE => return Some(Stopped::ClientGone),
            Client::Parent(_) | Client::Lease(_) | Client::Nobody => {}
        }
        self.claim.as_ref().and_then(Claim::newer).map(Stopped::Superseded)
    }
}

fn silent_for(directory: &std::path::Path) -> Duration {
    let touched = std::fs::metadata(directory.join("lease")).and_then(|lease| lease.modified());
    // A clock that was set back makes the lease longer, never shorter.
    touched.map_or(Duration::ZERO, |at| SystemTime::now().duration_since(at).unwrap_or_default())
}
