//! Virtio 1.2 devices over MMIO.
//!
//! ```text
//! vCPU ──registers──► mmio::MmioTransport ─┐ lock
//! vCPU ──ioeventfd──► worker thread ───────┴► Core { queues, device } ──irqfd──► vCPU
//! ```
//!
//! One thread a device. Queues and device are one `Core` behind one lock, which the thread holds while it works. A
//! quiesced device is one whose gate is closed and whose lock was free once after that: no I/O is in flight, because
//! all I/O happens under the lock.

pub mod block;
mod gate;
#[cfg(test)]
mod hostile;
mod interrupt;
pub mod mmio;
pub mod net;
mod persist;
mod rings;
pub mod rng;
#[cfg(test)]
mod settling;
pub mod vsock;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vmm_sys_util::epoll::Epoll;

pub use gate::Gate;
pub use interrupt::{Interrupt, USED_BUFFER};
pub use persist::VERSION as STATE_VERSION;
pub use rings::Rings;
pub use worker::start as start_worker;

/// `VIRTIO_F_VERSION_1`: no legacy drivers.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_RING_INDIRECT_DESC`.
pub const INDIRECT_DESC: u64 = 1 << 28;

/// A device's own epoll tokens begin here; below are the worker's.
pub const FIRST_TOKEN: u64 = 1 << 16;

/// Why a device is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The driver put buffers into a queue.
    Queue(usize),
    /// A descriptor that the device registered with epoll is ready.
    Source(u64),
    /// The time that the device asked for by [`VirtioDevice::later`] has come.
    Late,
    /// Anything may have happened: after activation, after a resume, or because another thread asked.
    All,
}

/// What kinds of device differ in. Methods are called with the device's lock held.
pub trait VirtioDevice: Send {
    /// The virtio device id.
    fn id(&self) -> u32;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// The features offered, without the transport's own.
    fn features(&self) -> u64;

    /// Reads the configuration space. `data` is all zero before.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Tells the device its thread's epoll, once, before anything else.
    fn attach(&mut self, _poll: &Arc<Epoll>) -> Result<()> {
        Ok(())
    }

    /// The driver is ready, with these features; or a load brought such a state.
    fn activate(&mut self, features: u64) -> Result<()>;

    /// Back to the state before [`VirtioDevice::activate`].
    fn reset(&mut self);

    /// Works. Leaves early when `rings.gate` closes; whatever is left over is found again at the next [`Wake::All`].
    fn wake(&mut self, wake: Wake, rings: &mut Rings<'_>);

    /// How long to wait for the next event at most before [`Wake::Late`].
    fn later(&self) -> Option<Duration> {
        None
    }

    /// The device's own state, beyond features and queues.
    fn save(&self) -> Result<Vec<u8>>;

    /// Brings what [`VirtioDevice::save`] gave.
    fn load(&mut self, state: &[u8]) -> Result<()>;

    /// The guest goes on elsewhere than it stopped: what the driver must be told (an announcement, a reset of transport
    /// connections). Called once after a load, before the first [`Wake::All`].
    fn moved(&mut self) {}

    /// The guest has run for a while since it went on: now it may hear of what could wait.
    fn settle(&mut self) {}

    /// Whether buffers were returned that the driver was to hear of later.
    fn owes_interrupt(&self) -> bool {
        false
    }

    /// Whether the configuration changed since the last call, so that the driver must be interrupted.
    fn config_changed(&mut self) -> bool {
        false
    }
}

/// Copies from a configuration space; what lies past its end stays zero.
pub fn read_from(config: &[u8], offset: usize, data: &mut [u8]) {
    let available = config.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(available) {
        *to = *from;
    }
}
