//! Looks at the disks of a stopped machine from outside.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::run::run;

/// Checks an ext4 file system in an image file without changing it.
pub fn fsck(image: &Path) -> Result<()> {
    run(Command::new("e2fsck").args(["-n", "-f"]).arg(image)).map(drop)
}

/// Writes what the guest sees of an overlay over its base into one file: where the overlay has data, its data.
pub fn flatten(base: &Path, overlay: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(base).arg(to))?;
    let from = File::open(overlay).with_context(|| format!("cannot open {}", overlay.display()))?;
    let length = i64::try_from(from.metadata()?.len())?;
    let out = OpenOptions::new().write(true).open(to)?;
    out.set_len(u64::try_from(length)?)?;
    let mut at = 0;
    while at < length {
        let begin = match lseek(&from, at, Whence::SeekData) {
            Ok(begin) => begin,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e).context("cannot find the overlay's data"),
        };
        let end = lseek(&from, begin, Whence::SeekHole)?;
        copy(&from, &out, u64::try_from(begin)?, u64::try_from(end)?)?;
        at = end;
    }
    Ok(())
}

fn copy(from: &File, to: &File, begin: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = begin;
    while at < end {
        let length = usize::try_from((end - at).min(1 << 20))?;
        let part = buffer.get_mut(..length).context("the buffer is smaller than itself")?;
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        at += u64::try_from(length)?;
    }
    Ok(())
}
