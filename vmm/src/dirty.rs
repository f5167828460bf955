//! Which pages of RAM were written: by the vCPUs (KVM's log) and by the monitor's devices (vm-memory's bitmap).
//!
//! With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` reading and clearing are two steps, so exactly what was reported is cleared: a
//! page written in between stays dirty. `KVM_DIRTY_LOG_INITIALLY_SET` spares the write-protection of all RAM at the
//! start: everything counts as dirty and is protected piece by piece as it is sent.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::kvm_ext;
use crate::memory::{self, GuestRam, PAGE};
use crate::num::index;

/// The dirty log of one machine.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    ram: GuestRam,
    /// Clearing is a step of its own.
    manual: bool,
    on: Mutex<bool>,
}

impl DirtyLog {
    /// Off at first.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, ram: GuestRam) -> Self {
        let known = vm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
        let wanted = u32::try_from(known).unwrap_or(0)
            & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..kvm_enable_cap::default() };
        cap.args[0] = u64::from(wanted);
        let manual = wanted != 0 && vm.enable_cap(&cap).is_ok();
        Self { vm, ram, manual, on: Mutex::new(false) }
    }

    /// Starts the log. Idempotent.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self) -> Result<()> {
        self.switch(true)
    }

    /// Ends the log. Idempotent.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop(&self) -> Result<()> {
        self.switch(false)
    }

    fn switch(&self, on: bool) -> Result<()> {
        let mut state = self.on.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == on {
            return Ok(());
        }
        if on {
            // What devices wrote before is part of the first full pass.
            self.ram.iter().for_each(|region| region.get_mmap().bitmap().reset());
        }
        memory::register(&self.vm, &self.ram, on)?;
        *state = on;
        Ok(())
    }

    /// Reads the log and forgets what it returns: for each region one bit a page. `clear` write-protects the returned
    /// pages again, so that later writes are seen; without it the log is read for the last time.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn harvest(&self, clear: bool) -> Result<Vec<Vec<u64>>> {
        self.ram
            .iter()
            .enumerate()
            .map(|(slot, region)| {
                let slot = u32::try_from(slot)?;
                let mut words = self
                    .vm
                    .get_dirty_log(slot, index(region.len()))
                    .with_context(|| format!("KVM_GET_DIRTY_LOG of slot {slot}"))?;
                if clear && self.manual && words.iter().any(|word| *word != 0) {
                    let pages = u32::try_from(region.len() / PAGE)?;
                    kvm_ext::clear_dirty_log(&self.vm, slot, pages, &words)
                        .with_context(|| format!("KVM_CLEAR_DIRTY_LOG of slot {slot}"))?;
                }
                for (word, ours) in words.iter_mut().zip(region.get_mmap().bitmap().get_and_reset()) {
                    *word |= ours;
                }
                Ok(words)
            })
            .collect()
    }
}
