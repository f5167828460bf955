//! Drivers that lie: whatever stands in the rings, a device neither panics nor loops for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::block::{Block, DiskFile};
use super::net::DeliveryForTests as Delivery;
use super::rng::Rng;
use super::vsock::Vsock;
use super::{Gate, Interrupt, Rings, VirtioDevice, Wake};
use crate::api::{DiskSpec, VsockSpec};
use crate::memory::{self, GuestRam};

const SIZE: u16 = 16;
/// Each queue has a page for each ring; buffers that are not nonsense lie from here on.
const BUFFERS: u64 = 0x10_0000;

/// A descriptor, mostly plausible.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![4 => BUFFERS..BUFFERS + 0x10000, 1 => any::<u64>()];
    let length = prop_oneof![4 => 0u32..9000, 1 => any::<u32>(), 1 => Just(16), 1 => Just(44)];
    let flags = prop_oneof![8 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..SIZE, 1 => any::<u16>()];
    (address, length, flags, next)
}

#[derive(Clone, Debug)]
struct Ring {
    descriptors: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    index: u16,
}

fn ring() -> impl Strategy<Value = Ring> {
    let head = prop_oneof![8 => 0u16..SIZE, 1 => any::<u16>()];
    let index = prop_oneof![6 => 0u16..=SIZE, 1 => any::<u16>()];
    (prop::collection::vec(descriptor(), SIZE as usize), prop::collection::vec(head, SIZE as usize), index)
        .prop_map(|(descriptors, heads, index)| Ring { descriptors, heads, index })
}

fn place(ram: &GuestRam, number: u64, ring: &Ring) -> Queue {
    let base = 0x1_0000 * (number + 1);
    let (table, avail, used) = (base, base + 0x1000, base + 0x2000);
    for (at, (address, length, flags, next)) in (table..).step_by(16).zip(&ring.descriptors) {
        ram.write_obj(*address, GuestAddress(at)).unwrap();
        ram.write_obj(*length, GuestAddress(at + 8)).unwrap();
        ram.write_obj(*flags, GuestAddress(at + 12)).unwrap();
        ram.write_obj(*next, GuestAddress(at + 14)).unwrap();
    }
    ram.write_obj(ring.index, GuestAddress(avail + 2)).unwrap();
    for (at, head) in (avail + 4..).step_by(2).zip(&ring.heads) {
        ram.write_obj(*head, GuestAddress(at)).unwrap();
    }
    let mut queue = Queue::new(SIZE).unwrap();
    queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(avail)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

fn eventfd() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

fn drive(device: &mut dyn VirtioDevice, rings: &[Ring], bytes: &[u8]) {
    let ram = memory::map(32).unwrap();
    ram.write_slice(bytes, GuestAddress(BUFFERS)).unwrap();
    let mut queues: Vec<_> = (0u64..).zip(rings).map(|(number, ring)| place(&ram, number, ring)).collect();
    let (gate, interrupt) = (Gate::default(), Interrupt::new(eventfd(), eventfd()));
    gate.open();
    let start = Instant::now();
    for wake in [Wake::All, Wake::Queue(0), Wake::Queue(1), Wake::Queue(9)] {
        device.wake(wake, &mut Rings::new(&mut queues, &ram, &interrupt, &gate));
    }
    assert!(start.elapsed() < Duration::from_secs(20), "the device did not come to an end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_disk_survives_a_driver_that_lies(ring in ring(), kind in 0u32..16, noise in prop::collection::vec(any::<u8>(), 512)) {
        let directory = tempfile::tempdir().unwrap();
        let spec = DiskSpec {
            id: "root".into(), path: directory.path().join("disk"), base: None, size_bytes: 1 << 20, read_only: false,
        };
        let mut device = Block::new(Arc::new(DiskFile::open(&spec).unwrap()));
        let mut bytes = noise;
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        drive(&mut device, &[ring], &bytes);
    }

    #[test]
    fn entropy_survives_a_driver_that_lies(ring in ring()) {
        drive(&mut Rng, &[ring], &[]);
    }

    #[test]
    fn vsock_survives_a_driver_that_lies(
        rings in prop::collection::vec(ring(), 3), op in 0u16..9, ports in any::<(u32, u32)>(),
        noise in prop::collection::vec(any::<u8>(), 512),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut device = Vsock::new(&VsockSpec { cid: 3, socket: directory.path().join("v") }).unwrap();
        let mut bytes = noise;
        bytes[..16].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        bytes[16..20].copy_from_slice(&ports.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&ports.1.to_le_bytes());
        bytes[24..28].copy_from_slice(&100u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&[1, 0, op.to_le_bytes()[0], 0]);
        drive(&mut device, &rings, &bytes);
    }

    #[test]
    fn frames_meet_receive_buffers_that_lie(ring in ring(), mergeable in any::<bool>(), length in 12usize..70000) {
        let ram = memory::map(32).unwrap();
        let mut queues = [place(&ram, 0, &ring)];
        let (gate, interrupt) = (Gate::default(), Interrupt::new(eventfd(), eventfd()));
        gate.open();
        let mut rings = Rings::new(&mut queues, &ram, &interrupt, &gate);
        for _ in 0..4 {
            super::net::deliver_for_tests(&mut rings, &mut vec![7; length], mergeable);
        }
    }
}

/// A loop that waits for the guest's buffers hangs a guest that waits for another queue of the same device; and a kick that is asked
/// for with buffers left untaken never comes.
#[test]
fn a_frame_that_lacks_buffers_waits_for_a_kick_with_the_next_one() {
    let ram = memory::map(32).unwrap();
    let descriptors: Vec<_> = (0..u64::from(SIZE)).map(|n| (BUFFERS + n * 2000, 1536, 2, 0)).collect();
    let mut ring = Ring { descriptors, heads: (0..SIZE).collect(), index: 2 };
    let mut queues = [place(&ram, 0, &ring)];
    let (gate, interrupt) = (Gate::default(), Interrupt::new(eventfd(), eventfd()));
    gate.open();
    let mut frame = vec![7; 4000];
    let deliver = |queues: &mut [Queue; 1], frame: &mut [u8]| {
        super::net::deliver_for_tests(&mut Rings::new(queues, &ram, &interrupt, &gate), frame, true)
    };
    assert_eq!(deliver(&mut queues, &mut frame), Delivery::NoRoom);
    let avail_event: u16 = ram.read_obj(GuestAddress(0x1_2000 + 4 + 8 * u64::from(SIZE))).unwrap();
    assert_eq!(avail_event, 2, "the driver kicks when it adds its third buffer");
    assert_eq!(queues[0].next_avail(), 0, "both buffers are still to be used");
    ring.index = 3;
    ram.write_obj(ring.index, GuestAddress(0x1_1000 + 2)).unwrap();
    assert_eq!(deliver(&mut queues, &mut frame), Delivery::Done);
    assert_eq!(queues[0].next_used(), 3);
}
