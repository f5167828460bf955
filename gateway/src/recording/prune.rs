//! How long recordings are kept: by age and by size, the oldest go first.
//!
//! A recording is as old as its last event, so one that is under way is the last to go.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

/// From one look to the next. Between two the size may be exceeded by what is recorded meanwhile.
const EVERY: Duration = Duration::from_secs(600);

const DAY: Duration = Duration::from_secs(86_400);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordingLimits {
    /// Days after their last event; 0 for ever.
    pub days: u32,
    /// Bytes of all recordings together; 0 for any number.
    pub bytes: u64,
}

impl Default for RecordingLimits {
    fn default() -> Self {
        Self { days: 90, bytes: 10 << 30 }
    }
}

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    /// Its last event.
    at: SystemTime,
    bytes: u64,
    path: PathBuf,
}

impl RecordingLimits {
    /// Those that go, the oldest first.
    fn excess(self, mut kept: Vec<Kept>, now: SystemTime) -> Vec<Kept> {
        kept.sort_by(|one, other| (one.at, &one.path).cmp(&(other.at, &other.path)));
        let mut bytes: u64 = kept.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let oldest = (self.days > 0).then(|| now.checked_sub(DAY * self.days)).flatten();
        let mut goes = |file: &Kept| {
            let old = oldest.is_some_and(|oldest| file.at < oldest);
            let much = self.bytes > 0 && bytes > self.bytes;
            if old || much {
                bytes = bytes.saturating_sub(file.bytes);
            }
            old || much
        };
        // Sorted by age, so whatever is kept is followed by nothing that goes: neither too old, nor is there too much.
        kept.into_iter().take_while(|file| goes(file)).collect()
    }
}

/// Keeps to the limits below `directory` until the gateway ends.
pub async fn keep_to(limits: RecordingLimits, directory: PathBuf) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let directory = directory.clone();
        let pruned = tokio::task::spawn_blocking(move || prune(limits, &directory, SystemTime::now())).await;
        match pruned {
            Ok(Ok(0)) => (),
            Ok(Ok(files)) => info!(files, "old recordings are removed"),
            Ok(Err(error)) => warn!(%error, "old recordings cannot be removed"),
            Err(error) => warn!(%error, "removing old recordings broke off"),
        }
    }
}

/// Removes what goes; how many.
fn prune(limits: RecordingLimits, directory: &Path, now: SystemTime) -> io::Result<usize> {
    let machines = match fs::read_dir(directory) {
        Ok(machines) => machines,
        // Nothing was ever recorded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut kept, mut folders) = (Vec::new(), Vec::new());
    for machine in machines {
        let machine = machine?;
        if !machine.file_type()?.is_dir() {
            continue;
        }
        folders.push(machine.path());
        for file in fs::read_dir(machine.path())? {
            let file = file?;
            let (path, about) = (file.path(), file.metadata()?);
            // Whatever else somebody put there is theirs.
            if about.is_file() && path.extension().is_some_and(|extension| extension == "cast") {
                kept.push(Kept { at: about.modified()?, bytes: about.len(), path });
            }
        }
    }
    let goes = limits.excess(kept, now);
    for file in &goes {
        fs::remove_file(&file.path)?;
    }
    let emptied = |folder: &&PathBuf| goes.iter().any(|file| file.path.parent() == Some(folder));
    for folder in folders.iter().filter(emptied) {
        // It is not empty, most often. A recording that begins right now makes it anew, or fails and says so.
        let _kept = fs::remove_dir(folder);
    }
    Ok(goes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(days_old: u64, bytes: u64, now: SystemTime) -> Kept {
        let at = now - DAY * u32::try_from(days_old).unwrap();
        Kept { at, bytes, path: PathBuf::from(format!("{days_old}.cast")) }
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_oldest_first_and_no_limit_keeps_all() {
        let now = SystemTime::now();
        let all = || [3, 91, 0, 1, 200].map(|days| kept(days, 100, now)).to_vec();
        let goes = |days, bytes| {
            let goes = RecordingLimits { days, bytes }.excess(all(), now);
            goes.into_iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(goes(90, 0), ["200.cast", "91.cast"]);
        assert_eq!(goes(0, 250), ["200.cast", "91.cast", "3.cast"]);
        assert_eq!(goes(90, 300), ["200.cast", "91.cast"], "what goes by age is not counted");
        assert_eq!(goes(1, 1), ["200.cast", "91.cast", "3.cast", "1.cast", "0.cast"]);
        assert_eq!(goes(0, 0), [""; 0]);
    }

    #[test]
    fn recordings_go_with_their_emptied_folder_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let limits = RecordingLimits { days: 90, bytes: 250 };
        assert_eq!(prune(limits, &directory.path().join("none"), now).unwrap(), 0);
        for (name, days_old) in [
            ("gone/1.cast", 100),
            ("web/1.cast", 100),
            ("web/notes.txt", 100),
            ("web/2.cast", 5),
            ("db/1.cast", 4),
            ("db/2.cast", 3),
        ] {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [b'x'; 100]).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(now - DAY * days_old).unwrap();
        }
        assert_eq!(prune(limits, directory.path(), now).unwrap(), 3);
        let there = |name: &str| directory.path().join(name).exists();
        assert!(!there("gone") && !there("web/1.cast") && !there("web/2.cast"));
        assert!(there("web/notes.txt") && there("db/1.cast") && there("db/2.cast"));
        assert_eq!(prune(limits, directory.path(), now).unwrap(), 0);
    }
}
