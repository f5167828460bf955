//! Switching off, resetting, and the power button: the ACPI fixed hardware that `acpi.rs` announces.
//!
//! PM1 event block: a status and an enable register of 16 bits. The SCI line is high while an enabled status bit is set;
//! writing 1 to a status bit clears it. PM1 control: `SLP_EN` with sleep type 5 switches off (`\_S5`).

use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::layout;

/// The version of [`PowerState`]'s encoding.
pub const VERSION: u16 = 1;

const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_S5: u16 = 5;
const PULSE_RESET: u8 = 0xfe;

/// Why a machine stops executing for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest switched itself off, or the monitor was told to end.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU met a triple fault.
    TripleFault,
    /// The instance was discarded by a migration.
    Discarded,
    /// KVM or the monitor failed.
    Failed(String),
}

/// The saved registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    status: u16,
    enable: u16,
}

/// The registers and who is told.
#[derive(Debug)]
pub struct Power {
    registers: PowerState,
    vm: Arc<VmFd>,
    exits: Sender<Exit>,
}

impl Power {
    /// After a reset.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, exits: Sender<Exit>) -> Self {
        Self { registers: PowerState::default(), vm, exits }
    }

    /// A read of `port`; `None` when it is not one of ours.
    pub fn read(&self, port: u16, data: &mut [u8]) -> bool {
        let value = match port {
            layout::PM1_EVENT => self.registers.status,
            p if p == layout::PM1_EVENT + 2 => self.registers.enable,
            layout::PM1_CONTROL => SCI_ENABLED,
            layout::RESET | layout::I8042_COMMAND => 0,
            _ => return false,
        };
        let bytes = u32::from(value).to_le_bytes();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = from;
        }
        true
    }

    /// A write to `port`; false when it is not one of ours.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let low = data.first().copied().unwrap_or(0);
        let value = u16::from_le_bytes([low, data.get(1).copied().unwrap_or(0)]);
        match port {
            layout::PM1_EVENT => self.registers.status &= !value,
            p if p == layout::PM1_EVENT + 2 => self.registers.enable = value,
            layout::PM1_CONTROL if value & SLEEP_ENABLE != 0 && value >> 10 & 7 == SLEEP_TYPE_S5 => {
                self.exit(Exit::PowerOff);
            }
            layout::PM1_CONTROL => {}
            layout::RESET if low == layout::RESET_VALUE => self.exit(Exit::Reset),
            layout::I8042_COMMAND if low == PULSE_RESET => self.exit(Exit::Reset),
            layout::RESET | layout::I8042_COMMAND => {}
            _ => return false,
        }
        self.drive_sci();
        true
    }

    /// The button is pressed.
    pub fn press(&mut self) {
        self.registers.status |= POWER_BUTTON;
        self.drive_sci();
    }

    /// Sets the interrupt line as the registers say; also after a load.
    pub fn drive_sci(&self) {
        let active = self.registers.status & self.registers.enable != 0;
        if let Err(error) = self.vm.set_irq_line(layout::SCI_GSI, active) {
            warn!(%error, "KVM_IRQ_LINE for the ACPI interrupt failed");
        }
    }

    /// What a save carries.
    #[must_use]
    pub fn state(&self) -> PowerState {
        self.registers.clone()
    }

    /// What a load brings.
    pub fn set_state(&mut self, state: PowerState) {
        self.registers = state;
    }

    fn exit(&self, exit: Exit) {
        // The receiver lives as long as the process; if it is gone the process is ending anyway.
        drop(self.exits.send(exit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let state = PowerState { status: 0x100, enable: 0x120 };
        assert_eq!(postcard::to_stdvec(&state).unwrap(), [0x80, 0x02, 0xa0, 0x02]);
    }
}
