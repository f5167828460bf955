//! As much of ext4 as init must know: is this a file system, is the device blank, does the device have room to spare?
//!
//! Source: the kernel's `Documentation/filesystems/ext4/super.rst`. Offsets are from the start of the superblock, which
//! stands at byte 1024 of the device; all fields are little-endian.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};

/// How much is looked at before a device counts as blank: past the signatures of every common file system, partition
/// table, RAID, LVM and LUKS header at a device's start (the farthest is btrfs, at 64 KiB + 64).
const PROBE: usize = 128 * 1024;

const SUPERBLOCK: usize = 1024;
const BLOCKS_LOW: usize = SUPERBLOCK + 0x04;
const LOG_BLOCK_SIZE: usize = SUPERBLOCK + 0x18;
const MAGIC: usize = SUPERBLOCK + 0x38;
const INCOMPAT: usize = SUPERBLOCK + 0x60;
const BLOCKS_HIGH: usize = SUPERBLOCK + 0x150;

const EXT_MAGIC: u16 = 0xef53;
const INCOMPAT_64BIT: u32 = 0x80;

/// What a block device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// An ext2, ext3 or ext4 file system of this many bytes.
    Ext { bytes: u64 },
    /// Nothing but zeros where any signature would stand.
    Blank,
    /// Something else: not ours to overwrite.
    Other,
}

/// Reads the start of the device and says what it holds.
pub fn probe(device: &str) -> Result<Content> {
    let file = File::open(device).with_context(|| format!("opening {device}"))?;
    let mut start = Vec::with_capacity(PROBE);
    file.take(u64::try_from(PROBE)?).read_to_end(&mut start).with_context(|| format!("reading {device}"))?;
    Ok(classify(&start))
}

/// How many bytes of the device its ext4 file system leaves unused; `None` when it is less than 1 MiB or no ext4.
pub fn spare_bytes(device: &str) -> Result<Option<u64>> {
    let Content::Ext { bytes } = probe(device)? else { return Ok(None) };
    let mut file = File::open(device).with_context(|| format!("opening {device}"))?;
    let size = file.seek(SeekFrom::End(0)).with_context(|| format!("finding the size of {device}"))?;
    Ok(size.checked_sub(bytes).filter(|&spare| spare >= 1 << 20))
}

fn classify(start: &[u8]) -> Content {
    if let Some(bytes) = ext_size(start) {
        Content::Ext { bytes }
    } else if start.iter().all(|&byte| byte == 0) {
        Content::Blank
    } else {
        Content::Other
    }
}

fn ext_size(start: &[u8]) -> Option<u64> {
    if u16::from_le_bytes(field(start, MAGIC)?) != EXT_MAGIC {
        return None;
    }
    let low = u32::from_le_bytes(field(start, BLOCKS_LOW)?);
    let wide = u32::from_le_bytes(field(start, INCOMPAT)?) & INCOMPAT_64BIT != 0;
    let high = if wide { u32::from_le_bytes(field(start, BLOCKS_HIGH)?) } else { 0 };
    let block_size = 1024_u64.checked_shl(u32::from_le_bytes(field(start, LOG_BLOCK_SIZE)?))?;
    (u64::from(high) << 32 | u64::from(low)).checked_mul(block_size)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u32, log_block_size: u32) -> Vec<u8> {
        let mut start = vec![0; PROBE];
        start[BLOCKS_LOW..BLOCKS_LOW + 4].copy_from_slice(&blocks.to_le_bytes());
        start[LOG_BLOCK_SIZE..LOG_BLOCK_SIZE + 4].copy_from_slice(&log_block_size.to_le_bytes());
        start[MAGIC..MAGIC + 2].copy_from_slice(&EXT_MAGIC.to_le_bytes());
        start
    }

    #[test]
    fn an_ext4_superblock_tells_its_size() {
        assert_eq!(classify(&superblock(262_144, 2)), Content::Ext { bytes: 1 << 30 });
    }

    #[test]
    fn the_high_half_counts_only_with_the_64bit_feature() {
        let mut start = superblock(1, 2);
        start[BLOCKS_HIGH] = 1;
        assert_eq!(classify(&start), Content::Ext { bytes: 4096 });
        start[INCOMPAT] = 0x80;
        assert_eq!(classify(&start), Content::Ext { bytes: ((1 << 32) + 1) * 4096 });
    }

    #[test]
    fn a_hostile_superblock_is_no_panic() {
        assert_eq!(classify(&superblock(u32::MAX, u32::MAX)), Content::Other);
        assert_eq!(classify(&[]), Content::Blank);
    }

    #[test]
    fn only_zeros_are_blank() {
        let mut start = vec![0; PROBE];
        assert_eq!(classify(&start), Content::Blank);
        start[0x1_0040] = b'_'; // btrfs
        assert_eq!(classify(&start), Content::Other);
    }
}
