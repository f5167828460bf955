//! The saved state of a virtio device: the transport's registers and queues, then the device's own bytes.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState as Ring, QueueT};

use super::mmio::{MmioTransport, Registers};

/// The version of [`DeviceState`]'s encoding.
pub const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DeviceState {
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    status: u32,
    config_generation: u32,
    interrupt_status: u32,
    active: bool,
    queues: Vec<QueueState>,
    device: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueState {
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl QueueState {
    fn of(queue: &Queue) -> Self {
        let ring = queue.state();
        Self {
            next_avail: ring.next_avail,
            next_used: ring.next_used,
            event_idx: ring.event_idx_enabled,
            size: ring.size,
            ready: ring.ready,
            desc_table: ring.desc_table,
            avail_ring: ring.avail_ring,
            used_ring: ring.used_ring,
        }
    }

    fn to_queue(self, max_size: u16) -> Result<Queue> {
        let ring = Ring {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        };
        Ok(Queue::try_from(ring)?)
    }
}

impl MmioTransport {
    /// The state of a quiesced device.
    ///
    /// # Errors
    /// When the device cannot tell its own.
    pub fn save(&self) -> Result<Vec<u8>> {
        let core = self.core();
        let Registers {
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            status,
            config_generation,
        } = core.registers;
        let state = DeviceState {
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            status,
            config_generation,
            interrupt_status: self.interrupt().status(),
            active: core.active,
            queues: core.queues.iter().map(QueueState::of).collect(),
            device: core.device.save().with_context(|| format!("save {}", self.name()))?,
        };
        Ok(postcard::to_stdvec(&state)?)
    }

    /// Brings a state; the device stays quiesced. The bytes come from another host and are checked.
    ///
    /// # Errors
    /// When they are not a state of such a device, or its queues do not lie in memory.
    pub fn load(&self, bytes: &[u8]) -> Result<()> {
        let name = self.name();
        let state: DeviceState =
            postcard::from_bytes(bytes).with_context(|| format!("decode the state of {name}"))?;
        let mut core = self.core();
        ensure!(
            state.queues.len() == core.queues.len(),
            "the state of {name} has {} queues, the device {}",
            state.queues.len(),
            core.queues.len()
        );
        ensure!(
            state.driver_features & !core.offered() == 0,
            "the state of {name} uses features {:#x} that this monitor does not offer",
            state.driver_features & !core.offered()
        );
        for (number, (queue, saved)) in core.queues.iter_mut().zip(&state.queues).enumerate() {
            *queue = saved.to_queue(queue.max_size()).with_context(|| format!("queue {number} of {name}"))?;
        }
        core.registers = Registers {
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queue_select: state.queue_select,
            status: state.status,
            config_generation: state.config_generation,
        };
        self.interrupt().set_status(state.interrupt_status);
        core.device.load(&state.device).with_context(|| format!("load {name}"))?;
        if state.active {
            core.activate(self.memory()).with_context(|| format!("activate {name}"))?;
            core.device.moved();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let state = DeviceState {
            device_features_select: 1,
            driver_features_select: 1,
            driver_features: 1 << 32,
            queue_select: 1,
            status: 15,
            config_generation: 2,
            interrupt_status: 1,
            active: true,
            queues: vec![QueueState {
                next_avail: 300,
                next_used: 299,
                event_idx: true,
                size: 256,
                ready: true,
                desc_table: 0x1000,
                avail_ring: 0x2000,
                used_ring: 0x3000,
            }],
            device: vec![7],
        };
        let bytes = postcard::to_stdvec(&state).unwrap();
        let golden = [
            1, 1, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 15, 2, 1, 1, 1, 0xac, 2, 0xab, 2, 1, 0x80, 2, 1, 0x80,
            0x20, 0x80, 0x40, 0x80, 0x60, 1, 7,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(postcard::from_bytes::<DeviceState>(&golden).unwrap(), state);
    }
}
