//! Where a vCPU's port and memory accesses go.
//!
//! Accesses that nobody answers read as all ones and write to nothing, as on a PC.

use std::sync::{Arc, Mutex, PoisonError};

use crate::layout;
use crate::num::index;
use crate::power::Power;
use crate::serial::Com1;
use crate::virtio::mmio::MmioTransport;

/// Everything a vCPU can reach. Shared by all vCPU threads; each device has its own lock.
#[derive(Debug)]
pub struct Bus {
    /// COM1.
    pub com1: Mutex<Com1>,
    /// ACPI fixed hardware, reset.
    pub power: Mutex<Power>,
    /// The virtio devices by window.
    pub virtio: Vec<Arc<MmioTransport>>,
}

impl Bus {
    /// `in`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = com1_offset(port) {
            if let [byte] = data {
                *byte = self.com1.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
            }
            return;
        }
        self.power.lock().unwrap_or_else(PoisonError::into_inner).read(port, data);
    }

    /// `out`.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if let Some(offset) = com1_offset(port) {
            // A string output (`outsb`) comes as several bytes for one port.
            let mut com1 = self.com1.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                com1.write(offset, *byte);
            }
            return;
        }
        self.power.lock().unwrap_or_else(PoisonError::into_inner).write(port, data);
    }

    /// A load from a device's window.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to a device's window.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.window(address) {
            device.write(offset, data);
        }
    }

    fn window(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_BASE)?;
        let device = self.virtio.get(index(offset / layout::VIRTIO_WINDOW))?;
        Some((device, offset % layout::VIRTIO_WINDOW))
    }
}

fn com1_offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(layout::COM1)?;
    u8::try_from(offset).ok().filter(|offset| *offset < 8)
}
