//! The network device: an existing tap, with checksum and segmentation offloads.

mod control;
mod device;
mod frames;
mod receive;
mod tap;

pub use device::Net;
pub use frames::Frames;
#[cfg(test)]
pub use receive::{Delivery as DeliveryForTests, deliver as deliver_for_tests};

/// The virtio-net header before every frame, in the queues and at the tap, in bytes.
pub const HEADER: usize = 12;
/// The largest frame with its header: a 64 KiB segment, an Ethernet header with a VLAN tag.
pub const LARGEST: usize = HEADER + 18 + 65535;

/// The queue of buffers for the guest to receive into.
const RECEIVE: usize = 0;
/// The queue of frames that the guest sends.
const TRANSMIT: usize = 1;
/// The control queue.
const CONTROL: usize = 2;
