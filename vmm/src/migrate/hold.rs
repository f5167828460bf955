//! `hold-PHASE` files: tests stop a migration at the start of a phase by creating one in the state directory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::link::ALIVE;
use crate::api::Phase;

/// A hold that nobody lifts ends by itself.
const LONGEST: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// The file that holds `phase`.
#[must_use]
pub fn file(state_dir: &Path, phase: Phase) -> PathBuf {
    let name = match phase {
        Phase::Handshake => "hold-handshake",
        Phase::PreCopy => "hold-pre-copy",
        Phase::StopAndCopy => "hold-stop-and-copy",
        Phase::Prepared => "hold-prepared",
        Phase::HandedOver => "hold-handed-over",
        Phase::Running => "hold-running",
    };
    state_dir.join(name)
}

/// Waits while the file exists. `alive` is called every now and then, so that the other side does not take the hold
/// for silence.
///
/// # Errors
/// Those of `alive`: the other side is gone, or the migration was cancelled.
pub fn wait(state_dir: &Path, phase: Phase, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
    let file = file(state_dir, phase);
    let start = Instant::now();
    let mut said = start;
    while file.exists() && start.elapsed() < LONGEST {
        std::thread::sleep(LOOK);
        if said.elapsed() >= ALIVE {
            alive()?;
            said = Instant::now();
        }
    }
    Ok(())
}
