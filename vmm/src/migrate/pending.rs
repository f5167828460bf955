//! What is still to be sent, and the shortest way to send little of it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::frame::Encoder;
use super::link::Link;
use super::machine::{DirtyBitmap, DiskSide};
use super::region::PAGE_SIZE;
use super::send::{Batch, Material, Tally};
use super::{disk, ram};

/// Pages and blocks that are still to be sent.
pub struct Pending {
    /// Pages.
    pub pages: DirtyBitmap,
    /// Runs of bytes of each disk.
    blocks: Vec<Vec<Range<u64>>>,
}

impl Pending {
    /// All of RAM and all that the disks hold. Starts to track the disks.
    ///
    /// # Errors
    /// When a disk cannot be tracked or mapped.
    pub fn everything(material: &Material) -> Result<Self> {
        let mut pages = DirtyBitmap::new(&material.regions);
        pages.set_all();
        let runs = |side: &Arc<dyn DiskSide>| {
            let shape = side.describe();
            if shape.read_only {
                return Ok(Vec::new());
            }
            // Tracking first: what is written while the map is read is in one or the other.
            side.start_tracking()
                .and_then(|()| side.allocated_runs())
                .with_context(|| format!("mapping disk {}", shape.id))
        };
        let blocks = material.disks.iter().map(runs).collect::<Result<_>>()?;
        Ok(Self { pages, blocks })
    }

    /// Takes over what the guest wrote to the disks since the last time, on top of what is there or instead of it.
    ///
    /// # Errors
    /// When a disk cannot tell.
    pub fn blocks_since(&mut self, material: &Material, keep: bool) -> Result<()> {
        for (side, runs) in material.disks.iter().zip(&mut self.blocks) {
            let shape = side.describe();
            if shape.read_only {
                continue;
            }
            let dirty =
                side.take_dirty().with_context(|| format!("reading what was written to {}", shape.id))?;
            if keep { runs.extend(dirty) } else { *runs = dirty }
        }
        Ok(())
    }

    /// Bytes of pages and blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.count() * PAGE_SIZE as u64 + self.blocks.iter().map(|runs| disk::bytes(runs)).sum::<u64>()
    }

    /// Frame by frame.
    ///
    /// # Errors
    /// When a disk names runs that it does not have.
    pub fn batches(&self, material: &Material) -> Result<Vec<Batch>> {
        let mut batches: Vec<Batch> = ram::batches(&self.pages).into_iter().map(Batch::Pages).collect();
        for (index, (side, runs)) in material.disks.iter().zip(&self.blocks).enumerate() {
            batches.extend(disk::batches(index, side.describe().size_bytes, runs)?);
        }
        Ok(batches)
    }
}

/// Sends batches, and what `more` appends, on the control connection in one go.
///
/// # Errors
/// When a disk cannot be read, or the connection fails.
pub fn inline(
    control: &mut Link,
    material: &Material,
    batches: &[Batch],
    more: impl Fn(&mut Encoder, &mut Vec<u8>) -> Result<()>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    control.send_with(|encoder, out| {
        encoder.pack(material.packing.best());
        batches.iter().try_for_each(|batch| material.encode(batch, encoder, out, &mut tally))?;
        more(encoder, out)
    })?;
    Ok(tally)
}
