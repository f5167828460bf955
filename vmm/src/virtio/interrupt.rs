//! A device's interrupt: an edge on its line through an irqfd, and the status register that says why.
//!
//! The driver reads the status and acknowledges what it read, with each interrupt. The read must come to us; the
//! acknowledgement of used buffers ends in KVM, in an eventfd ([`Interrupt::acknowledgement`]) that nobody waits for: it is looked at
//! when the status is wanted next. It acknowledges the interrupts up to the read before it, so those raised between the two stay
//! pending whenever it is looked at.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;
use vmm_sys_util::eventfd::EventFd;

/// The device used buffers.
pub const USED_BUFFER: u32 = 1;
/// The configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// Shared by the device's thread, which raises, and the vCPUs, which acknowledge without taking the device's lock.
#[derive(Debug)]
pub struct Interrupt {
    status: Mutex<Status>,
    line: EventFd,
    acknowledgement: EventFd,
}

/// Interrupts for used buffers are counted; other reasons are bits.
#[derive(Debug, Default)]
struct Status {
    raised: u64,
    seen: u64,
    acknowledged: u64,
    others: u32,
}

impl Interrupt {
    /// `line` is registered with KVM as an irqfd, `acknowledgement` as an ioeventfd for [`USED_BUFFER`] written to the register of
    /// acknowledgement; both do not block.
    #[must_use]
    pub fn new(line: EventFd, acknowledgement: EventFd) -> Self {
        Self { status: Mutex::default(), line, acknowledgement }
    }

    /// Where KVM leaves acknowledgements of used buffers.
    #[must_use]
    pub fn acknowledgement(&self) -> &EventFd {
        &self.acknowledgement
    }

    /// Raises the line for `reason`.
    pub fn raise(&self, reason: u32) {
        {
            let mut status = self.lock();
            status.raised += u64::from(reason & USED_BUFFER);
            status.others |= reason & !USED_BUFFER;
        }
        if let Err(error) = self.line.write(1) {
            warn!(%error, "a device's interrupt could not be raised");
        }
    }

    /// The status register as the driver reads it.
    #[must_use]
    pub fn read(&self) -> u32 {
        let mut status = self.settled();
        status.seen = status.raised;
        status.bits()
    }

    /// The status register, for a save.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.settled().bits()
    }

    /// The driver acknowledges by way of us.
    pub fn acknowledge(&self, reasons: u32) {
        let mut status = self.lock();
        if reasons & USED_BUFFER != 0 {
            status.acknowledged = status.seen;
        }
        status.others &= !reasons;
    }

    /// Sets the register, for a load or a reset. What it holds counts as seen: the driver may be between its read and its
    /// acknowledgement.
    pub fn set_status(&self, bits: u32) {
        let mut status = self.settled();
        let raised = u64::from(bits & USED_BUFFER);
        *status = Status { raised, seen: raised, acknowledged: 0, others: bits & !USED_BUFFER };
    }

    /// With the acknowledgements that KVM took.
    fn settled(&self) -> MutexGuard<'_, Status> {
        let mut status = self.lock();
        if self.acknowledgement.read().is_ok() {
            status.acknowledged = status.seen;
        }
        status
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    fn bits(&self) -> u32 {
        self.others | if self.raised == self.acknowledged { 0 } else { USED_BUFFER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupt() -> Interrupt {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Interrupt::new(eventfd(), eventfd())
    }

    #[test]
    fn an_acknowledgement_covers_what_was_read_and_no_more() {
        let interrupt = interrupt();
        assert_eq!(interrupt.read(), 0);
        interrupt.raise(USED_BUFFER);
        assert_eq!(interrupt.read(), USED_BUFFER);
        interrupt.raise(USED_BUFFER);
        interrupt.acknowledgement().write(1).unwrap();
        assert_eq!(interrupt.read(), USED_BUFFER, "the second one was not read yet");
        interrupt.acknowledgement().write(1).unwrap();
        assert_eq!(interrupt.read(), 0);
    }

    #[test]
    fn an_acknowledgement_looked_at_late_takes_no_newer_interrupt_along() {
        let interrupt = interrupt();
        interrupt.raise(USED_BUFFER);
        assert_eq!(interrupt.read(), USED_BUFFER);
        interrupt.acknowledgement().write(1).unwrap();
        interrupt.raise(USED_BUFFER);
        assert_eq!(interrupt.status(), USED_BUFFER);
        assert_eq!(interrupt.read(), USED_BUFFER);
    }

    #[test]
    fn a_change_of_the_configuration_is_acknowledged_by_itself() {
        let interrupt = interrupt();
        interrupt.raise(CONFIG_CHANGE);
        interrupt.raise(USED_BUFFER);
        assert_eq!(interrupt.read(), USED_BUFFER | CONFIG_CHANGE);
        interrupt.acknowledge(CONFIG_CHANGE);
        assert_eq!(interrupt.read(), USED_BUFFER);
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.read(), 0);
    }

    #[test]
    fn a_driver_that_moved_between_its_read_and_its_acknowledgement_is_understood() {
        let interrupt = interrupt();
        interrupt.set_status(USED_BUFFER);
        interrupt.acknowledgement().write(1).unwrap();
        assert_eq!(interrupt.read(), 0);
    }
}
