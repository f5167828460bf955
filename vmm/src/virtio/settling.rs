//! What a guest that goes on is told at once, and what only when it has settled.

use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::USED_BUFFER;
use super::mmio::{MmioTransport, SETTLE};
use super::vsock::Vsock;
use super::{Interrupt, Wake};
use crate::api::VsockSpec;
use crate::memory::{self, GuestRam};

const TRANSMIT: u64 = 1;
const EVENT: u64 = 2;

/// A vsock device whose guest arrives with one buffer for events, its transport, and the line of its interrupt.
struct Arrival {
    transport: MmioTransport,
    line: EventFd,
    ram: GuestRam,
    _directory: tempfile::TempDir,
}

impl Arrival {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vsock = Vsock::new(&VsockSpec { cid: 3, socket: directory.path().join("v") }).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(line.try_clone().unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        let ram = memory::map(32).unwrap();
        let transport = MmioTransport::new("vsock".into(), Box::new(vsock), interrupt, ram.clone()).unwrap();
        {
            let mut core = transport.core();
            for (number, queue) in (0u64..).zip(&mut core.queues) {
                let [table, avail, used] = rings(number);
                queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
                queue.try_set_avail_ring_address(GuestAddress(avail)).unwrap();
                queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
                queue.set_ready(true);
            }
            core.device.moved();
            core.active = true;
        }
        let arrival = Self { transport, line, ram, _directory: directory };
        // Flag 2: a buffer for the device to write.
        arrival.add_buffer(EVENT, 2);
        arrival
    }

    fn add_buffer(&self, queue: u64, flags: u16) {
        let [table, avail, _] = rings(queue);
        self.ram.write_obj(0x10_0000_u64, GuestAddress(table)).unwrap();
        self.ram.write_obj(64_u32, GuestAddress(table + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(table + 12)).unwrap();
        self.ram.write_obj(1_u16, GuestAddress(avail + 2)).unwrap();
    }

    fn goes_on(&self) {
        self.transport.open();
        self.transport.catch_up();
    }

    /// Streams are gone: the event was delivered.
    fn knows_of_the_reset(&self) -> bool {
        let [_, _, used] = rings(EVENT);
        self.ram.read_obj::<u16>(GuestAddress(used + 2)).unwrap() == 1
    }
}

fn rings(queue: u64) -> [u64; 3] {
    let base = 0x1_0000 * (queue + 1);
    [base, base + 0x1000, base + 0x2000]
}

#[test]
fn an_interrupt_that_the_driver_has_not_taken_is_raised_again_and_no_other() {
    let arrival = Arrival::new();
    arrival.goes_on();
    assert!(arrival.line.read().is_err(), "nothing is owed");
    arrival.transport.quiesce();
    arrival.transport.interrupt().raise(USED_BUFFER);
    arrival.line.read().unwrap();
    arrival.goes_on();
    arrival.line.read().unwrap();
}

#[test]
fn a_guest_is_told_of_the_reset_when_it_has_settled() {
    let arrival = Arrival::new();
    arrival.goes_on();
    let rest = arrival.transport.work(Wake::All).unwrap();
    assert!(rest <= SETTLE && rest > Duration::ZERO, "{rest:?}");
    assert!(!arrival.knows_of_the_reset());
    arrival.transport.core().settles = Some(Instant::now());
    assert_eq!(arrival.transport.work(Wake::Late), None);
    assert!(arrival.knows_of_the_reset());
    arrival.line.read().unwrap();
}

#[test]
fn a_guest_that_speaks_is_told_of_the_reset_before() {
    let arrival = Arrival::new();
    arrival.add_buffer(TRANSMIT, 0);
    arrival.goes_on();
    arrival.transport.work(Wake::All);
    assert!(arrival.knows_of_the_reset());
}
