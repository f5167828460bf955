//! A disk: a sparse overlay file (or a block device) over an optional read-only base image.
//!
//! ```text
//! read  block ── allocated? ──yes──► overlay
//!                    └──no──► base, or zero
//! write block ── pwrite overlay ──► allocated, and dirty while a migration watches
//! ```
//!
//! Invariants: a block is *allocated* exactly when the overlay holds data for it, so the file system's extent map is the only
//! index and survives any crash that the file system survives. A block becomes allocated only after its bytes are
//! written. All I/O is in whole blocks. Nothing is written while another process holds the file's lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::BLOCK;
use super::bitmap::BlockBitmap;
use super::extents;
use crate::api::DiskSpec;
use crate::num::index;

/// One disk, shared by its device and a migration.
#[derive(Debug)]
pub struct DiskFile {
    id: String,
    path: PathBuf,
    overlay: File,
    base: Option<File>,
    /// The base's length; what lies beyond reads as zero.
    base_size: u64,
    size: u64,
    read_only: bool,
    allocated: BlockBitmap,
    /// The blocks written since they were last taken.
    dirty: BlockBitmap,
    tracking: AtomicBool,
}

impl DiskFile {
    /// Opens the files, without a lock (see [`DiskFile::lock`]). The overlay is created when it is missing, and grown to the disk's
    /// size.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(spec: &DiskSpec) -> Result<Self> {
        let path = spec.path.display();
        ensure!(
            spec.size_bytes > 0 && spec.size_bytes.is_multiple_of(BLOCK),
            "disk {}: a size of {} bytes; it must be a multiple of {BLOCK} and not 0",
            spec.id,
            spec.size_bytes
        );
        ensure!(spec.id.len() <= 20, "disk id {:?} is longer than 20 bytes", spec.id);
        let overlay = open_overlay(spec).with_context(|| format!("disk {}: open {path}", spec.id))?;
        let device = overlay.metadata()?.file_type().is_block_device();
        ensure!(
            !device || spec.base.is_none(),
            "disk {}: {path} is a block device, which has no holes: it cannot have a base",
            spec.id
        );
        if !device && !spec.read_only && overlay.metadata()?.len() < spec.size_bytes {
            overlay.set_len(spec.size_bytes).with_context(|| format!("disk {}: grow {path}", spec.id))?;
        }
        let (base, base_size) = open_base(spec)?;
        let blocks = spec.size_bytes / BLOCK;
        let disk = Self {
            id: spec.id.clone(),
            path: spec.path.clone(),
            overlay,
            base,
            base_size,
            size: spec.size_bytes,
            read_only: spec.read_only,
            allocated: BlockBitmap::new(blocks),
            dirty: BlockBitmap::new(blocks),
            tracking: AtomicBool::new(false),
        };
        disk.load_allocation(device)
            .with_context(|| format!("disk {}: read the extents of {path}", disk.id))?;
        Ok(disk)
    }

    fn load_allocation(&self, device: bool) -> io::Result<()> {
        if device {
            self.allocated.fill(0..self.size / BLOCK, true);
            return Ok(());
        }
        for range in extents::data(&self.overlay, self.size)? {
            self.allocated.fill(range.start / BLOCK..range.end.div_ceil(BLOCK), true);
        }
        Ok(())
    }

    /// The name that is the same on both sides of a migration.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Takes the exclusive lock, which whoever runs the machine holds (`flock`). Idempotent.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn lock(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        match self.overlay.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => bail!(
                "disk {}: {} is locked: another monitor runs a machine on it",
                self.id,
                self.path.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("disk {}: lock {}", self.id, self.path.display()))
            }
        }
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unlock(&self) -> Result<()> {
        self.overlay.unlock().with_context(|| format!("disk {}: unlock {}", self.id, self.path.display()))
    }

    /// Reads what the guest would read. Offset and length are multiples of [`BLOCK`].
    ///
    /// # Errors
    /// When the range lies outside the disk or a file cannot be read.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let blocks = self.blocks(offset, buffer.len() as u64)?;
        let mut block = blocks.start;
        let mut rest = buffer;
        while block < blocks.end {
            let count = self.allocated.run_length(block, blocks.end - block);
            let (part, behind) = rest.split_at_mut(index(count * BLOCK));
            if self.allocated.get(block) {
                self.overlay.read_exact_at(part, block * BLOCK)?;
            } else {
                self.read_base(block * BLOCK, part)?;
            }
            rest = behind;
            block += count;
        }
        Ok(())
    }

    fn read_base(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.base_size.saturating_sub(offset).min(buffer.len() as u64);
        let (data, beyond) = buffer.split_at_mut(index(inside));
        if let Some(base) = &self.base {
            base.read_exact_at(data, offset)?;
        }
        beyond.fill(0);
        Ok(())
    }

    /// Writes blocks.
    ///
    /// # Errors
    /// When the range lies outside, the disk is read-only, or the file cannot be written. Blocks may then be half
    /// written, as on any disk.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let blocks = self.writable(offset, bytes.len() as u64)?;
        // Dirty first: if the write fails half-way the block is merely sent once too often.
        self.note(&blocks);
        self.overlay.write_all_at(bytes, offset)?;
        self.allocated.fill(blocks, true);
        Ok(())
    }

    /// Makes a range read as zero. With `may_unmap` and no base its room is given back.
    ///
    /// # Errors
    /// As [`DiskFile::write`].
    pub fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let blocks = self.writable(offset, length)?;
        self.note(&blocks);
        let range = offset..offset + length;
        if self.base.is_none() && may_unmap && extents::punch(&self.overlay, &range).is_ok() {
            self.allocated.fill(blocks, false);
            return Ok(());
        }
        extents::write_zeroes(&self.overlay, &range)?;
        self.allocated.fill(blocks, true);
        Ok(())
    }

    /// The guest needs a range no more. Without a base its room is given back; with one nothing is done, because a hole would
    /// show the base's old data.
    ///
    /// # Errors
    /// As [`DiskFile::write`].
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let blocks = self.writable(offset, length)?;
        if self.base.is_some() {
            return Ok(());
        }
        self.note(&blocks);
        // A file system that cannot punch keeps the data: allowed for a discard.
        if extents::punch(&self.overlay, &(offset..offset + length)).is_ok() {
            self.allocated.fill(blocks, false);
        }
        Ok(())
    }

    /// Makes all writes durable.
    ///
    /// # Errors
    /// When the kernel reports a lost write.
    pub fn sync(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.overlay.sync_data() }
    }

    /// The byte ranges that differ from the base, ascending.
    #[must_use]
    pub fn allocated_runs(&self) -> Vec<Range<u64>> {
        to_bytes(self.allocated.runs())
    }

    /// From now on changed blocks are noted. Idempotent.
    pub fn start_tracking(&self) {
        if !self.tracking.swap(true, Ordering::AcqRel) {
            drop(self.dirty.take());
        }
    }

    /// Ends the noting.
    pub fn stop_tracking(&self) {
        self.tracking.store(false, Ordering::Release);
    }

    /// The byte ranges changed since the last call, ascending.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<Range<u64>> {
        to_bytes(self.dirty.take())
    }

    fn note(&self, blocks: &Range<u64>) {
        if self.tracking.load(Ordering::Acquire) {
            self.dirty.fill(blocks.clone(), true);
        }
    }

    fn writable(&self, offset: u64, length: u64) -> io::Result<Range<u64>> {
        if self.read_only {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        self.blocks(offset, length)
    }

    fn blocks(&self, offset: u64, length: u64) -> io::Result<Range<u64>> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        match end {
            Some(end) if offset.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) => {
                Ok(offset / BLOCK..end / BLOCK)
            }
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
}

fn to_bytes(runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.into_iter().map(|run| run.start * BLOCK..run.end * BLOCK).collect()
}

fn open_overlay(spec: &DiskSpec) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!spec.read_only)
        .create(!spec.read_only)
        .truncate(false)
        .open(&spec.path)
}

fn open_base(spec: &DiskSpec) -> Result<(Option<File>, u64)> {
    let Some(path) = &spec.base else { return Ok((None, 0)) };
    let context = || format!("disk {}: open the base image {}", spec.id, path.display());
    let base = File::open(path).with_context(context)?;
    let size = base.metadata().with_context(context)?.len();
    Ok((Some(base), size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 32 * BLOCK;

    struct Fixture {
        dir: tempfile::TempDir,
        spec: DiskSpec,
    }

    fn fixture(with_base: bool) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        // A base that is shorter than the disk and not a whole number of blocks.
        std::fs::write(&base, vec![0xb5; 20 * 4096 + 100]).unwrap();
        let spec = DiskSpec {
            id: "root".into(),
            path: dir.path().join("overlay"),
            base: with_base.then_some(base),
            size_bytes: SIZE,
            read_only: false,
        };
        Fixture { dir, spec }
    }

    fn contents(disk: &DiskFile) -> Vec<u8> {
        let mut all = vec![0xee; index(SIZE)];
        disk.read(0, &mut all).unwrap();
        all
    }

    #[test]
    fn an_empty_overlay_shows_the_base_and_zero_beyond_it() {
        let fixture = fixture(true);
        let all = contents(&DiskFile::open(&fixture.spec).unwrap());
        assert!(all[..20 * 4096 + 100].iter().all(|byte| *byte == 0xb5));
        assert!(all[20 * 4096 + 100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn zeroes_over_a_base_stay_zero_after_a_restart() {
        let fixture = fixture(true);
        let disk = DiskFile::open(&fixture.spec).unwrap();
        disk.write_zeroes(0, 2 * BLOCK, true).unwrap();
        disk.sync().unwrap();
        drop(disk);
        let all = contents(&DiskFile::open(&fixture.spec).unwrap());
        assert!(all[..2 * 4096].iter().all(|byte| *byte == 0));
        assert_eq!(all[2 * 4096], 0xb5);
    }

    #[test]
    fn a_second_monitor_may_open_a_disk_but_not_lock_it() {
        let fixture = fixture(false);
        let (a, b) = (DiskFile::open(&fixture.spec).unwrap(), DiskFile::open(&fixture.spec).unwrap());
        a.lock().unwrap();
        assert!(b.lock().unwrap_err().to_string().contains("another monitor"));
        a.unlock().unwrap();
        b.lock().unwrap();
    }

    #[test]
    fn ranges_outside_the_disk_or_off_the_block_grid_are_errors() {
        let disk = DiskFile::open(&fixture(false).spec).unwrap();
        let mut block = [0; 4096];
        assert!(disk.read(SIZE, &mut block).is_err());
        assert!(disk.read(u64::MAX - 100, &mut block).is_err());
        assert!(disk.read(512, &mut block).is_err());
        assert!(disk.write(SIZE - BLOCK, &[0; 8192]).is_err());
    }

    #[test]
    fn a_read_only_disk_refuses_writes() {
        let fixture = fixture(false);
        std::fs::write(&fixture.spec.path, vec![1; index(SIZE)]).unwrap();
        let disk = DiskFile::open(&DiskSpec { read_only: true, ..fixture.spec.clone() }).unwrap();
        assert!(disk.write(0, &[0; 4096]).is_err());
        assert_eq!(contents(&disk)[0], 1);
        assert!(fixture.dir.path().exists());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64, bool),
        Discard(u64, u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..32u64).prop_flat_map(|start| (Just(start), 1..=32 - start));
        prop_oneof![
            4 => (range(), any::<u8>()).prop_map(|((start, len), byte)| Step::Write(start, len, byte)),
            2 => (range(), any::<bool>()).prop_map(|((start, len), unmap)| Step::Zero(start, len, unmap)),
            1 => range().prop_map(|(start, len)| Step::Discard(start, len)),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_disk_behaves_like_an_array_and_its_dirty_blocks_make_a_copy(
            with_base in any::<bool>(),
            steps in prop::collection::vec(step(), 1..30),
        ) {
            let fixture = fixture(with_base);
            let mut disk = DiskFile::open(&fixture.spec).unwrap();
            let mut model = contents(&disk);
            let mut copy = model.clone();
            disk.start_tracking();
            for step in steps {
                match step {
                    Step::Write(start, len, byte) => {
                        let bytes = vec![byte; index(len * BLOCK)];
                        disk.write(start * BLOCK, &bytes).unwrap();
                        model[index(start * BLOCK)..][..bytes.len()].copy_from_slice(&bytes);
                    }
                    Step::Zero(start, len, unmap) => {
                        disk.write_zeroes(start * BLOCK, len * BLOCK, unmap).unwrap();
                        model[index(start * BLOCK)..][..index(len * BLOCK)].fill(0);
                    }
                    Step::Discard(start, len) => {
                        disk.discard(start * BLOCK, len * BLOCK).unwrap();
                        if !with_base {
                            model[index(start * BLOCK)..][..index(len * BLOCK)].fill(0);
                        }
                    }
                    Step::Reopen => {
                        for run in disk.take_dirty() {
                            let range = index(run.start)..index(run.end);
                            disk.read(run.start, &mut copy[range]).unwrap();
                        }
                        disk = DiskFile::open(&fixture.spec).unwrap();
                        disk.start_tracking();
                    }
                }
            }
            for run in disk.take_dirty() {
                let range = index(run.start)..index(run.end);
                disk.read(run.start, &mut copy[range]).unwrap();
            }
            prop_assert_eq!(&contents(&disk), &model);
            prop_assert_eq!(&copy, &model);
        }
    }
}
