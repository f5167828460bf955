//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).
//!
//! Interrupt status and acknowledgement never take the device's lock: they come with every interrupt, and the device may be
//! in the middle of a disk flush.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{debug, warn};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::{CONFIG_CHANGE, USED_BUFFER};
use super::{EVENT_IDX, Gate, INDIRECT_DESC, Interrupt, Rings, VERSION_1, VirtioDevice, Wake};
use crate::memory::GuestRam;
use crate::num::{high32, index, low32};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MASH".
const VENDOR: u32 = 0x4853_414d;

const STATUS_FEATURES_OK: u32 = 8;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_NEEDS_RESET: u32 = 0x40;

const CONFIG_SPACE: u64 = 0x100;
/// The notification register, where ioeventfds listen.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// The register of interrupts' acknowledgement, where an ioeventfd listens for used buffers alone.
pub const INTERRUPT_ACK: u64 = 0x64;
const INTERRUPT_STATUS: u64 = 0x60;

/// How long a guest that goes on is left to what it came for, before it is told what can wait.
pub(super) const SETTLE: Duration = Duration::from_millis(250);

/// The registers that the driver writes and a save carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) status: u32,
    pub(super) config_generation: u32,
}

/// What the device's lock protects.
pub(super) struct Core {
    pub(super) registers: Registers,
    pub(super) queues: Vec<Queue>,
    pub(super) device: Box<dyn VirtioDevice>,
    /// The driver is ready and the device activated.
    pub(super) active: bool,
    /// When the guest has settled since it went on.
    pub(super) settles: Option<Instant>,
}

/// One device behind one window.
pub struct MmioTransport {
    name: String,
    core: Mutex<Core>,
    interrupt: Arc<Interrupt>,
    gate: Gate,
    kicks: Vec<EventFd>,
    wake: EventFd,
    memory: GuestRam,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport").field("name", &self.name).finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A device after reset, behind a closed gate.
    ///
    /// # Errors
    /// When descriptors run out, or the device's queue sizes are no powers of 2.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        interrupt: Interrupt,
        memory: GuestRam,
    ) -> Result<Self> {
        let queues = device.queue_sizes().iter().map(|size| Queue::new(*size));
        let queues: Vec<_> =
            queues.collect::<Result<_, _>>().with_context(|| format!("make the queues of {name}"))?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).with_context(|| format!("make an eventfd for {name}"));
        let kicks = queues.iter().map(|_| eventfd()).collect::<Result<_>>()?;
        let wake = eventfd()?;
        let core = Core { registers: Registers::default(), queues, device, active: false, settles: None };
        Ok(Self {
            name,
            core: Mutex::new(core),
            interrupt: Arc::new(interrupt),
            gate: Gate::default(),
            kicks,
            wake,
            memory,
        })
    }

    /// `net0`, `root`, ….
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The virtio device id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.core().device.id()
    }

    /// One eventfd a queue, to be registered at [`QUEUE_NOTIFY`].
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    pub(super) fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Its interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    pub(super) fn memory(&self) -> &GuestRam {
        &self.memory
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn attach(&self, poll: &Arc<Epoll>) -> Result<()> {
        self.core().device.attach(poll)
    }

    /// Lets the device's thread look at everything, now.
    pub fn wake(&self) {
        drop(self.wake.write(1));
    }

    /// Stops the device: when this returns no I/O is in flight and none begins.
    pub fn quiesce(&self) {
        self.gate.close();
        if self.core().device.owes_interrupt() {
            self.interrupt.raise(USED_BUFFER);
        }
    }

    /// Lets the device go on. [`MmioTransport::catch_up`] follows.
    pub fn open(&self) {
        self.gate.open();
    }

    /// Makes up for buffers that came and interrupts that were lost while the gate was closed. What the guest need not hear of at once
    /// waits for [`SETTLE`]: each interrupt now is one before that of the first frame.
    pub fn catch_up(&self) {
        {
            let mut core = self.core();
            core.settles = core.active.then(|| Instant::now() + SETTLE);
            let owed = self.interrupt.status();
            if core.active && owed != 0 {
                self.interrupt.raise(owed);
            }
        }
        self.wake();
    }

    /// The device's thread works off one event. How long it may wait for the next one before [`Wake::Late`].
    pub(super) fn work(&self, wake: Wake) -> Option<Duration> {
        let mut core = self.core();
        // The gate may have closed between the event and the lock.
        if self.gate.is_closed() || !core.active {
            return None;
        }
        // The clock is asked by none but a guest that went on just now: where the kernel has no quick one, each frame would pay for it.
        let settled = core.settles.take_if(|settles| *settles <= Instant::now()).is_some();
        let Core { queues, device, settles, .. } = &mut *core;
        let rest = settles.map(|settles| settles.saturating_duration_since(Instant::now()));
        let mut rings = Rings::new(queues, &self.memory, &self.interrupt, &self.gate);
        if settled {
            device.settle();
            // One too many does no harm.
            self.interrupt.raise(USED_BUFFER);
        }
        device.wake(wake, &mut rings);
        if device.config_changed() {
            core.registers.config_generation = core.registers.config_generation.wrapping_add(1);
            self.interrupt.raise(CONFIG_CHANGE);
        }
        [core.device.later(), rest].into_iter().flatten().min()
    }

    /// A vCPU reads its window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            self.core().device.read_config(index(offset), data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            debug!(device = self.name, offset, len = data.len(), "a read that virtio-mmio does not define");
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == INTERRUPT_STATUS {
            return self.interrupt.read();
        }
        let core = self.core();
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => core.device.id(),
            0x0c => VENDOR,
            0x10 if core.registers.device_features_select == 0 => low32(core.offered()),
            0x10 if core.registers.device_features_select == 1 => high32(core.offered()),
            0x34 => core.selected().map_or(0, |queue| queue.max_size().into()),
            0x44 => core.selected().map_or(0, |queue| queue.ready().into()),
            0x70 => core.registers.status,
            0xfc => core.registers.config_generation,
            // Shared memory regions: length and base of one that does not exist.
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    /// A vCPU writes its window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return debug!(device = self.name, offset, "a write that virtio-mmio does not define");
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            // Normally taken by the ioeventfd; a guest may still use an odd access size.
            QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(index(u64::from(value))) {
                    drop(kick.write(1));
                }
            }
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            0x70 => self.write_status(value),
            _ => self.core().write_register(offset, value),
        }
    }

    fn write_status(&self, value: u32) {
        let mut core = self.core();
        if value == 0 {
            core.reset();
            self.interrupt.set_status(0);
            return;
        }
        if value & STATUS_FEATURES_OK != 0 && core.registers.driver_features & !core.offered() != 0 {
            // Refused: FEATURES_OK does not stick.
            core.registers.status = value & !STATUS_FEATURES_OK;
            return;
        }
        core.registers.status = value;
        if value & STATUS_DRIVER_OK != 0 && !core.active {
            match core.activate(&self.memory) {
                Ok(()) => self.wake(),
                Err(error) => {
                    warn!(
                        device = self.name,
                        error = format!("{error:#}"),
                        "the driver's set-up was refused"
                    );
                    core.registers.status |= STATUS_NEEDS_RESET;
                    self.interrupt.raise(CONFIG_CHANGE);
                }
            }
        }
    }
}

impl Core {
    pub(super) fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(index(u64::from(self.registers.queue_select)))
    }

    pub(super) fn activate(&mut self, memory: &GuestRam) -> Result<()> {
        let features = self.registers.driver_features;
        for (number, queue) in self.queues.iter_mut().enumerate().filter(|(_, queue)| queue.ready()) {
            anyhow::ensure!(queue.is_valid(memory), "queue {number} lies outside the guest's memory");
            queue.set_event_idx(features & EVENT_IDX != 0);
        }
        self.device.activate(features)?;
        self.active = true;
        Ok(())
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
        }
        self.active = false;
        self.registers = Registers::default();
        self.queues.iter_mut().for_each(QueueT::reset);
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.registers.device_features_select = value,
            0x24 => self.registers.driver_features_select = value,
            0x20 => self.accept_features(value),
            0x30 => self.registers.queue_select = value,
            // Rings do not move under a running device.
            0x38..=0xa4 if !self.active => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(index(u64::from(self.registers.queue_select))) else { return };
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}
