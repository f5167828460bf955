//! A device's interrupt: an edge on its line through an irqfd, and the status register that says why.

use std::sync::atomic::{AtomicU32, Ordering};

use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

/// The device used buffers.
pub const USED_BUFFER: u32 = 1;
/// The configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// Shared by the device's thread, which raises, and the vCPUs, which acknowledge without taking the device's lock.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// `line` is registered with KVM as an irqfd.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    /// Raises the line for `reason`.
    pub fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            warn!(%error, "a device's interrupt could not be raised");
        }
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Sets the register, for a load or a reset.
    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }
}
