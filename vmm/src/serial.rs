//! COM1: a 16550 whose output goes to the console ring. Input is ignored.

use std::io;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState as Registers};
use vmm_sys_util::eventfd::EventFd;

use crate::console_ring::ConsoleRing;

/// The version of [`SerialState`]'s encoding.
pub const VERSION: u16 = 1;

/// The interrupt line.
#[derive(Debug)]
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The device.
#[derive(Debug)]
pub struct Com1 {
    uart: Serial<Line, NoEvents, ConsoleRing>,
    line: EventFd,
    ring: ConsoleRing,
}

/// The saved registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor low and high, IER, IIR, LCR, LSR, MCR, MSR, scratch.
    registers: [u8; 9],
    in_buffer: Vec<u8>,
}

impl Com1 {
    /// After a reset. `line` is an irqfd.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn new(line: EventFd, ring: ConsoleRing) -> Result<Self> {
        let uart = Serial::new(Line(line.try_clone().context("duplicate COM1's interrupt")?), ring.clone());
        Ok(Self { uart, line, ring })
    }

    /// A read of register `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// A write to register `offset`. An interrupt that cannot be raised is the guest's to miss.
    pub fn write(&mut self, offset: u8, value: u8) {
        drop(self.uart.write(offset, value));
    }

    /// What a save carries.
    #[must_use]
    pub fn state(&self) -> SerialState {
        let r = self.uart.state();
        SerialState {
            registers: [
                r.baud_divisor_low,
                r.baud_divisor_high,
                r.interrupt_enable,
                r.interrupt_identification,
                r.line_control,
                r.line_status,
                r.modem_control,
                r.modem_status,
                r.scratch,
            ],
            in_buffer: r.in_buffer,
        }
    }

    /// What a load brings; a pending interrupt is raised again.
    ///
    /// # Errors
    /// When the state is not one of a 16550.
    pub fn set_state(&mut self, state: SerialState) -> Result<()> {
        let [low, high, ier, iir, lcr, lsr, mcr, msr, scratch] = state.registers;
        let registers = Registers {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: ier,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr,
            modem_status: msr,
            scratch,
            in_buffer: state.in_buffer,
        };
        let line = Line(self.line.try_clone().context("duplicate COM1's interrupt")?);
        self.uart = Serial::from_state(&registers, line, NoEvents, self.ring.clone())
            .map_err(|error| anyhow::anyhow!("load COM1: {error:?}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_writes_is_in_the_ring_and_registers_survive_a_save() {
        let ring = ConsoleRing::default();
        let mut com1 = Com1::new(EventFd::new(0).unwrap(), ring.clone()).unwrap();
        com1.write(0, b'h');
        com1.write(0, b'i');
        com1.write(7, 0x5a);
        assert_eq!(ring.contents(), b"hi");
        let state = com1.state();
        let mut other = Com1::new(EventFd::new(0).unwrap(), ring).unwrap();
        other.set_state(state.clone()).unwrap();
        assert_eq!(other.read(7), 0x5a);
        assert_eq!(other.state(), state);
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let state = SerialState { registers: [1, 2, 3, 4, 5, 6, 7, 8, 9], in_buffer: vec![0xaa] };
        assert_eq!(postcard::to_stdvec(&state).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 0xaa]);
    }
}
