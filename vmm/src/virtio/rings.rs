//! A device's view of its queues while it works.

use tracing::debug;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::gate::Gate;
use super::interrupt::{Interrupt, USED_BUFFER};
use crate::memory::GuestRam;

/// Queues, memory, interrupt and gate.
pub struct Rings<'a> {
    queues: &'a mut [Queue],
    /// The guest's memory; writes through it are seen by the dirty log.
    pub memory: &'a GuestRam,
    interrupt: &'a Interrupt,
    /// Work stops when it closes.
    pub gate: &'a Gate,
}

impl<'a> Rings<'a> {
    /// For one call of the device.
    pub fn new(
        queues: &'a mut [Queue],
        memory: &'a GuestRam,
        interrupt: &'a Interrupt,
        gate: &'a Gate,
    ) -> Self {
        Self { queues, memory, interrupt, gate }
    }

    /// The next buffer of a queue; `None` also for a queue that the driver did not set up or filled with nonsense.
    pub fn pop(&mut self, queue: usize) -> Option<DescriptorChain<&'a GuestRam>> {
        let ring = self.queues.get_mut(queue)?;
        if !ring.ready() {
            return None;
        }
        ring.pop_descriptor_chain(self.memory)
    }

    /// Puts the buffer popped last back.
    pub fn unpop(&mut self, queue: usize) {
        if let Some(ring) = self.queues.get_mut(queue) {
            ring.go_to_previous_position();
        }
    }

    /// Whether [`Rings::pop`] would give a buffer.
    pub fn has_buffer(&mut self, queue: usize) -> bool {
        let has = self.pop(queue).is_some();
        if has {
            self.unpop(queue);
        }
        has
    }

    /// Returns a buffer with `written` bytes in it.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) {
        if let Some(ring) = self.queues.get_mut(queue)
            && let Err(error) = ring.add_used(self.memory, head, written)
        {
            // The driver's ring lies outside its memory: its own loss.
            debug!(queue, %error, "a used buffer could not be returned");
        }
    }

    /// Interrupts the driver if it wants to know of the buffers returned since the last time; true when it did. All queues
    /// share the interrupt, and the driver looks at all of them.
    pub fn signal(&mut self, queue: usize) -> bool {
        let due = self.due(queue);
        if due {
            self.interrupt.raise(USED_BUFFER);
        }
        due
    }

    /// Takes note that the driver hears of the buffers returned, by an interrupt for another queue.
    pub fn signalled(&mut self, queue: usize) {
        self.due(queue);
    }

    fn due(&mut self, queue: usize) -> bool {
        let Some(ring) = self.queues.get_mut(queue) else { return false };
        // When the driver's wish cannot be read, an interrupt too many does no harm.
        ring.ready() && ring.needs_notification(self.memory).unwrap_or(true)
    }

    /// Asks the driver to kick when it adds buffers; true when some came in the meantime. (An index that lies is not a
    /// buffer: a caller that loops on this comes to an end.)
    pub fn listen(&mut self, queue: usize) -> bool {
        let Some(ring) = self.queues.get_mut(queue) else { return false };
        let more = ring.ready() && ring.enable_notification(self.memory).unwrap_or(false);
        more && self.has_buffer(queue)
    }
}
