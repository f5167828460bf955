//! An answer as bytes, written once from front to back.
//!
//! Names that end as the question's does are compressed by pointing into it, which is nearly all of them; nothing else is
//! compressed. A section that does not fit is undone as a whole.

use crate::kind;
use crate::name::{Labels, Path};
use crate::query::{CLASS_CH, HEADER, option};

/// Where a section's count is in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// What was asked for.
    Answer = 6,
    /// Who says so, or why there is nothing.
    Authority = 8,
    /// What is asked for next.
    Additional = 10,
}

/// It does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A place to go back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    length: usize,
    header: [u8; HEADER],
}

/// A reply being written.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    question: Path<'a>,
    limit: usize,
}

impl<'a> Writer<'a> {
    /// Begins with the header and the question; `question` is the lower-case name that is in it.
    pub fn begin(
        out: &'a mut Vec<u8>,
        id: [u8; 2],
        flags: [u8; 2],
        raw_question: &[u8],
        question: Path<'a>,
        limit: usize,
    ) -> Self {
        out.clear();
        out.extend_from_slice(&id);
        // A response, not truncated, recursion not available; the operation and "recursion desired" come back.
        out.extend_from_slice(&[0x80 | flags[0] & 0x79, 0]);
        out.extend_from_slice(&[0, u8::from(!raw_question.is_empty()), 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(raw_question);
        Self { out, question, limit }
    }

    /// So many bytes less may be written: what comes last is to fit, too.
    pub fn reserve(&mut self, bytes: usize) {
        self.limit = self.limit.saturating_sub(bytes);
    }

    /// What was reserved may be written now.
    pub fn release(&mut self, bytes: usize) {
        self.limit = self.limit.saturating_add(bytes);
    }

    /// How long it is, bytes.
    pub fn length(&self) -> usize {
        self.out.len()
    }

    /// The answer is authoritative, or not.
    pub fn set_authoritative(&mut self, is: bool) {
        self.set_flag(0x04, is);
    }

    /// Not all is said.
    pub fn set_truncated(&mut self) {
        self.set_flag(0x02, true);
    }

    /// The low four bits of the response code.
    pub fn set_rcode(&mut self, code: u16) {
        let [_, low] = code.to_be_bytes();
        if let Some(byte) = self.out.get_mut(3) {
            *byte = *byte & 0xf0 | low & 0x0f;
        }
    }

    fn set_flag(&mut self, flag: u8, is: bool) {
        if let Some(byte) = self.out.get_mut(2) {
            *byte = if is { *byte | flag } else { *byte & !flag };
        }
    }

    /// Here one can come back to.
    pub fn mark(&self) -> Mark {
        let mut header = [0; HEADER];
        header.copy_from_slice(self.out.get(..HEADER).unwrap_or(&[0; HEADER]));
        Mark { length: self.out.len(), header }
    }

    /// Takes back what was written since.
    pub fn back_to(&mut self, mark: Mark) {
        self.out.truncate(mark.length);
        if let Some(header) = self.out.get_mut(..HEADER) {
            header.copy_from_slice(&mark.header);
        }
    }

    /// Takes back everything but the header and a question of that length.
    pub fn back_to_question(&mut self, length: usize) {
        self.out.truncate(HEADER + length);
        if let Some(counts) = self.out.get_mut(Section::Answer as usize..HEADER) {
            counts.fill(0);
        }
        self.set_authoritative(false);
    }

    /// A text about the server itself, in Chaosnet's class.
    ///
    /// # Errors
    /// [`Full`].
    pub fn chaos_text(&mut self, owner: &[u8], data: &[u8]) -> Result<(), Full> {
        self.name(owner);
        self.out.extend_from_slice(&kind::TXT.to_be_bytes());
        self.out.extend_from_slice(&CLASS_CH.to_be_bytes());
        self.out.extend_from_slice(&0u32.to_be_bytes());
        self.out.extend_from_slice(&u16::try_from(data.len()).map_err(|_| Full)?.to_be_bytes());
        self.out.extend_from_slice(data);
        self.count(Section::Answer)?;
        if self.out.len() > self.limit { Err(Full) } else { Ok(()) }
    }

    /// One record.
    ///
    /// # Errors
    /// [`Full`]; what was written of it is to be taken back by the caller.
    pub fn record(
        &mut self,
        section: Section,
        owner: &[u8],
        kind: u16,
        ttl: u32,
        data: &[u8],
    ) -> Result<(), Full> {
        self.name(owner);
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&1u16.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        self.data(kind, data);
        let length = u16::try_from(self.out.len() - at - 2).map_err(|_| Full)?;
        if let Some(place) = self.out.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self.count(section)?;
        if self.out.len() > self.limit { Err(Full) } else { Ok(()) }
    }

    /// The OPT record (RFC 6891 §6.1.2) with options already encoded.
    pub fn opt(&mut self, payload: u16, code: u16, dnssec_ok: bool, options: &[u8]) {
        let [extended, _] = (code << 4).to_be_bytes();
        let [high, low] = kind::OPT.to_be_bytes();
        self.out.extend_from_slice(&[0, high, low]);
        self.out.extend_from_slice(&payload.to_be_bytes());
        self.out.extend_from_slice(&[extended, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
        let length = u16::try_from(options.len()).unwrap_or(0);
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.extend_from_slice(options);
        let _fits_sixteen_bits = self.count(Section::Additional);
    }

    fn count(&mut self, section: Section) -> Result<(), Full> {
        let at = section as usize;
        let place = self.out.get_mut(at..at + 2).ok_or(Full)?;
        let count = place.iter().fold(0u16, |sum, byte| sum << 8 | u16::from(*byte));
        place.copy_from_slice(&count.checked_add(1).ok_or(Full)?.to_be_bytes());
        Ok(())
    }

    /// Data, in which the names of the types of RFC 1035 may be compressed and all others may not (RFC 3597 §4).
    fn data(&mut self, kind: u16, data: &[u8]) {
        let rest = match kind {
            kind::NS | kind::CNAME | kind::PTR => self.name(data),
            kind::SOA => {
                let second = data.get(self.name(data)..).unwrap_or_default();
                data.len() - second.len() + self.name(second)
            }
            kind::MX => {
                self.out.extend_from_slice(data.get(..2).unwrap_or_default());
                2 + self.name(data.get(2..).unwrap_or_default())
            }
            _ => 0,
        };
        self.out.extend_from_slice(data.get(rest..).unwrap_or_default());
    }

    /// The name that `wire` begins with; returns how long that is.
    fn name(&mut self, wire: &[u8]) -> usize {
        let (mut labels, mut length) = (0, 1);
        for label in Labels::of(wire) {
            labels += 1;
            length += label.len() + 1;
        }
        let wire = wire.get(..length).unwrap_or_default();
        let mut rest = wire;
        while labels > 0 {
            if labels <= self.question.labels() && self.question.suffix(labels) == rest {
                let at = HEADER + self.question.wire().len() - rest.len();
                // At most 12 + 255: fourteen bits are enough.
                let [high, low] = u16::try_from(at).unwrap_or(0).to_be_bytes();
                self.out.extend_from_slice(&[0xc0 | high, low]);
                return length;
            }
            let step = rest.first().map_or(1, |first| usize::from(*first) + 1);
            let (label, tail) = rest.split_at_checked(step).unwrap_or((rest, &[]));
            self.out.extend_from_slice(label);
            rest = tail;
            labels -= 1;
        }
        self.out.push(0);
        length
    }
}

/// Adds an option to those of an OPT.
pub fn put_option(options: &mut Vec<u8>, code: u16, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let Ok(length) = u16::try_from(length) else { return };
    options.extend_from_slice(&code.to_be_bytes());
    options.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| options.extend_from_slice(part));
}

/// Padding so that a message of `length` bytes, this option included, ends on a multiple of `block` (RFC 8467 §4.1).
pub fn put_padding(options: &mut Vec<u8>, length: usize, block: usize) {
    let missing = (length + 4).next_multiple_of(block) - (length + 4);
    put_option(options, option::PADDING, &[&vec![0; missing]]);
}
