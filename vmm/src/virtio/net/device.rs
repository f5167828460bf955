//! The network device on its three queues.
//!
//! The tap is edge-triggered in epoll: after an edge it is read until it is empty or the guest has too few buffers, and in the
//! latter case the guest's next kick goes on reading. Nothing here waits for the guest in a loop: it may be waiting for us, with its
//! control queue.
//!
//! An interrupt costs the guest several exits, and that its frames have left is nothing it waits for: it hears of it with the next
//! frame that it receives, or after many frames, or after a few milliseconds.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tracing::debug;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::frames::Frames;
use super::receive::{Delivery, deliver};
use super::tap::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, Tap};
use super::{CONTROL, HEADER, LARGEST, RECEIVE, TRANSMIT, control};
use crate::api::NetSpec;
use crate::virtio::{FIRST_TOKEN, Rings, VirtioDevice, Wake, read_from};

const DEVICE_ID: u32 = 1;
/// So many frames one way, then the other queues have their turn: a driver may wait for its control queue before it does anything else.
const BURST: usize = 64;
/// The guest hears at once of frames sent when so many bytes …
const UNTOLD_BYTES: usize = 16 << 10;
/// … or so many frames are untold …
const UNTOLD_FRAMES: usize = 16;
/// … and in any case after this.
const UNTOLD_TIME: Duration = Duration::from_millis(3);
/// The shortest frame the tap is given: header and Ethernet header.
const SHORTEST: usize = HEADER + 14;

/// The features offered.
const FEATURES: [u32; 14] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// What a guest feature allows the host to hand over.
const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
];

/// The device's own saved state.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NetState {
    announce: bool,
}

/// The device.
#[derive(Debug)]
pub struct Net {
    frames: Arc<Frames>,
    mac: [u8; 6],
    mtu: u16,
    mergeable: bool,
    /// The driver is asked to announce its addresses.
    announce: bool,
    changed: bool,
    /// Frames, and their bytes, that have left and the guest was not told of.
    untold: (usize, usize),
    buffer: Vec<u8>,
}

impl Net {
    /// On the tap that the spec names. The tap is attached but not read before the machine runs.
    ///
    /// # Errors
    /// When the tap cannot be had or the MAC address is none.
    pub fn new(spec: &NetSpec) -> Result<Self> {
        let mac = parse_mac(&spec.mac)?;
        let tap = Arc::new(Tap::open(&spec.tap)?);
        Ok(Self {
            frames: Arc::new(Frames::new(tap)),
            mac,
            mtu: spec.mtu,
            mergeable: false,
            announce: false,
            changed: false,
            untold: (0, 0),
            buffer: vec![0; LARGEST],
        })
    }

    /// The frames on their way to the guest.
    #[must_use]
    pub fn frames(&self) -> Arc<Frames> {
        Arc::clone(&self.frames)
    }

    /// Delivers until the tap is empty, the guest has no room, or the gate closes; true when it stopped for other work before.
    fn receive(&mut self, rings: &mut Rings<'_>) -> bool {
        let busy = self.receive_burst(rings);
        if rings.signal(RECEIVE) && self.untold.0 > 0 {
            rings.signalled(TRANSMIT);
            self.untold = (0, 0);
        }
        busy
    }

    fn receive_burst(&mut self, rings: &mut Rings<'_>) -> bool {
        for _ in 0..BURST {
            if rings.gate.is_closed() {
                return false;
            }
            let delivery = match self.frames.next() {
                Some(mut frame) => {
                    let delivery = deliver(rings, &mut frame, self.mergeable);
                    if delivery == Delivery::NoRoom {
                        self.frames.put_back(frame);
                    }
                    delivery
                }
                None => {
                    // The tap's own queue is the better place to wait.
                    if !rings.has_buffer(RECEIVE) && !rings.listen(RECEIVE) {
                        return false;
                    }
                    let Some(length) = self.read_tap() else { return false };
                    let frame = &mut self.buffer[..length];
                    let delivery = deliver(rings, frame, self.mergeable);
                    if delivery == Delivery::NoRoom {
                        self.frames.put_back(frame.to_vec());
                    }
                    delivery
                }
            };
            match delivery {
                Delivery::Done => {}
                Delivery::NoRoom => return false,
                Delivery::Dropped => debug!("a frame larger than the guest's buffers was dropped"),
            }
        }
        true
    }

    fn read_tap(&mut self) -> Option<usize> {
        match self.frames.tap().read(&mut self.buffer) {
            Ok(length) => length,
            Err(error) => {
                debug!(tap = self.frames.tap().name(), %error, "the tap cannot be read");
                None
            }
        }
    }

    /// Sends what there is, or until the gate closes; true when it stopped for other work before.
    fn transmit(&mut self, rings: &mut Rings<'_>) -> bool {
        let busy = self.transmit_burst(rings);
        if self.untold.0 >= UNTOLD_FRAMES || self.untold.1 >= UNTOLD_BYTES {
            self.tell_sent(rings);
        }
        busy
    }

    fn transmit_burst(&mut self, rings: &mut Rings<'_>) -> bool {
        for _ in 0..BURST {
            if rings.gate.is_closed() {
                return false;
            }
            let Some(chain) = rings.pop(TRANSMIT) else {
                if rings.listen(TRANSMIT) {
                    continue;
                }
                return false;
            };
            let head = chain.head_index();
            let mut length = 0;
            if let Ok(mut reader) = chain.reader(rings.memory) {
                length = reader.available_bytes();
                self.send(&mut reader, length);
            }
            rings.push(TRANSMIT, head, 0);
            // Also a buffer that held no frame is the driver's again.
            self.untold = (self.untold.0 + 1, self.untold.1.saturating_add(length));
        }
        true
    }

    fn tell_sent(&mut self, rings: &mut Rings<'_>) {
        rings.signal(TRANSMIT);
        self.untold = (0, 0);
    }

    fn send(&mut self, reader: &mut impl Read, length: usize) {
        if !(SHORTEST..=LARGEST).contains(&length) {
            return debug!(length, "the guest sent what is no frame");
        }
        let frame = &mut self.buffer[..length];
        if reader.read_exact(frame).is_ok()
            && let Err(error) = self.frames.tap().write(frame)
        {
            debug!(tap = self.frames.tap().name(), %error, "the tap refused a frame");
        }
    }

    fn control(&mut self, rings: &mut Rings<'_>) {
        loop {
            if control::serve(rings) {
                self.announce = false;
            }
            if rings.gate.is_closed() || !rings.listen(CONTROL) {
                return;
            }
        }
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let mac = bytes.ok().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    let mac = mac.with_context(|| format!("{text:?} is not a MAC address such as 02:00:00:00:00:01"))?;
    ensure!(mac[0] & 1 == 0, "{text} is a multicast address, no device's own");
    Ok(mac)
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        // Room to send a burst in: what finds none waits in the guest's own queue, which drops some of a burst that takes long.
        &[256, 1024, 16]
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let announce = if self.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP | announce).unwrap_or(1);
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn attach(&mut self, poll: &Arc<Epoll>) -> Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, FIRST_TOKEN);
        let tap = self.frames.tap();
        poll.ctl(ControlOperation::Add, tap.as_raw_fd(), event)
            .with_context(|| format!("watch tap {}", tap.name()))
    }

    fn activate(&mut self, features: u64) -> Result<()> {
        self.mergeable = features >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1;
        let offload = OFFLOADS
            .iter()
            .filter(|(feature, _)| features >> feature & 1 == 1)
            .fold(0, |flags, (_, flag)| flags | flag);
        self.frames.tap().set_offload(offload)
    }

    fn reset(&mut self) {
        self.announce = false;
        self.untold = (0, 0);
    }

    fn later(&self) -> Option<Duration> {
        (self.untold.0 > 0).then_some(UNTOLD_TIME)
    }

    fn wake(&mut self, wake: Wake, rings: &mut Rings<'_>) {
        let mut busy = match wake {
            Wake::Queue(RECEIVE) | Wake::Source(_) => self.receive(rings),
            Wake::Queue(TRANSMIT) => self.transmit(rings),
            Wake::Queue(_) => {
                self.control(rings);
                false
            }
            Wake::Late => {
                self.tell_sent(rings);
                false
            }
            Wake::All => true,
        };
        while busy && !rings.gate.is_closed() {
            let sending = self.transmit(rings);
            busy = self.receive(rings) || sending;
            self.control(rings);
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        Ok(postcard::to_stdvec(&NetState { announce: self.announce })?)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let NetState { announce } = postcard::from_bytes(state).context("decode a network device's state")?;
        self.announce = announce;
        Ok(())
    }

    fn moved(&mut self) {
        self.announce = true;
    }

    /// Frames reach the guest before it has announced itself: netd did that.
    fn settle(&mut self) {
        self.changed = self.announce;
    }

    fn owes_interrupt(&self) -> bool {
        self.untold.0 > 0
    }

    fn config_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_checked() {
        assert_eq!(parse_mac("02:00:5e:10:00:ff").unwrap(), [2, 0, 0x5e, 0x10, 0, 0xff]);
        for bad in ["", "02:00", "02:00:00:00:00:00:00", "zz:00:00:00:00:00", "01:00:00:00:00:01"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        assert_eq!(postcard::to_stdvec(&NetState { announce: true }).unwrap(), [1]);
    }
}
