//! The block device on its queue.

use std::sync::Arc;

use anyhow::{Result, ensure};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::DiskFile;
use super::{BLOCK, request};
use crate::virtio::{Rings, VirtioDevice, Wake, read_from};

const DEVICE_ID: u32 = 2;
const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// Data segments in one request: the queue less header and status.
const SEG_MAX: u32 = 254;
const SECTOR: u64 = 512;

/// The device. It has no state of its own: a request that was taken is finished before a quiesce returns.
#[derive(Debug)]
pub struct Block {
    disk: Arc<DiskFile>,
    config: Vec<u8>,
}

impl Block {
    /// On this disk.
    #[must_use]
    pub fn new(disk: Arc<DiskFile>) -> Self {
        let config = config(disk.size());
        Self { disk, config }
    }

    fn drain(&self, rings: &mut Rings<'_>) {
        while !rings.gate.is_closed() {
            let Some(chain) = rings.pop(QUEUE) else { return };
            let head = chain.head_index();
            let written = request::serve(&self.disk, chain, rings.memory);
            rings.push(QUEUE, head, written);
            rings.signal(QUEUE);
        }
    }
}

/// `struct virtio_blk_config` up to `write_zeroes_may_unmap`.
fn config(size: u64) -> Vec<u8> {
    let mut config = vec![0; 60];
    let block = u32::try_from(BLOCK).unwrap_or(4096);
    let blocks_per_sector_unit = u32::try_from(BLOCK / SECTOR).unwrap_or(8);
    let most_sectors = u32::MAX / 512 * 8 / 8;
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(36, &most_sectors.to_le_bytes());
    put(40, &request::MOST_SEGMENTS.to_le_bytes());
    put(44, &blocks_per_sector_unit.to_le_bytes());
    // Zeroing really writes over a base: keep one request short.
    put(48, &(8u32 << 20 >> 9).to_le_bytes());
    put(52, &request::MOST_SEGMENTS.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let mut bits = vec![VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        if self.disk.read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn activate(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn wake(&mut self, _wake: Wake, rings: &mut Rings<'_>) {
        loop {
            self.drain(rings);
            if rings.gate.is_closed() || !rings.listen(QUEUE) {
                return;
            }
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        ensure!(state.is_empty(), "{} bytes of state for a block device, which has none", state.len());
        Ok(())
    }
}
