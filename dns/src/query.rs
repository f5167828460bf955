//! A question as bytes, read without allocating anything: what a stranger sends costs no more than looking at it.
//!
//! Invariants: nothing is believed before it is checked against the packet's length; a compressed name is never followed,
//! only skipped; the question's name is kept in the letter case it came in, and in lower case to look it up.

use crate::kind;
use crate::name::{MAX_LABEL, MAX_NAME};

/// Length of a message's header.
pub const HEADER: usize = 12;

/// Numbers of response codes (RFC 1035 §4.1.1, RFC 2136, RFC 6891, RFC 7873).
pub mod rcode {
    #![allow(missing_docs)]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// Numbers of operations.
pub mod opcode {
    #![allow(missing_docs)]
    pub const QUERY: u8 = 0;
    pub const NOTIFY: u8 = 4;
    pub const UPDATE: u8 = 5;
}

/// The Internet's class.
pub const CLASS_IN: u16 = 1;

/// Chaosnet's, in which name servers are asked about themselves.
pub const CLASS_CH: u16 = 3;

/// A message that asks one thing.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// The packet.
    pub packet: &'a [u8],
    /// The question's name in lower case.
    name: [u8; MAX_NAME],
    name_length: usize,
    /// The type asked for.
    pub kind: u16,
    /// The class asked in.
    pub class: u16,
    /// EDNS, where the client speaks it.
    pub edns: Option<Edns<'a>>,
    /// Where a TSIG record begins: the message is signed.
    pub tsig_at: Option<usize>,
}

/// What the client says of itself (RFC 6891).
#[derive(Debug, Clone, Default)]
pub struct Edns<'a> {
    /// The largest answer it takes over UDP.
    pub payload: u16,
    /// The version; we know 0.
    pub version: u8,
    /// It wants signatures.
    pub dnssec_ok: bool,
    /// It takes NXDOMAIN together with a compact denial (RFC 9824 §5).
    pub compact_ok: bool,
    /// A cookie: 8 bytes of the client's own, then what a server gave it (RFC 7873).
    pub cookie: Option<&'a [u8]>,
    /// It asks which server this is (RFC 5001).
    pub wants_nsid: bool,
    /// It asks how long a connection may rest (RFC 7828).
    pub wants_keepalive: bool,
    /// It pads, so answers are to be padded (RFC 7830).
    pub is_padded: bool,
}

/// What is to be done with a packet.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// No header, or not a question: no answer at all, or two servers could answer each other for ever.
    Silence,
    /// Answered by this code alone.
    Reject(u16),
    /// Another operation than a question.
    Operation(u8),
    /// No question but a cookie to be renewed (RFC 7873 §5.4).
    CookieOnly(Edns<'a>),
    /// A question.
    Query(Box<Query<'a>>),
}

/// The header's fields that are looked at before anything else.
pub fn id_and_flags(packet: &[u8]) -> Option<([u8; 2], [u8; 2])> {
    match packet.get(..HEADER)? {
        [a, b, c, d, ..] => Some(([*a, *b], [*c, *d])),
        _ => None,
    }
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Parsed<'_> {
    let Some((_, flags)) = id_and_flags(packet) else { return Parsed::Silence };
    if flags[0] & 0x80 != 0 {
        return Parsed::Silence;
    }
    let operation = flags[0] >> 3 & 0xf;
    if operation != opcode::QUERY {
        return Parsed::Operation(operation);
    }
    read(packet).unwrap_or(Parsed::Reject(rcode::FORMERR))
}

/// `None` where the message is malformed.
fn read(packet: &[u8]) -> Option<Parsed<'_>> {
    let mut cursor = Cursor { packet, at: 4 };
    let [questions, answers, authorities, additionals] =
        [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
    // Decided on the counts alone, before work is done on the sender's word. IXFR has an SOA in the authority section.
    if questions > 1 || answers != 0 || authorities > 1 || additionals > 4 {
        return None;
    }
    let mut query =
        Query { packet, name: [0; MAX_NAME], name_length: 0, kind: 0, class: 0, edns: None, tsig_at: None };
    if questions == 1 {
        query.name_length = cursor.question_name(&mut query.name)?;
        query.kind = cursor.u16()?;
        query.class = cursor.u16()?;
    }
    for _ in 0..authorities {
        cursor.record()?;
    }
    for left in (0..additionals).rev() {
        let at = cursor.at;
        let record = cursor.record()?;
        match record.kind {
            kind::OPT if query.edns.is_some() || !record.at_root => return None,
            kind::OPT => query.edns = Some(Edns::read(&record)?),
            // RFC 8945 §5.1: the last record, and the only one.
            kind::TSIG if left == 0 => query.tsig_at = Some(at),
            kind::TSIG => return None,
            _ => {}
        }
    }
    if cursor.at != packet.len() {
        return None;
    }
    if questions == 0 {
        return query.edns.filter(|edns| edns.cookie.is_some()).map(Parsed::CookieOnly);
    }
    Some(Parsed::Query(Box::new(query)))
}

impl Query<'_> {
    /// The question's name in lower case, wire form.
    pub fn name(&self) -> &[u8] {
        self.name.get(..self.name_length).unwrap_or_default()
    }

    /// The question as it came: name, type, class.
    pub fn question(&self) -> &[u8] {
        self.packet.get(HEADER..HEADER + self.name_length + 4).unwrap_or_default()
    }

    /// The client wants signatures.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.dnssec_ok)
    }
}

impl<'a> Edns<'a> {
    fn read(record: &RawRecord<'a>) -> Option<Self> {
        let [_, version, high, _] = record.ttl.to_be_bytes();
        let mut edns = Self {
            payload: record.class,
            version,
            dnssec_ok: high & 0x80 != 0,
            compact_ok: high & 0x40 != 0,
            ..Self::default()
        };
        let mut options = Cursor { packet: record.data, at: 0 };
        while options.at < record.data.len() {
            let (code, length) = (options.u16()?, options.u16()?);
            let value = options.take(usize::from(length))?;
            match code {
                option::NSID => edns.wants_nsid = true,
                // RFC 7873 §5.2.2: of any other length it is malformed.
                option::COOKIE if value.len() == 8 || (16..=40).contains(&value.len()) => {
                    edns.cookie = edns.cookie.or(Some(value));
                }
                option::COOKIE => return None,
                option::KEEPALIVE => edns.wants_keepalive = true,
                option::PADDING => edns.is_padded = true,
                _ => {}
            }
        }
        Some(edns)
    }
}

/// Numbers of EDNS options.
pub mod option {
    #![allow(missing_docs)]
    pub const NSID: u16 = 3;
    pub const COOKIE: u16 = 10;
    pub const KEEPALIVE: u16 = 11;
    pub const PADDING: u16 = 12;
    pub const ERROR: u16 = 15;
}

struct RawRecord<'a> {
    at_root: bool,
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'a [u8],
}

struct Cursor<'a> {
    packet: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.packet.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The question's name: it is the first in the message, so there is nothing that it could point to.
    fn question_name(&mut self, lower: &mut [u8; MAX_NAME]) -> Option<usize> {
        let begin = self.at;
        loop {
            let length = usize::from(*self.take(1)?.first()?);
            if length > MAX_LABEL {
                return None;
            }
            self.take(length)?;
            let name = self.packet.get(begin..self.at)?;
            if name.len() > MAX_NAME {
                return None;
            }
            if length == 0 {
                let lower = lower.get_mut(..name.len())?;
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                return Some(name.len());
            }
        }
    }

    /// Skips a name; true when it is the root.
    fn skip_name(&mut self) -> Option<bool> {
        let begin = self.at;
        loop {
            let length = usize::from(*self.take(1)?.first()?);
            match length {
                0 => return Some(self.at == begin + 1),
                0xc0.. => return self.take(1).map(|_| false),
                1..=MAX_LABEL => self.take(length)?,
                _ => return None,
            };
            if self.at - begin > MAX_NAME {
                return None;
            }
        }
    }

    fn record(&mut self) -> Option<RawRecord<'a>> {
        let at_root = self.skip_name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        let length = self.u16()?;
        let data = self.take(usize::from(length))?;
        Some(RawRecord { at_root, kind, class, ttl, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these counts and a body.
    fn packet(counts: [u8; 4], body: &[u8]) -> Vec<u8> {
        let [q, an, ns, ar] = counts;
        [&[7, 7, 1, 0, 0, q, 0, an, 0, ns, 0, ar], body].concat()
    }

    const QUESTION: &[u8] = b"\x03wEb\x03dEv\x00\x00\x1c\x00\x01";

    #[test]
    fn a_question_is_kept_as_it_came_and_looked_up_in_lower_case() {
        let packet = packet([1, 0, 0, 0], QUESTION);
        let Parsed::Query(query) = parse(&packet) else { panic!("no query") };
        assert_eq!((query.name(), query.kind, query.class), (&b"\x03web\x03dev\x00"[..], 28, 1));
        assert_eq!(query.question(), QUESTION);
        assert!(query.edns.is_none());
    }

    #[test]
    fn options_are_read_and_unknown_ones_passed_over() {
        let options =
            b"\x00\x03\x00\x00\x00\x0a\x00\x0812345678\xff\xf0\x00\x01x\x00\x0b\x00\x00\x00\x0c\x00\x00";
        let length = u8::try_from(options.len()).unwrap();
        let opt = [b"\x00\x00\x29\x10\x00\x00\x00\xc0\x00\x00", &[length][..], options].concat();
        let packet = packet([1, 0, 0, 1], &[QUESTION, &opt].concat());
        let Parsed::Query(query) = parse(&packet) else { panic!("no query") };
        let edns = query.edns.unwrap();
        assert_eq!((edns.payload, edns.version, edns.cookie), (4096, 0, Some(&b"12345678"[..])));
        assert!(
            edns.dnssec_ok && edns.compact_ok && edns.wants_nsid && edns.wants_keepalive && edns.is_padded
        );
    }

    #[test]
    fn malformed_messages_are_rejected_by_their_form() {
        let opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        let short_cookie = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x01x";
        for (what, counts, body) in [
            ("two questions", [2, 0, 0, 0], [QUESTION, QUESTION].concat()),
            ("an answer", [1, 1, 0, 0], QUESTION.to_vec()),
            ("no question", [0, 0, 0, 0], vec![]),
            ("nothing behind the header", [1, 0, 0, 0], vec![]),
            ("a compressed question", [1, 0, 0, 0], b"\xc0\x0c\x00\x1c\x00\x01".to_vec()),
            ("a long label", [1, 0, 0, 0], [&b"\x40"[..], &[b'a'; 64], b"\x00\x00\x1c\x00\x01"].concat()),
            (
                "a long name",
                [1, 0, 0, 0],
                [b"\x01a".repeat(128).as_slice(), b"\x00\x00\x1c\x00\x01"].concat(),
            ),
            ("bytes behind the end", [1, 0, 0, 0], [QUESTION, b"x"].concat()),
            ("two OPT", [1, 0, 0, 2], [QUESTION, opt, opt].concat()),
            ("a cookie of one byte", [1, 0, 0, 1], [QUESTION, short_cookie].concat()),
            ("an OPT that ends early", [1, 0, 0, 1], [QUESTION, &opt[..9]].concat()),
        ] {
            assert!(matches!(parse(&packet(counts, &body)), Parsed::Reject(rcode::FORMERR)), "{what}");
        }
        assert!(matches!(parse(b"\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00"), Parsed::Silence));
        assert!(matches!(parse(b"short"), Parsed::Silence));
    }
}
