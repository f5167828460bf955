//! Puts one frame into the guest's receive buffers.

use std::io::Write;

use virtio_queue::Writer;
use vm_memory::bitmap::BitmapSlice;

use super::{HEADER, RECEIVE};
use crate::virtio::Rings;

/// The offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;
/// More buffers than any queue has: a frame that needs them never fits.
const MOST_BUFFERS: usize = 256;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// In the guest.
    Done,
    /// There is no room now; the driver kicks when it has made some.
    NoRoom,
    /// It will never fit into buffers such as this driver gives.
    Dropped,
}

/// Delivers `frame` (header first). With `mergeable` it may spread over several buffers.
pub fn deliver(rings: &mut Rings<'_>, frame: &mut [u8], mergeable: bool) -> Delivery {
    let mut buffers = Vec::new();
    let mut room = 0;
    while room < frame.len() {
        if buffers.len() == MOST_BUFFERS || !mergeable && buffers.len() == 1 {
            give_back(rings, buffers.len());
            return Delivery::Dropped;
        }
        let Some(chain) = rings.pop(RECEIVE) else {
            // Asked for now, with all buffers taken: the driver kicks with the next one that it adds. Asked for with some given
            // back, it would kick for those only, which it has added already.
            if rings.listen(RECEIVE) {
                continue;
            }
            give_back(rings, buffers.len());
            return Delivery::NoRoom;
        };
        let head = chain.head_index();
        match chain.writer(rings.memory) {
            Ok(writer) if writer.available_bytes() > 0 => {
                room += writer.available_bytes();
                buffers.push((head, writer));
            }
            // A buffer that holds nothing goes back at once, unless good ones were taken before it.
            _ if buffers.is_empty() => rings.push(RECEIVE, head, 0),
            _ => {
                give_back(rings, buffers.len() + 1);
                return Delivery::Dropped;
            }
        }
    }
    let count = u16::try_from(buffers.len()).unwrap_or(1);
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER) {
        field.copy_from_slice(&count.to_le_bytes());
    }
    let mut rest = &*frame;
    for (head, mut writer) in buffers {
        let written = fill(&mut writer, &mut rest);
        rings.push(RECEIVE, head, written);
    }
    Delivery::Done
}

fn fill<B: BitmapSlice>(writer: &mut Writer<'_, B>, rest: &mut &[u8]) -> u32 {
    let (now, later) = rest.split_at(rest.len().min(writer.available_bytes()));
    *rest = later;
    if writer.write_all(now).is_err() {
        return 0;
    }
    u32::try_from(now.len()).unwrap_or(0)
}

fn give_back(rings: &mut Rings<'_>, buffers: usize) {
    for _ in 0..buffers {
        rings.unpop(RECEIVE);
    }
}
