//! Gives a machine's devices their places: window, interrupt line, thread.
//!
//! The order is part of the machine: disks, networks, vsock, entropy. It fixes addresses and lines, which the guest has
//! learned at boot and which saved state relies on.

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::acpi::MmioDevice;
use crate::layout;
use crate::memory::GuestRam;
use crate::virtio::mmio::{INTERRUPT_ACK, MmioTransport, QUEUE_NOTIFY};
use crate::virtio::{Interrupt, USED_BUFFER, VirtioDevice};

/// Places devices one after the other.
pub struct Shelf<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    devices: Vec<Arc<MmioTransport>>,
    places: Vec<MmioDevice>,
}

impl<'a> Shelf<'a> {
    /// An empty one.
    #[must_use]
    pub fn new(vm: &'a VmFd, ram: &'a GuestRam) -> Self {
        Self { vm, ram, devices: Vec::new(), places: Vec::new() }
    }

    /// Takes the next place.
    ///
    /// # Errors
    /// When all places are taken or KVM refuses the descriptors.
    pub fn add(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<Arc<MmioTransport>> {
        let index = self.devices.len();
        let gsi = *layout::VIRTIO_GSIS.get(index).with_context(|| {
            format!(
                "no interrupt line for {name}: a machine has at most {} devices",
                layout::VIRTIO_GSIS.len()
            )
        })?;
        let address = layout::VIRTIO_BASE + layout::VIRTIO_WINDOW * index as u64;
        let line = irqfd(self.vm, gsi).with_context(|| format!("interrupt line of {name}"))?;
        let acknowledgement = eventfd()?;
        let interrupt = Interrupt::new(line, acknowledgement);
        let transport = MmioTransport::new(name.to_owned(), device, interrupt, self.ram.clone())?;
        let acknowledge = IoEventAddress::Mmio(address + INTERRUPT_ACK);
        self.vm
            .register_ioevent(transport.interrupt().acknowledgement(), &acknowledge, USED_BUFFER)
            .with_context(|| format!("KVM_IOEVENTFD for the acknowledgements of {name}"))?;
        for (queue, kick) in (0u32..).zip(transport.kicks()) {
            self.vm
                .register_ioevent(kick, &IoEventAddress::Mmio(address + QUEUE_NOTIFY), queue)
                .with_context(|| format!("KVM_IOEVENTFD for queue {queue} of {name}"))?;
        }
        let transport = Arc::new(transport);
        crate::virtio::start_worker(&transport, name)?;
        self.devices.push(Arc::clone(&transport));
        self.places.push(MmioDevice { address, gsi });
        Ok(transport)
    }

    /// The devices and their places, in order.
    #[must_use]
    pub fn finish(self) -> (Vec<Arc<MmioTransport>>, Vec<MmioDevice>) {
        (self.devices, self.places)
    }
}

/// An eventfd that raises `gsi` in the in-kernel interrupt controllers.
///
/// # Errors
/// When KVM refuses it.
pub fn irqfd(vm: &VmFd, gsi: u32) -> Result<EventFd> {
    let line = eventfd()?;
    vm.register_irqfd(&line, gsi).with_context(|| format!("KVM_IRQFD for line {gsi}"))?;
    Ok(line)
}

fn eventfd() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK).context("make an eventfd")
}
