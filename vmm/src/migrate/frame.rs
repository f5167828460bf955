//! The frames of a migration stream: a fixed little-endian header, a *table* that says what the frame means, and *data*.
//!
//! ```text
//!  0  magic  "MSHM"        8  flags           20  epoch            36  sequence on this stream, from 0
//!  4  version              10 stream          28  table length     44  CRC-32 of bytes 0..44 and the table
//!  6  kind                 12 migration       32  data length      48  table, data
//! ```
//!
//! Everything that is interpreted (header and table) is under the CRC; the data, which is raw pages and blocks, is under
//! the AEAD of TLS only, since a second sum over every page would cost as much as the copy. `migration` is the start of the
//! SHA-256 of the migration's id: a frame of another migration is refused.
//!
//! Flag 1: the data is one LZ4 block (pages and blocks only); its content's length follows from the table.
//!
//! Invariants: [`parse`] never panics, never allocates more than its input is long (plus a constant), and accepts only what
//! [`Encoder`] can write. Lengths are capped by kind before anything is read.

mod encode;

use thiserror::Error;

pub use encode::Encoder;

use super::machine::{NetFrame, Section};
use super::region::PAGE_SIZE;

/// The version this code writes. It reads no other yet.
pub const VERSION: u16 = 1;
/// The length of the header.
pub const HEADER: usize = 48;
/// The most bytes of pages or blocks in one frame.
pub const MAX_DATA: usize = 1 << 20;
/// Blocks and pages have the same size.
pub const BLOCK_SIZE: usize = PAGE_SIZE;
/// Parallel streams, control included.
pub const MAX_STREAMS: usize = 9;

const MAGIC: [u8; 4] = *b"MSHM";
const ENTRY: usize = 16;
const FLAG_ZERO: u16 = 1;
const FLAG_PACKED: u16 = 1;
/// The most entries of a page or block table: as many as one frame can carry pages if each is alone, and some for zeros.
pub const MAX_ENTRIES: usize = 1024;
/// The most pages or blocks one zero entry covers (1 GiB).
pub const MAX_ZERO_RUN: u32 = 1 << 18;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More bytes are needed.
    #[error("the frame is cut short: {have} of {need} bytes")]
    Incomplete {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed at least.
        need: usize,
    },
    /// Not our protocol.
    #[error("no migration frame starts here: magic {0:02x?} instead of {MAGIC:02x?}")]
    Magic([u8; 4]),
    /// Another version.
    #[error("frame version {0}; this monitor speaks version {VERSION}")]
    Version(u16),
    /// A kind or flag that is not known.
    #[error("unknown frame kind {kind} or flags {flags:#x}")]
    Kind {
        /// As received.
        kind: u16,
        /// As received.
        flags: u16,
    },
    /// A length above its cap.
    #[error("a {kind:?} frame announces {length} bytes; at most {most} are allowed")]
    TooLong {
        /// The kind.
        kind: Kind,
        /// As announced.
        length: usize,
        /// The cap.
        most: usize,
    },
    /// The sum does not fit.
    #[error("the CRC of a {0:?} frame does not match: the stream is damaged")]
    Crc(Kind),
    /// The table contradicts itself.
    #[error("a {kind:?} frame is malformed: {why}")]
    Malformed {
        /// The kind.
        kind: Kind,
        /// What is wrong.
        why: &'static str,
    },
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal, table $table:expr, data $data:expr;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $value,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            fn from_wire(value: u16) -> Option<Self> {
                match value { $($value => Some(Kind::$name),)* _ => None }
            }

            fn wire(self) -> u16 {
                match self { $(Kind::$name => $value,)* }
            }

            /// The flags that it may carry.
            fn flags(self) -> u16 {
                if matches!(self, Kind::Pages | Kind::Blocks) { FLAG_PACKED } else { 0 }
            }

            /// The longest table and the longest data.
            fn caps(self) -> (usize, usize) {
                match self { $(Kind::$name => ($table, $data),)* }
            }
        }
    };
}

kinds! {
    /// First on each connection, source to destination: JSON, see the handshake.
    Hello = 1, table 256 << 10, data 0;
    /// The destination's answer on the control connection: JSON.
    Welcome = 2, table 4 << 10, data 0;
    /// The destination holds all data streams and waits for the first round.
    Ready = 3, table 0, data 0;
    /// Pages of RAM: entries, then the pages that are not zero.
    Pages = 4, table MAX_ENTRIES * ENTRY, data MAX_DATA;
    /// Blocks of disks: entries, then the blocks that are not zero.
    Blocks = 5, table MAX_ENTRIES * ENTRY, data MAX_DATA;
    /// A round is sent: its number and how many frames each data stream has carried since the start.
    RoundEnd = 6, table 4 + 8 * MAX_STREAMS, data 0;
    /// Destination: a round is applied and its disk blocks are durable.
    RoundDone = 7, table 4, data 0;
    /// Source: the guest is about to be paused.
    Pausing = 8, table 0, data 0;
    /// The device state. The last frame before `Prepared`.
    Sections = 9, table 16 << 20, data 0;
    /// Ethernet frames of the source's taps.
    NetFrames = 10, table 4 << 20, data 0;
    /// Destination: all is loaded, the guest is stopped. Timings as JSON.
    Prepared = 11, table 16 << 10, data 0;
    /// Source: durably handed over. From here on only the destination may run.
    HandedOver = 12, table 0, data 0;
    /// Destination: the vCPUs run. Timings as JSON.
    Running = 13, table 16 << 10, data 0;
    /// Source: no more late frames.
    Bye = 14, table 0, data 0;
    /// Either: gives up, with the reason as text.
    Abort = 15, table 16 << 10, data 0;
    /// Either: still here.
    Alive = 16, table 0, data 0;
}

/// A header whose lengths are within their caps. Not yet checked against its CRC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// 0 for control, data streams from 1.
    pub stream: u16,
    /// The hash of the migration's id.
    pub migration: u64,
    /// The epoch that the machine will run in at the destination.
    pub epoch: u64,
    /// Bytes of table.
    pub table: usize,
    /// Bytes of data on the wire.
    pub data: usize,
    /// The data is one LZ4 block.
    pub packed: bool,
    /// The frame's number on its stream.
    pub sequence: u64,
    crc: u32,
}

/// Pages or blocks that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Pages: the guest page number. Blocks: the block number on the disk.
    pub first: u64,
    /// How many, at least one.
    pub count: u32,
    /// They are zero and carry no data.
    pub zero: bool,
    /// Blocks: the index of the disk. Pages: 0.
    pub disk: u16,
}

/// A frame's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// JSON.
    Hello(Vec<u8>),
    /// JSON.
    Welcome(Vec<u8>),
    /// See [`Kind::Ready`].
    Ready,
    /// The data holds the pages of all entries that are not zero, in order.
    Pages(Vec<Entry>),
    /// As for pages.
    Blocks(Vec<Entry>),
    /// See [`Kind::RoundEnd`].
    RoundEnd {
        /// The round, from 0.
        round: u32,
        /// Frames that each data stream has carried since the start.
        counts: Vec<u64>,
    },
    /// See [`Kind::RoundDone`].
    RoundDone {
        /// The round.
        round: u32,
    },
    /// See [`Kind::Pausing`].
    Pausing,
    /// The device state.
    Sections(Vec<Section>),
    /// Frames for the guest.
    NetFrames(Vec<NetFrame>),
    /// JSON.
    Prepared(Vec<u8>),
    /// See [`Kind::HandedOver`].
    HandedOver,
    /// JSON.
    Running(Vec<u8>),
    /// See [`Kind::Bye`].
    Bye,
    /// Why the other side gives up.
    Abort(String),
    /// See [`Kind::Alive`].
    Alive,
}

/// Parses one whole frame at the start of `bytes`: header, meaning, data, and how many bytes it took.
///
/// # Errors
/// See [`FrameError`]; `Incomplete` when more bytes could make it a frame.
pub fn parse(bytes: &[u8]) -> Result<(Header, Message, &[u8], usize), FrameError> {
    let header = parse_header(bytes)?;
    let end = HEADER + header.table + header.data;
    let incomplete = FrameError::Incomplete { have: bytes.len(), need: end };
    let table = bytes.get(HEADER..HEADER + header.table).ok_or(incomplete.clone())?;
    let message = parse_table(&header, bytes, table)?;
    let data = bytes.get(HEADER + header.table..end).ok_or(incomplete)?;
    Ok((header, message, data, end))
}

/// Parses the header alone, the first [`HEADER`] bytes.
///
/// # Errors
/// See [`FrameError`].
pub fn parse_header(bytes: &[u8]) -> Result<Header, FrameError> {
    let mut fields = Fields(bytes);
    let short = FrameError::Incomplete { have: bytes.len(), need: HEADER };
    if bytes.len() < HEADER {
        return Err(short);
    }
    let magic = fields.take::<4>().ok_or(short.clone())?;
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let version = fields.u16().ok_or(short.clone())?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let (kind, flags) = (fields.u16().ok_or(short.clone())?, fields.u16().ok_or(short.clone())?);
    let packed = flags & FLAG_PACKED != 0;
    let Some(kind) = Kind::from_wire(kind).filter(|kind| flags & !kind.flags() == 0) else {
        return Err(FrameError::Kind { kind, flags });
    };
    let header = Header {
        kind,
        packed,
        stream: fields.u16().ok_or(short.clone())?,
        migration: fields.u64().ok_or(short.clone())?,
        epoch: fields.u64().ok_or(short.clone())?,
        table: fields.length().ok_or(short.clone())?,
        data: fields.length().ok_or(short.clone())?,
        sequence: fields.u64().ok_or(short.clone())?,
        crc: fields.u32().ok_or(short)?,
    };
    let (table, data) = kind.caps();
    for (length, most) in [(header.table, table), (header.data, data)] {
        if length > most {
            return Err(FrameError::TooLong { kind, length, most });
        }
    }
    Ok(header)
}

/// Checks the CRC and parses the table. `raw` starts with the header's bytes.
///
/// # Errors
/// See [`FrameError`].
pub fn parse_table(header: &Header, raw: &[u8], table: &[u8]) -> Result<Message, FrameError> {
    let kind = header.kind;
    if sum(raw.get(..HEADER - 4).unwrap_or_default(), table) != header.crc {
        return Err(FrameError::Crc(kind));
    }
    let malformed = |why| FrameError::Malformed { kind, why };
    let mut fields = Fields(table);
    let message = match kind {
        Kind::Hello => Message::Hello(fields.rest()),
        Kind::Welcome => Message::Welcome(fields.rest()),
        Kind::Ready => Message::Ready,
        Kind::Pages | Kind::Blocks => {
            let entries = entries(&mut fields).map_err(malformed)?;
            let content = content(&entries).ok_or(malformed("its entries are more than fits a frame"))?;
            let fits = if header.packed { header.data < content } else { header.data == content };
            if !fits {
                return Err(malformed("its entries do not fit its data"));
            }
            if kind == Kind::Pages && entries.iter().any(|entry| entry.disk != 0) {
                return Err(malformed("a page names a disk"));
            }
            if kind == Kind::Pages { Message::Pages(entries) } else { Message::Blocks(entries) }
        }
        Kind::RoundEnd => {
            let round = fields.u32().ok_or(malformed("no round"))?;
            let mut counts = Vec::with_capacity(MAX_STREAMS);
            while !fields.0.is_empty() {
                counts.push(fields.u64().ok_or(malformed("half a count"))?);
            }
            Message::RoundEnd { round, counts }
        }
        Kind::RoundDone => Message::RoundDone { round: fields.u32().ok_or(malformed("no round"))? },
        Kind::Pausing => Message::Pausing,
        Kind::Sections => Message::Sections(sections(&mut fields).map_err(malformed)?),
        Kind::NetFrames => Message::NetFrames(net_frames(&mut fields).map_err(malformed)?),
        Kind::Prepared => Message::Prepared(fields.rest()),
        Kind::HandedOver => Message::HandedOver,
        Kind::Running => Message::Running(fields.rest()),
        Kind::Bye => Message::Bye,
        Kind::Abort => Message::Abort(String::from_utf8_lossy(&fields.rest()).into_owned()),
        Kind::Alive => Message::Alive,
    };
    if fields.0.is_empty() { Ok(message) } else { Err(malformed("bytes are left over")) }
}

/// The bytes that the entries' pages or blocks have, unpacked; `None` when that is more than [`MAX_DATA`].
#[must_use]
pub fn content(entries: &[Entry]) -> Option<usize> {
    let counts = entries.iter().filter(|entry| !entry.zero).map(|entry| u64::from(entry.count));
    let bytes = usize::try_from(counts.sum::<u64>()).ok()?.checked_mul(PAGE_SIZE)?;
    (bytes <= MAX_DATA).then_some(bytes)
}

fn entries(fields: &mut Fields<'_>) -> Result<Vec<Entry>, &'static str> {
    let mut entries = Vec::with_capacity(fields.0.len() / ENTRY);
    while !fields.0.is_empty() {
        let cut = "half an entry";
        let first = fields.u64().ok_or(cut)?;
        let count = fields.u32().ok_or(cut)?;
        let (flags, disk) = (fields.u16().ok_or(cut)?, fields.u16().ok_or(cut)?);
        if flags & !FLAG_ZERO != 0 {
            return Err("an entry has unknown flags");
        }
        let zero = flags & FLAG_ZERO != 0;
        if count == 0 || count > MAX_ZERO_RUN || first.checked_add(u64::from(count)).is_none() {
            return Err("an entry's count is 0 or too high");
        }
        entries.push(Entry { first, count, zero, disk });
    }
    if entries.is_empty() { Err("it has no entry") } else { Ok(entries) }
}

fn sections(fields: &mut Fields<'_>) -> Result<Vec<Section>, &'static str> {
    let mut sections = Vec::new();
    while !fields.0.is_empty() {
        let cut = "half a section";
        let (kind, version) = (fields.u16().ok_or(cut)?, fields.u16().ok_or(cut)?);
        let length = fields.length().ok_or(cut)?;
        let bytes = fields.slice(length).ok_or("a section is longer than its frame")?.to_vec();
        sections.push(Section { kind, version, bytes });
    }
    Ok(sections)
}

fn net_frames(fields: &mut Fields<'_>) -> Result<Vec<NetFrame>, &'static str> {
    let mut frames = Vec::new();
    while !fields.0.is_empty() {
        let cut = "half a network frame";
        let device = fields.u16().ok_or(cut)?;
        let length = fields.length().ok_or(cut)?;
        let bytes = fields.slice(length).ok_or("a network frame is longer than its frame")?.to_vec();
        frames.push(NetFrame { device, bytes });
    }
    Ok(frames)
}

fn sum(header: &[u8], table: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(table);
    hasher.finalize()
}

/// Reads little-endian fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Option<usize> {
        self.u32().and_then(|length| usize::try_from(length).ok())
    }
}

/// Restores the content of a packed frame: `content.len()` bytes, no more and no less.
///
/// # Errors
/// When `data` is not the compressed form of so many bytes.
pub fn unpack(kind: Kind, data: &[u8], content: &mut [u8]) -> Result<(), FrameError> {
    match lz4_flex::block::decompress_into(data, content) {
        Ok(length) if length == content.len() => Ok(()),
        _ => Err(FrameError::Malformed {
            kind,
            why: "its data does not unpack to the pages or blocks it announces",
        }),
    }
}
