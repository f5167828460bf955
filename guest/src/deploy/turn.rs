//! Whose turn it is to build: one at a time, and the newest first.
//!
//! ```text
//! turn    flock(2), held by whoever builds until its ref is updated; the kernel lets go of it with the last process that has it open
//! claim   a counter; who wants the turn raises it, who has the turn and sees it raised gives up
//! sweep   flock(2) between the front, which stops what is retired, and whoever starts releases that may be
//!
//! No file says anything by being there, so there is no stale lock.
//!
//! In a push whoever becomes `git receive-pack` opens `turn`, and git and all below it inherit that one open file: the hook locks it, and it
//! stays locked until receive-pack has updated the ref and ended. So the next push finds the ref as it will be.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::place::Place;
use super::tether;
use super::watch::{Stopped, Watch};

/// Names the inherited descriptor of `turn`.
const DESCRIPTOR: &str = "MASHINES_TURN";
const POLL: Duration = Duration::from_millis(50);

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Opens `turn` for a command and all that it starts. Keep the file until the command has been spawned.
pub fn hand_down(place: &Place, command: &mut std::process::Command) -> Result<File> {
    let file = open(&place.base().join("turn"))?;
    tether::share(&file).context("sharing the lock on the turn")?;
    command.env(DESCRIPTOR, file.as_raw_fd().to_string());
    Ok(file)
}

/// The turn. It ends with the process; in a push, with git's.
pub struct Turn {
    _file: File,
}

/// A wish for the turn. The newest counts.
#[derive(Clone, Debug)]
pub struct Claim {
    path: std::path::PathBuf,
    number: u64,
}

impl Claim {
    /// Raises the counter. `who` is what the present holder tells about us.
    pub fn make(place: &Place, who: &str) -> Result<Self> {
        let path = place.base().join("claim");
        let mut file = open(&path)?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        let (before, _) = read(&mut file)?;
        let number = before + 1;
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(format!("{number}\n{who}\n").as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path, number })
    }

    /// Who has claimed the turn after us.
    pub fn newer(&self) -> Option<String> {
        let mut file = File::open(&self.path).ok()?;
        // The counter is rewritten under its lock; a reader that takes it never sees a half.
        file.lock_shared().ok()?;
        let (number, who) = read(&mut file).ok()?;
        (number > self.number).then_some(who)
    }

    /// Waits for the turn.
    pub fn wait(
        &self,
        place: &Place,
        watch: &mut Watch,
        mut waiting: impl FnMut(),
    ) -> Result<Result<Turn, Stopped>> {
        let file = match std::env::var(DESCRIPTOR).ok().and_then(|text| text.parse().ok()) {
            Some(fd) => tether::inherit(fd).context("taking over the lock on the turn")?,
            None => open(&place.base().join("turn"))?,
        };
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Ok(Turn { _file: file })),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).context("locking the turn"),
            }
            if let Some(stopped) = watch.stopped() {
                return Ok(Err(stopped));
            }
            if !std::mem::replace(&mut told, true) {
                waiting();
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Whether somebody has the turn.
pub fn is_taken(place: &Place) -> bool {
    // Looked at by taking it for a moment, shared; who waits for it asks again.
    let file = open(&place.base().join("turn"));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// What keeps retired releases from being stopped. Ends with the value.
pub struct Sweep {
    _file: File,
}

/// Waits for it: the front may be stopping a release just now.
pub fn sweep(place: &Place) -> Result<Sweep> {
    let file = open(&place.base().join("sweep"))?;
    file.lock().context("locking out the front's sweep")?;
    Ok(Sweep { _file: file })
}

/// Takes it unless somebody has it.
pub fn try_sweep(place: &Place) -> Result<Option<Sweep>> {
    let file = open(&place.base().join("sweep"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Sweep { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context("locking the sweep"),
    }
}

fn read(file: &mut File) -> Result<(u64, String)> {
    let mut text = String::new();
    file.read_to_string(&mut text).context("reading the claim")?;
    let mut lines = text.lines();
    // A file cut short by a crash counts from 0: whoever had claimed is gone with that crash.
    let number = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    Ok((number, lines.next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_claim_counts_and_the_older_one_learns_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::for_test(directory.path());
        let first = Claim::make(&place, "a push of 1111111").unwrap();
        assert_eq!(first.newer(), None);
        let second = Claim::make(&place, "a push of 2222222").unwrap();
        assert_eq!(first.newer().as_deref(), Some("a push of 2222222"));
        assert_eq!(second.newer(), None);
    }

    #[test]
    fn a_turn_left_by_nobody_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::for_test(directory.path());
        std::fs::write(directory.path().join("turn"), "left by a crash").unwrap();
        std::fs::write(directory.path().join("claim"), "no number").unwrap();
        let claim = Claim::make(&place, "us").unwrap();
        let turn = claim.wait(&place, &mut Watch::idle(), || ()).unwrap();
        assert!(turn.is_ok());
    }
}
