//! The vsock device on its queues: guest receives (0), guest sends (1), events to the guest (2).

use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tracing::debug;
use vmm_sys_util::epoll::Epoll;

use super::mux::Mux;
use super::packet::{HEADER, Packet};
use crate::api::VsockSpec;
use crate::virtio::{Rings, VirtioDevice, Wake, read_from};

const DEVICE_ID: u32 = 19;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// The most bytes of one packet (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` of Linux).
const LARGEST: usize = 64 * 1024;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;

/// The device's own saved state: streams do not survive, an event not yet delivered does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VsockState {
    cid: u32,
    reset_due: bool,
}

/// The device.
pub struct Vsock {
    cid: u32,
    mux: Mux,
    /// The guest must be told that all streams are gone.
    reset_due: bool,
    /// It may be told without anybody's asking.
    settled: bool,
    buffer: Vec<u8>,
}

impl Vsock {
    /// Listens on the spec's socket.
    ///
    /// # Errors
    /// When the context id is reserved or the socket cannot be had.
    pub fn new(spec: &VsockSpec) -> Result<Self> {
        ensure!(
            (3..u32::MAX).contains(&spec.cid),
            "vsock context id {}: 3 and higher are a guest's, {} is reserved",
            spec.cid,
            u32::MAX
        );
        let mux = Mux::new(spec.cid, spec.socket.clone())?;
        Ok(Self { cid: spec.cid, mux, reset_due: false, settled: true, buffer: vec![0; LARGEST] })
    }

    /// The guest's packets.
    fn transmit(&mut self, rings: &mut Rings<'_>) {
        loop {
            while !rings.gate.is_closed() {
                let Some(chain) = rings.pop(TRANSMIT) else { break };
                let head = chain.head_index();
                if let Ok(mut reader) = chain.reader(rings.memory) {
                    self.hear(&mut reader);
                }
                rings.push(TRANSMIT, head, 0);
            }
            rings.signal(TRANSMIT);
            if rings.gate.is_closed() || !rings.listen(TRANSMIT) {
                return;
            }
        }
    }

    fn hear(&mut self, reader: &mut impl Read) {
        let mut header = [0; HEADER];
        if reader.read_exact(&mut header).is_err() {
            return;
        }
        let Some(packet) = Packet::parse(&header) else { return };
        let Some(bytes) = self.buffer.get_mut(..crate::num::index(u64::from(packet.len))) else {
            return debug!(len = packet.len, "a vsock packet larger than any may be");
        };
        if reader.read_exact(bytes).is_ok() {
            self.mux.hear(&packet, bytes);
        }
    }

    /// Packets for the guest, as long as there are some and it has buffers.
    fn receive(&mut self, rings: &mut Rings<'_>) {
        while !rings.gate.is_closed() && self.mux.has_next() {
            let Some(chain) = rings.pop(RECEIVE) else {
                if rings.listen(RECEIVE) {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match chain.writer(rings.memory) {
                Ok(mut writer) => {
                    let room = writer.available_bytes().saturating_sub(HEADER).min(LARGEST);
                    self.fill(&mut writer, room)
                }
                Err(_) => Some(0),
            };
            match written {
                Some(written) => rings.push(RECEIVE, head, written),
                None => {
                    rings.unpop(RECEIVE);
                    break;
                }
            }
        }
        rings.signal(RECEIVE);
    }

    /// One packet into one buffer; `None` when there was none after all.
    fn fill(&mut self, writer: &mut impl Write, room: usize) -> Option<u32> {
        let packet = self.mux.next(&mut self.buffer[..room])?;
        let bytes = &self.buffer[..crate::num::index(u64::from(packet.len))];
        if writer.write_all(&packet.to_bytes()).is_err() || writer.write_all(bytes).is_err() {
            return Some(0);
        }
        u32::try_from(HEADER + bytes.len()).ok()
    }

    fn tell_reset(&mut self, rings: &mut Rings<'_>) {
        if !self.reset_due {
            return;
        }
        let Some(chain) = rings.pop(EVENT) else {
            rings.listen(EVENT);
            return;
        };
        let head = chain.head_index();
        let event = TRANSPORT_RESET.to_le_bytes();
        let sent = chain.writer(rings.memory).is_ok_and(|mut writer| writer.write_all(&event).is_ok());
        rings.push(EVENT, head, if sent { 4 } else { 0 });
        rings.signal(EVENT);
        self.reset_due = false;
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 16]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_from(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn attach(&mut self, poll: &Arc<Epoll>) -> Result<()> {
        self.mux.attach(poll)
    }

    fn activate(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn reset(&mut self) {
        self.mux.reset();
        self.reset_due = false;
    }

    fn wake(&mut self, wake: Wake, rings: &mut Rings<'_>) {
        match wake {
            Wake::Source(token) => self.mux.ready(token),
            Wake::All => self.mux.look_at_all(),
            Wake::Queue(_) | Wake::Late => {}
        }
        // Streams of the guest's former life come to an end before new ones begin; while nobody begins one, that can wait.
        if self.settled || self.mux.has_next() || rings.has_buffer(TRANSMIT) {
            self.tell_reset(rings);
        }
        self.transmit(rings);
        self.receive(rings);
    }

    fn save(&self) -> Result<Vec<u8>> {
        Ok(postcard::to_stdvec(&VsockState { cid: self.cid, reset_due: self.reset_due })?)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: VsockState = postcard::from_bytes(state).context("decode a vsock device's state")?;
        ensure!(
            state.cid == self.cid,
            "the machine's vsock context id is {}, this instance's {}",
            state.cid,
            self.cid
        );
        self.reset_due = state.reset_due;
        Ok(())
    }

    fn moved(&mut self) {
        self.mux.reset();
        self.reset_due = true;
        self.settled = false;
    }

    fn settle(&mut self) {
        self.settled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let state = VsockState { cid: 300, reset_due: true };
        assert_eq!(postcard::to_stdvec(&state).unwrap(), [0xac, 2, 1]);
    }
}
