//! The writing half of the codec.

use super::{Entry, FLAG_PACKED, FrameError, HEADER, Kind, MAGIC, Message, VERSION, sum};

/// Writes the frames of one direction of one stream.
#[derive(Clone, Debug)]
pub struct Encoder {
    stream: u16,
    migration: u64,
    epoch: u64,
    sequence: u64,
    packing: bool,
    packed: Vec<u8>,
}

impl Encoder {
    /// For one stream of one migration.
    #[must_use]
    pub fn new(stream: u16, migration: u64, epoch: u64) -> Self {
        Self { stream, migration, epoch, sequence: 0, packing: false, packed: Vec::new() }
    }

    /// Whether [`Encoder::encode_with`] compresses from now on, where that makes it shorter.
    pub fn pack(&mut self, packing: bool) {
        self.packing = packing;
    }

    /// Appends a frame to `out`; the message's data is `data`.
    ///
    /// # Errors
    /// When it would not be accepted by [`parse`]: too long, or entries that contradict the data.
    pub fn encode(&mut self, out: &mut Vec<u8>, message: &Message, data: &[u8]) -> Result<(), FrameError> {
        let start = self.begin(out);
        let kind = put_table(out, message);
        let table = out.len() - start - HEADER;
        out.extend_from_slice(data);
        self.finish(out, start, (kind, 0), table)
    }

    /// Appends a frame of pages or blocks whose data `fill` appends itself, sparing a copy.
    ///
    /// # Errors
    /// As [`Encoder::encode`], and those of `fill`.
    pub fn encode_with<E: From<FrameError>>(
        &mut self,
        out: &mut Vec<u8>,
        message: &Message,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.begin(out);
        let kind = put_table(out, message);
        let table = out.len() - start - HEADER;
        fill(out)?;
        let flags = if self.packing && self.pack_data(out, start + HEADER + table) { FLAG_PACKED } else { 0 };
        Ok(self.finish(out, start, (kind, flags), table)?)
    }

    /// Replaces what `out` holds from `start` on by its compressed form; leaves it where that gains less than an eighth.
    fn pack_data(&mut self, out: &mut Vec<u8>, start: usize) -> bool {
        let content = out.get(start..).unwrap_or_default();
        let most = lz4_flex::block::get_maximum_output_size(content.len());
        self.packed.resize(self.packed.len().max(most), 0);
        let Ok(length) = lz4_flex::block::compress_into(content, &mut self.packed) else { return false };
        if length >= content.len() - content.len() / 8 {
            return false;
        }
        out.truncate(start);
        out.extend_from_slice(self.packed.get(..length).unwrap_or_default());
        true
    }

    fn begin(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        start
    }

    fn finish(
        &mut self,
        out: &mut [u8],
        start: usize,
        (kind, flags): (Kind, u16),
        table: usize,
    ) -> Result<(), FrameError> {
        let (most_table, most_data) = kind.caps();
        let data = out.len() - start - HEADER - table;
        for (length, most) in [(table, most_table), (data, most_data)] {
            if length > most {
                return Err(FrameError::TooLong { kind, length, most });
            }
        }
        let wire = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&kind.wire().to_le_bytes());
        header.extend_from_slice(&flags.to_le_bytes());
        header.extend_from_slice(&self.stream.to_le_bytes());
        header.extend_from_slice(&self.migration.to_le_bytes());
        header.extend_from_slice(&self.epoch.to_le_bytes());
        header.extend_from_slice(&wire(table));
        header.extend_from_slice(&wire(data));
        header.extend_from_slice(&self.sequence.to_le_bytes());
        let crc = sum(&header, out.get(start + HEADER..start + HEADER + table).unwrap_or_default());
        header.extend_from_slice(&crc.to_le_bytes());
        if let Some(place) = out.get_mut(start..start + HEADER) {
            place.copy_from_slice(&header);
        }
        self.sequence += 1;
        Ok(())
    }
}

/// Appends the table and says which kind it is of.
fn put_table(out: &mut Vec<u8>, message: &Message) -> Kind {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    match message {
        Message::Hello(json) => put(out, json, Kind::Hello),
        Message::Welcome(json) => put(out, json, Kind::Welcome),
        Message::Ready => Kind::Ready,
        Message::Pages(entries) => put_entries(out, entries, Kind::Pages),
        Message::Blocks(entries) => put_entries(out, entries, Kind::Blocks),
        Message::RoundEnd { round, counts } => {
            out.extend_from_slice(&round.to_le_bytes());
            counts.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
            Kind::RoundEnd
        }
        Message::RoundDone { round } => put(out, &round.to_le_bytes(), Kind::RoundDone),
        Message::Pausing => Kind::Pausing,
        Message::Sections(sections) => {
            for section in sections {
                out.extend_from_slice(&section.kind.to_le_bytes());
                out.extend_from_slice(&section.version.to_le_bytes());
                out.extend_from_slice(&length(&section.bytes));
                out.extend_from_slice(&section.bytes);
            }
            Kind::Sections
        }
        Message::NetFrames(frames) => {
            for frame in frames {
                out.extend_from_slice(&frame.device.to_le_bytes());
                out.extend_from_slice(&length(&frame.bytes));
                out.extend_from_slice(&frame.bytes);
            }
            Kind::NetFrames
        }
        Message::Prepared(json) => put(out, json, Kind::Prepared),
        Message::HandedOver => Kind::HandedOver,
        Message::Running(json) => put(out, json, Kind::Running),
        Message::Bye => Kind::Bye,
        Message::Abort(text) => put(out, text.as_bytes(), Kind::Abort),
        Message::Alive => Kind::Alive,
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8], kind: Kind) -> Kind {
    out.extend_from_slice(bytes);
    kind
}

fn put_entries(out: &mut Vec<u8>, entries: &[Entry], kind: Kind) -> Kind {
    for entry in entries {
        out.extend_from_slice(&entry.first.to_le_bytes());
        out.extend_from_slice(&entry.count.to_le_bytes());
        out.extend_from_slice(&u16::from(entry.zero).to_le_bytes());
        out.extend_from_slice(&entry.disk.to_le_bytes());
    }
    kind
}
