//! One stream: its state and its credit. Decides, does no I/O.
//!
//! Credit (virtio 1.2, section 5.10.6.3): each side tells the size of its receive buffer and how much it has consumed in all; the
//! other never has more than that outstanding. Counters are modulo 2^32.

use std::collections::VecDeque;

use super::packet::{NO_RECEIVE, NO_SEND, Packet, distance};

/// Our receive buffer for each stream, in bytes.
pub const BUFFER: u32 = 256 * 1024;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A host client wants to reach the guest; the guest has not answered.
    Requested,
    /// Both sides speak.
    Open,
}

/// One stream.
#[derive(Debug)]
pub struct Connection {
    /// Where it stands.
    pub stage: Stage,
    /// From the guest, not yet taken by the host's socket.
    pub to_host: VecDeque<u8>,
    /// The host's socket said end of file, and the guest was told.
    pub host_ended: bool,
    /// The guest sends no more.
    pub guest_ended: bool,
    /// The guest receives no more.
    pub guest_deaf: bool,
    /// The guest shall be told our credit.
    pub tell_credit: bool,
    peer_buffer: u32,
    peer_consumed: u32,
    sent: u32,
    consumed: u32,
    consumed_told: u32,
}

impl Connection {
    /// A stream whose guest side is not known yet.
    #[must_use]
    pub fn new(stage: Stage) -> Self {
        Self {
            stage,
            to_host: VecDeque::new(),
            host_ended: false,
            guest_ended: false,
            guest_deaf: false,
            tell_credit: false,
            peer_buffer: 0,
            peer_consumed: 0,
            sent: 0,
            consumed: 0,
            consumed_told: 0,
        }
    }

    /// Every packet of the guest carries its credit.
    pub fn hear_credit(&mut self, packet: &Packet) {
        self.peer_buffer = packet.buf_alloc;
        self.peer_consumed = packet.fwd_cnt;
    }

    /// How much the guest may be sent now, in bytes.
    #[must_use]
    pub fn credit(&self) -> usize {
        if self.stage != Stage::Open || self.guest_deaf {
            return 0;
        }
        let outstanding = distance(self.sent, self.peer_consumed);
        crate::num::index(u64::from(self.peer_buffer.saturating_sub(outstanding)))
    }

    /// Bytes went to the guest.
    pub fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes came from the guest; false when it had no credit for them.
    pub fn receive(&mut self, bytes: &[u8]) -> bool {
        let room = crate::num::index(u64::from(BUFFER)).saturating_sub(self.to_host.len());
        if self.stage != Stage::Open || self.guest_ended || bytes.len() > room {
            return false;
        }
        self.to_host.extend(bytes);
        true
    }

    /// The host's socket took bytes.
    pub fn consumed(&mut self, bytes: usize) {
        self.to_host.drain(..bytes.min(self.to_host.len()));
        self.consumed = self.consumed.wrapping_add(u32::try_from(bytes).unwrap_or(0));
        // Tell before the guest runs dry, not after each byte.
        if distance(self.consumed, self.consumed_told) >= BUFFER / 4 {
            self.tell_credit = true;
        }
    }

    /// The guest ends directions.
    pub fn shut_down(&mut self, flags: u32) {
        self.guest_deaf |= flags & NO_RECEIVE != 0;
        self.guest_ended |= flags & NO_SEND != 0;
    }

    /// Nothing more will happen: both directions ended and everything was handed on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.guest_ended && self.to_host.is_empty() && (self.guest_deaf || self.host_ended)
    }

    /// Our credit, for the next packet to the guest.
    pub fn told(&mut self) -> (u32, u32) {
        self.consumed_told = self.consumed;
        self.tell_credit = false;
        (BUFFER, self.consumed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::vsock::packet::{Op, STREAM};

    fn credit(buf_alloc: u32, fwd_cnt: u32) -> Packet {
        Packet {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1,
            dst_port: 2,
            len: 0,
            kind: STREAM,
            op: Op::CreditUpdate,
            flags: 0,
            buf_alloc,
            fwd_cnt,
        }
    }

    #[test]
    fn the_guest_is_never_sent_more_than_its_buffer() {
        let mut connection = Connection::new(Stage::Open);
        connection.hear_credit(&credit(1000, 0));
        connection.sent(900);
        assert_eq!(connection.credit(), 100);
        connection.sent(100);
        assert_eq!(connection.credit(), 0);
        connection.hear_credit(&credit(1000, 600));
        assert_eq!(connection.credit(), 600);
    }

    #[test]
    fn a_guest_that_overruns_our_buffer_is_found_out() {
        let mut connection = Connection::new(Stage::Open);
        assert!(connection.receive(&vec![0; BUFFER as usize]));
        assert!(!connection.receive(&[0]));
    }

    #[test]
    fn credit_is_told_after_a_quarter_of_the_buffer() {
        let mut connection = Connection::new(Stage::Open);
        assert!(connection.receive(&vec![0; BUFFER as usize / 2]));
        connection.consumed(10);
        assert!(!connection.tell_credit);
        connection.consumed(BUFFER as usize / 4);
        assert!(connection.tell_credit);
        assert_eq!(connection.told(), (BUFFER, 10 + BUFFER / 4));
        assert!(!connection.tell_credit);
    }

    #[test]
    fn a_stream_is_over_only_when_everything_was_handed_on() {
        let mut connection = Connection::new(Stage::Open);
        assert!(connection.receive(b"last"));
        connection.shut_down(NO_RECEIVE | NO_SEND);
        assert!(!connection.is_over());
        connection.consumed(4);
        assert!(connection.is_over());
    }
}
