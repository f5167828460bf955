//! The header of a vsock packet (virtio 1.2, section 5.10.6), little-endian, 44 bytes.

use crate::num::low32;

/// The header's length in bytes.
pub const HEADER: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const STREAM: u16 = 1;
/// In `flags` of [`Op::Shutdown`]: the sender receives no more.
pub const NO_RECEIVE: u32 = 1;
/// In `flags` of [`Op::Shutdown`]: the sender sends no more.
pub const NO_SEND: u32 = 2;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opens a stream.
    Request,
    /// Accepts it.
    Response,
    /// Ends or refuses it.
    Reset,
    /// One or both directions end.
    Shutdown,
    /// Carries bytes.
    Data,
    /// Tells credit.
    CreditUpdate,
    /// Asks for credit.
    CreditRequest,
}

const OPS: [(u16, Op); 7] = [
    (1, Op::Request),
    (2, Op::Response),
    (3, Op::Reset),
    (4, Op::Shutdown),
    (5, Op::Data),
    (6, Op::CreditUpdate),
    (7, Op::CreditRequest),
];

/// A header with a known operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes that follow the header.
    pub len: u32,
    /// [`STREAM`] or something else that is refused.
    pub kind: u16,
    /// What it is.
    pub op: Op,
    /// Depends on `op`.
    pub flags: u32,
    /// The sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// Bytes the sender has consumed in all, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Packet {
    /// Reads a header; `None` when the operation is unknown.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let double = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let op = OPS.iter().find(|(code, _)| *code == half(30)).map(|(_, op)| *op)?;
        Some(Self {
            src_cid: double(0),
            dst_cid: double(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        })
    }

    /// Writes a header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let code = OPS.iter().find(|(_, op)| *op == self.op).map_or(0, |(code, _)| *code);
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &code.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The difference of two running counters, modulo 2^32.
#[must_use]
pub fn distance(later: u32, earlier: u32) -> u32 {
    low32(u64::from(later.wrapping_sub(earlier)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_being_written_and_read() {
        let packet = Packet {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1024,
            dst_port: 52,
            len: 7,
            kind: STREAM,
            op: Op::Data,
            flags: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: 99,
        };
        let bytes = packet.to_bytes();
        assert_eq!(bytes[30], 5);
        assert_eq!(Packet::parse(&bytes), Some(packet));
    }

    #[test]
    fn unknown_operations_are_no_packets() {
        let mut bytes = [0; HEADER];
        bytes[30] = 8;
        assert_eq!(Packet::parse(&bytes), None);
    }

    #[test]
    fn counters_wrap() {
        assert_eq!(distance(5, u32::MAX), 6);
    }
}
