//! Disk blocks onto a stream and off it, in the same rounds as RAM.
//!
//! The first round carries the allocated runs, later ones what was written meanwhile. The destination syncs after each
//! round, so that the blackout holds only the last few blocks and their sync.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::frame::{BLOCK_SIZE, Encoder, Entry, MAX_DATA, Message};
use super::machine::DiskSide;
use super::send::{Batch, Tally};

const BLOCK: u64 = BLOCK_SIZE as u64;
const BATCH_BLOCKS: u64 = (MAX_DATA / BLOCK_SIZE) as u64;

/// Cuts byte ranges of one disk into batches.
///
/// # Errors
/// When a range is not made of whole blocks within the disk: a fault of the disk's implementation.
pub fn batches(disk: usize, size_bytes: u64, runs: &[Range<u64>]) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    for run in runs {
        ensure!(
            run.start.is_multiple_of(BLOCK)
                && run.end.is_multiple_of(BLOCK)
                && run.start <= run.end
                && run.end <= size_bytes,
            "disk {disk} of {size_bytes} bytes names the run {run:?}, which is not made of blocks within it"
        );
        let (mut first, end) = (run.start / BLOCK, run.end / BLOCK);
        while first < end {
            let count = (end - first).min(BATCH_BLOCKS);
            batches.push(Batch::Blocks { disk, first, count: u32::try_from(count)? });
            first += count;
        }
    }
    Ok(batches)
}

/// Bytes in runs.
#[must_use]
pub fn bytes(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end.saturating_sub(run.start)).sum()
}

/// Appends one frame with `count` blocks.
///
/// # Errors
/// When the disk cannot be read.
pub fn encode(
    disks: &[Arc<dyn DiskSide>],
    (disk, first, count): (usize, u64, u32),
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
    tally: &mut Tally,
) -> Result<()> {
    let side = disks.get(disk).with_context(|| format!("there is no disk {disk}"))?;
    let mut blocks = vec![0; usize::try_from(count)? * BLOCK_SIZE];
    side.read_blocks(first * BLOCK, &mut blocks).with_context(|| {
        format!("reading {count} blocks from block {first} of disk {}", side.describe().id)
    })?;
    let index = u16::try_from(disk)?;
    let mut entries: Vec<Entry> = Vec::new();
    for (block, bytes) in (first..).zip(blocks.chunks(BLOCK_SIZE)) {
        let zero = bytes.iter().all(|&byte| byte == 0);
        match entries.last_mut() {
            Some(entry) if entry.zero == zero => entry.count += 1,
            _ => entries.push(Entry { first: block, count: 1, zero, disk: index }),
        }
    }
    let start = out.len();
    let full: Vec<bool> = entries.iter().flat_map(|e| (0..e.count).map(|_| !e.zero)).collect();
    encoder.encode_with(out, &Message::Blocks(entries), |out| -> Result<()> {
        for (bytes, _) in blocks.chunks(BLOCK_SIZE).zip(full).filter(|(_, full)| *full) {
            tally.content += BLOCK;
            out.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    tally.disk_bytes += (out.len() - start) as u64;
    Ok(())
}

/// Applies a frame of blocks at the destination; `data` holds those that are not zero. All entries are checked before the
/// first is written.
///
/// # Errors
/// When an entry lies outside its disk or on a read-only one, or a write fails.
pub fn apply(disks: &[Arc<dyn DiskSide>], entries: &[Entry], mut data: &[u8]) -> Result<()> {
    let places = entries.iter().map(|entry| place(disks, entry)).collect::<Result<Vec<_>>>()?;
    for (entry, disk) in entries.iter().zip(places) {
        let (offset, count) = (entry.first * BLOCK, usize::try_from(entry.count)?);
        let what =
            || format!("writing {count} blocks from block {} of disk {}", entry.first, disk.describe().id);
        if entry.zero {
            disk.zero(offset, u64::from(entry.count) * BLOCK).with_context(what)?;
            continue;
        }
        let (bytes, rest) =
            data.split_at_checked(count * BLOCK_SIZE).context("a frame of blocks is cut short")?;
        disk.write_blocks(offset, bytes).with_context(what)?;
        data = rest;
    }
    Ok(())
}

fn place<'a>(disks: &'a [Arc<dyn DiskSide>], entry: &Entry) -> Result<&'a Arc<dyn DiskSide>> {
    let disk = disks.get(usize::from(entry.disk)).with_context(|| {
        format!(
            "the source sent blocks of disk {}, \
        which does not exist here",
            entry.disk
        )
    })?;
    let shape = disk.describe();
    ensure!(!shape.read_only, "the source sent blocks of disk {}, which is read-only", shape.id);
    let end = entry.first.checked_add(u64::from(entry.count)).and_then(|end| end.checked_mul(BLOCK));
    ensure!(
        end.is_some_and(|end| end <= shape.size_bytes),
        "the source sent {} blocks from block {} on of disk {}, which lie outside its {} bytes",
        entry.count,
        entry.first,
        shape.id,
        shape.size_bytes
    );
    Ok(disk)
}
