//! A message taken apart: where each record is and what it says, for what is more than a question (transfers, updates, signed messages).
//!
//! Nothing is copied but names, and nothing is allocated on the sender's word: a count that the bytes do not bear out is an error, and no
//! message has more than [`MOST_RECORDS`] records.

use std::ops::Range;

/// More records than any request has a use for.
pub const MOST_RECORDS: usize = 512;

/// The header's length.
pub const HEADER: usize = 12;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is malformed at byte {0}")]
pub struct Malformed(pub usize);

/// The fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The id.
    pub id: u16,
    /// Flags, opcode and response code.
    pub flags: u16,
    /// Questions, answers, authorities, additionals; in an update zones, prerequisites, updates, additionals.
    pub counts: [u16; 4],
}

impl Header {
    /// It answers something.
    pub fn is_response(self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// 0 a question, 4 NOTIFY, 5 UPDATE.
    pub fn opcode(self) -> u8 {
        u8::try_from(self.flags >> 11 & 0xf).unwrap_or(0)
    }

    /// The response code, without what EDNS adds.
    pub fn rcode(self) -> u8 {
        u8::try_from(self.flags & 0xf).unwrap_or(0)
    }

    /// Reads it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word =
            |at: usize| bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_be_bytes);
        Some(Self { id: word(0)?, flags: word(2)?, counts: [word(4)?, word(6)?, word(8)?, word(10)?] })
    }
}

/// A question; in an update the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name in wire form, lower case.
    pub name: Vec<u8>,
    /// The type.
    pub kind: u16,
    /// The class.
    pub class: u16,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub at: usize,
    /// Its name in wire form, lower case.
    pub name: Vec<u8>,
    /// The type.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// Seconds.
    pub ttl: u32,
    /// Where its data are.
    pub data: Range<usize>,
}

/// A message.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// The fixed part.
    pub header: Header,
    /// The first section.
    pub questions: Vec<Question>,
    /// Where it ends.
    pub questions_end: usize,
    /// The other sections.
    pub sections: [Vec<Record>; 3],
}

impl<'a> Message<'a> {
    /// Takes a message apart. Bytes behind the last record are an error too.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::read(bytes).ok_or(Malformed(0))?;
        let total: usize = header.counts.iter().map(|count| usize::from(*count)).sum();
        if total > MOST_RECORDS {
            return Err(Malformed(4));
        }
        let mut cursor = Cursor { bytes, at: HEADER };
        let mut questions = Vec::new();
        for _ in 0..header.counts[0] {
            questions.push(Question { name: cursor.name()?, kind: cursor.u16()?, class: cursor.u16()? });
        }
        let questions_end = cursor.at;
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, count) in sections.iter_mut().zip(header.counts.into_iter().skip(1)) {
            for _ in 0..count {
                section.push(cursor.record()?);
            }
        }
        if cursor.at != bytes.len() {
            return Err(Malformed(cursor.at));
        }
        Ok(Self { bytes, header, questions, questions_end, sections })
    }

    /// The data of a record of this message.
    pub fn data(&self, record: &Record) -> &'a [u8] {
        self.bytes.get(record.data.clone()).unwrap_or_default()
    }

    /// The serial of a record that is an SOA: behind two names, which may be compressed.
    pub fn serial(&self, record: &Record) -> Option<u32> {
        let mut cursor = Cursor { bytes: self.bytes.get(..record.data.end)?, at: record.data.start };
        cursor.name().ok()?;
        cursor.name().ok()?;
        cursor.u32().ok()
    }

    /// A response to it: the header with this code, and the first section as it came.
    pub fn reply(&self, rcode: u8, authoritative: bool) -> Vec<u8> {
        let echoed = self.bytes.get(HEADER..self.questions_end).unwrap_or_default();
        response(self.header, rcode, authoritative, self.header.counts[0], echoed)
    }
}

/// A response to a message of which no more is known than its header.
pub fn bare_reply(header: Header, rcode: u8) -> Vec<u8> {
    response(header, rcode, false, 0, &[])
}

fn response(header: Header, rcode: u8, authoritative: bool, questions: u16, echoed: &[u8]) -> Vec<u8> {
    // QR, the opcode and RD as they came, AA.
    let aa = if authoritative { 0x0400 } else { 0 };
    let flags = 0x8000 | header.flags & 0x7900 | aa | u16::from(rcode & 0xf);
    let mut bytes = Vec::with_capacity(512);
    for word in [header.id, flags, questions, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(echoed);
    bytes
}

/// Adds one to a count of the header: 0 questions, 1 answers, 2 authorities, 3 additionals.
pub fn count_one(message: &mut [u8], section: usize) {
    let at = 4 + 2 * section;
    if let Some(two) = message.get_mut(at..at + 2) {
        let count = u16::from_be_bytes([two[0], two[1]]);
        two.copy_from_slice(&count.saturating_add(1).to_be_bytes());
    }
}

/// Appends a record whose name is written in full. False, and nothing appended, when the data cannot be in a record.
pub fn put_record(out: &mut Vec<u8>, name: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> bool {
    let Ok(length) = u16::try_from(data.len()) else { return false };
    out.extend(name);
    out.extend(kind.to_be_bytes());
    out.extend(class.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(data);
    true
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Malformed(self.at))?;
        self.at += length;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let at = self.at;
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| Malformed(at))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let at = self.at;
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed(at))
    }

    /// A name, compressed or not, in lower case (RFC 1035 §4.1.4). Each pointer leads to before the part it was found in, so there is
    /// no loop.
    fn name(&mut self) -> Result<Vec<u8>, Malformed> {
        let mut name = Vec::new();
        let (mut at, mut limit, mut end) = (self.at, self.at, None);
        loop {
            let length = *self.bytes.get(at).ok_or(Malformed(at))?;
            match length {
                0 => {
                    name.push(0);
                    self.at = end.unwrap_or(at + 1);
                    return Ok(name);
                }
                1..=63 => {
                    let label = self.bytes.get(at..at + 1 + usize::from(length)).ok_or(Malformed(at))?;
                    if name.len() + label.len() > 254 {
                        return Err(Malformed(at));
                    }
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    at += label.len();
                }
                0xc0.. => {
                    let low = *self.bytes.get(at + 1).ok_or(Malformed(at))?;
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    if target >= limit || target < HEADER {
                        return Err(Malformed(at));
                    }
                    end.get_or_insert(at + 2);
                    (at, limit) = (target, target);
                }
                64..0xc0 => return Err(Malformed(at)),
            }
        }
    }

    fn record(&mut self) -> Result<Record, Malformed> {
        let at = self.at;
        let (name, kind, class) = (self.name()?, self.u16()?, self.u16()?);
        let (ttl, length) = (self.u32()?, usize::from(self.u16()?));
        let begin = self.at;
        self.take(length)?;
        Ok(Record { at, name, kind, class, ttl, data: begin..self.at })
    }
}

/// A name in wire form as text, for logs.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first() {
        let Some((label, tail)) = tail.split_at_checked(usize::from(length)) else { break };
        if length == 0 {
            break;
        }
        text.push_str(&label.escape_ascii().to_string());
        text.push('.');
        rest = tail;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_name(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend([0, 6, 0, 1]);
        bytes
    }

    #[test]
    fn a_question_is_read_and_answered_with_itself() {
        let bytes = with_name(b"\x03WwW\x04test\x00");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.questions[0].name, b"\x03www\x04test\x00");
        let reply = message.reply(5, false);
        assert_eq!(reply[2..4], [0x80, 5]);
        assert_eq!(reply[12..], bytes[12..]);
        assert_eq!(shown(&message.questions[0].name), "www.test.");
    }

    #[test]
    fn pointers_go_back_and_only_back() {
        for bad in [
            &b"\xc0\x0c"[..],
            b"\xc0\x0d\x00",
            b"\xc0\xff",
            b"\x01a\xc0\x0c",
            b"\xc0\x00",
            b"\x40a",
            b"\x80\x01",
            b"\x05ab",
            b"",
        ] {
            assert!(Message::parse(&with_name(bad)).is_err(), "{bad:?}");
        }
        let long: Vec<u8> = (0..5).flat_map(|_| [&[63][..], &[b'a'; 63]].concat()).chain([0]).collect();
        assert!(Message::parse(&with_name(&long)).is_err());
        let mut bytes = with_name(b"\x04test\x00");
        bytes[7] = 1;
        bytes.extend(b"\x03www\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x3c\x00\x02\x01x");
        let message = Message::parse(&bytes).unwrap();
        let record = &message.sections[0][0];
        assert_eq!(record.name, b"\x03www\x04test\x00");
        assert_eq!((record.kind, record.class, record.ttl, message.data(record)), (16, 1, 60, &b"\x01x"[..]));
    }

    #[test]
    fn counts_are_not_believed() {
        let mut bytes = with_name(b"\x00");
        bytes[6..12].fill(0xff);
        assert!(Message::parse(&bytes).is_err());
        bytes[6..12].fill(0);
        bytes[5] = 2;
        assert!(Message::parse(&bytes).is_err());
        bytes[5] = 1;
        bytes.push(0);
        assert!(Message::parse(&bytes).is_err(), "a byte too many");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::parse(&bytes) {
                for record in message.sections.iter().flatten() {
                    let _ = message.serial(record);
                    let _ = shown(&record.name);
                }
                let _ = message.reply(0, true);
            }
        }
    }
}
