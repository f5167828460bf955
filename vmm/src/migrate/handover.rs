//! The durable records that make two runners impossible.
//!
//! `handed-over.json` exists ⇒ the monitor of this state directory never runs the machine (again). It is written by the source
//! after `Prepared` and before it tells the destination. `accepted.json` notes at the destination that it ran in that
//! epoch; it speaks to people and to the host daemon, and no safety rests on it.
//!
//! In the blackout only the rename and its directory's fsync are left: content and file were written and synced before,
//! under another name ([`Draft`]).

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// The source's record.
pub const HANDED_OVER: &str = "handed-over.json";
/// The destination's record.
pub const ACCEPTED: &str = "accepted.json";

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The migration.
    pub migration_id: String,
    /// The machine.
    pub machine_id: String,
    /// The epoch in which the machine belongs to the destination.
    pub next_epoch: u64,
}

/// A record that is complete on disk except for its name.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    last: PathBuf,
    directory: File,
}

/// How far a commit came when it failed.
#[derive(Debug)]
pub enum CommitError {
    /// The record does not exist: the source may resume.
    Undone(anyhow::Error),
    /// It exists, or that cannot be told: the source never resumes.
    Doubtful(anyhow::Error),
}

impl Draft {
    /// Writes `record` under a temporary name, durably.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn new(state_dir: &Path, name: &str, record: &Record) -> Result<Self> {
        let (temporary, last) = (state_dir.join(format!(".{name}.draft")), state_dir.join(name));
        let write = || -> Result<File> {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            let directory = File::open(state_dir)?;
            directory.sync_all()?;
            Ok(directory)
        };
        let directory = write().with_context(|| format!("preparing the record {}", last.display()))?;
        Ok(Self { temporary, last, directory })
    }

    /// Gives the record its name, durably.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(&self) -> Result<(), CommitError> {
        let what = || format!("writing the record {}", self.last.display());
        if let Err(error) = fs::rename(&self.temporary, &self.last) {
            return Err(CommitError::Undone(anyhow::Error::new(error).context(what())));
        }
        let Err(error) = self.directory.sync_all() else { return Ok(()) };
        let error = anyhow::Error::new(error).context(what());
        // Whether the name reached the disk is unknown. It suffices that no later reader of this directory finds it: after a
        // power loss, which alone could bring it back, there is no machine here that could run on.
        match fs::remove_file(&self.last) {
            Ok(()) => Err(CommitError::Undone(error)),
            Err(_) => Err(CommitError::Doubtful(error)),
        }
    }

    /// Gives the record its name now; its durability follows with [`Draft::settle`].
    ///
    /// # Errors
    /// When the rename fails.
    pub fn publish(&self) -> Result<()> {
        fs::rename(&self.temporary, &self.last).with_context(|| format!("writing {}", self.last.display()))
    }

    /// Makes a published record durable.
    ///
    /// # Errors
    /// When the directory cannot be synced.
    pub fn settle(&self) -> Result<()> {
        self.directory.sync_all().with_context(|| format!("making {} durable", self.last.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit it is gone already.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Reads a record of this directory.
///
/// # Errors
/// When it exists and cannot be read: then nothing may be concluded from its content, but it *does* exist.
pub fn read(state_dir: &Path, name: &str) -> Result<Option<Record>> {
    let path = state_dir.join(name);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("reading {}", path.display()))?,
    };
    let record = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(record))
}

/// To be called before a monitor runs anything.
///
/// # Errors
/// When this instance was handed over, or that cannot be ruled out.
pub fn refuse_if_handed_over(state_dir: &Path) -> Result<()> {
    let record = read(state_dir, HANDED_OVER)
        .context("whether this machine was handed over cannot be told; it is not run")?;
    if let Some(record) = record {
        bail!(
            "machine {} was handed over in migration {}; in epoch {} it belongs to the destination and is not run here. \
             Ask control where it is",
            record.machine_id,
            record.migration_id,
            record.next_epoch
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { migration_id: "01J".into(), machine_id: "m".into(), next_epoch: 5 }
    }

    #[test]
    fn a_draft_is_no_record_and_a_committed_one_forbids_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let draft = Draft::new(dir.path(), HANDED_OVER, &record()).unwrap();
        refuse_if_handed_over(dir.path()).unwrap();
        draft.commit().unwrap();
        let error = refuse_if_handed_over(dir.path()).unwrap_err().to_string();
        assert!(error.contains("epoch 5"), "{error}");
        assert_eq!(read(dir.path(), HANDED_OVER).unwrap(), Some(record()));
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Draft::new(dir.path(), HANDED_OVER, &record()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_forbids_to_run_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(HANDED_OVER), b"{").unwrap();
        refuse_if_handed_over(dir.path()).unwrap_err();
    }

    #[test]
    fn a_commit_that_cannot_rename_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let draft = Draft::new(dir.path(), HANDED_OVER, &record()).unwrap();
        fs::create_dir(dir.path().join(HANDED_OVER)).unwrap();
        assert!(matches!(draft.commit(), Err(CommitError::Undone(_))));
    }
}
