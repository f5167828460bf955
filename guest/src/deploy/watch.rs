//! Why a deployment that is under way should stop: asked at each step and each line, looked at ten times a second.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use mashines_guest::deployment::LEASE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, getppid};

use super::tether;
use super::turn::Claim;

/// Names the inherited descriptor of the client's connection.
const DESCRIPTOR: &str = "MASHINES_CLIENT";

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
    /// In a hook: git, the parent; and the other end of git's stdout.
    Git(Pid, Option<File>),
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
    /// In a hook: as long as git lives, and its client. Inherits; call it first of all.
    pub fn git() -> Self {
        let end = std::env::var(DESCRIPTOR).ok().and_then(|text| text.parse().ok());
        // A push from within the machine has none.
        let end = end.and_then(|fd| tether::inherit(fd).ok());
        Self { client: Client::Git(getppid(), end), claim: None, done: false, looked: None }
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
            Client::Git(git, _) if getppid() != *git => return Some(Stopped::ClientGone),
            Client::Git(_, Some(end)) if is_closed(end) => return Some(Stopped::ClientGone),
            Client::Lease(directory) if directory.join("cancel").exists() => return Some(Stopped::Asked),
            Client::Lease(directory) if silent_for(directory) > LEASE => return Some(Stopped::ClientGone),
            Client::Git(..) | Client::Lease(_) | Client::Nobody => {}
        }
        self.claim.as_ref().and_then(Claim::newer).map(Stopped::Superseded)
    }
}

/// Keeps one more descriptor of stdout open for a command and all that it starts. Keep it until the command has been started.
pub fn hand_down(command: &mut Command) -> Result<OwnedFd> {
    let end = std::io::stdout().as_fd().try_clone_to_owned().context("keeping the client's connection")?;
    tether::share(&end).context("sharing the client's connection")?;
    command.env(DESCRIPTOR, end.as_raw_fd().to_string());
    Ok(end)
}

/// Whether nobody reads what is written there. sshd gives a command without a terminal no signal when its client goes; it closes its ends,
/// which poll(2) tells: POLLHUP of a socket, POLLERR of a pipe. The end of stdin would say nothing: a client closes it once the pack is sent.
fn is_closed(end: &File) -> bool {
    let mut ends = [PollFd::new(end.as_fd(), PollFlags::empty())];
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    poll(&mut ends, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && ends[0].revents().is_some_and(|events| events.intersects(closed))
}

fn silent_for(directory: &std::path::Path) -> Duration {
    let touched = std::fs::metadata(directory.join("lease")).and_then(|lease| lease.modified());
    // A clock that was set back makes the lease longer, never shorter.
    touched.map_or(Duration::ZERO, |at| SystemTime::now().duration_since(at).unwrap_or_default())
}
