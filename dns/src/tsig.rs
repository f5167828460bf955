//! Signed messages: RFC 8945 with hmac-sha256, -384 and -512.
//!
//! | § | what | here |
//! | --- | --- | --- |
//! | 4.3 | what a MAC is made over, of a request, a response, the later messages of a transfer | [`Conversation`] |
//! | 5.1 | TSIG is the last record, and the only one | [`find`] |
//! | 5.2.1 | unknown key or algorithm: NOTAUTH, BADKEY, unsigned | [`Refusal::reply`] |
//! | 5.2.2 | wrong MAC: NOTAUTH, BADSIG, unsigned; compared in constant time | [`verify`] |
//! | 5.2.2.1 | truncated MACs are not taken: BADSIG | [`verify`] |
//! | 5.2.3 | outside of the window: NOTAUTH, BADTIME, signed, with our clock | [`verify`], [`Refusal::reply`] |
//! | 5.3 | responses are signed with the request's key | [`Conversation::sign`] |
//! | 5.3.1 | every message of a transfer is signed | [`Conversation::sign`] |
//!
//! The window is at most [`LONGEST_FUDGE_S`], whatever the message says. What must not happen twice within it is remembered by who does it.

use std::fmt;

use aws_lc_rs::hmac;

use crate::message::{Malformed, Message, count_one, put_record};

/// The type's number.
pub const TSIG: u16 = 250;
const ANY: u16 = 255;

/// How far a client's clock may be off, seconds (§10), also where it asks for more.
pub const LONGEST_FUDGE_S: u16 = 300;

/// The response code of everything about keys: NOTAUTH.
pub const NOTAUTH: u8 = 9;

/// What a MAC is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// What everybody speaks.
    #[serde(rename = "hmac-sha256")]
    Sha256,
    /// The longer ones.
    #[serde(rename = "hmac-sha384")]
    Sha384,
    /// Of 64 bytes.
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

impl Algorithm {
    /// Its name in wire form.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Sha256 => b"\x0bhmac-sha256\x00",
            Self::Sha384 => b"\x0bhmac-sha384\x00",
            Self::Sha512 => b"\x0bhmac-sha512\x00",
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

/// A shared secret with its name.
#[derive(Clone)]
pub struct Key {
    /// Wire form, lower case.
    pub name: Vec<u8>,
    algorithm: Algorithm,
    hmac: hmac::Key,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {:?})", crate::message::shown(&self.name), self.algorithm)
    }
}

impl Key {
    /// From its parts.
    pub fn new(name: &[u8], algorithm: Algorithm, secret: &[u8]) -> Self {
        Self { name: name.to_ascii_lowercase(), algorithm, hmac: hmac::Key::new(algorithm.hmac(), secret) }
    }
}

/// The TSIG record of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it begins.
    at: usize,
    /// The key's name, wire form, lower case.
    pub key: Vec<u8>,
    algorithm: Vec<u8>,
    time: u64,
    fudge: u16,
    /// The MAC as it came.
    pub mac: Vec<u8>,
    original_id: u16,
    /// In a response: why the request was not taken.
    pub error: u16,
    other: Vec<u8>,
}

/// The TSIG record of `message`, if it has one.
///
/// # Errors
/// It is not the last record, there are two, or it is malformed: FORMERR.
pub fn find(message: &Message<'_>) -> Result<Option<Found>, Malformed> {
    let mut records = message.sections.iter().flatten().filter(|record| record.kind == TSIG);
    let Some(record) = records.next() else { return Ok(None) };
    let last = message.sections[2].last().is_some_and(|last| last.at == record.at);
    let malformed = Malformed(record.at);
    if !last || record.class != ANY || record.ttl != 0 {
        return Err(malformed);
    }
    let mut fields = Fields(message.data(record));
    let mut read = || {
        let found = Found {
            at: record.at,
            key: record.name.clone(),
            algorithm: fields.name()?,
            time: fields.u48()?,
            fudge: fields.u16()?,
            mac: fields.sized()?,
            original_id: fields.u16()?,
            error: fields.u16()?,
            other: fields.sized()?,
        };
        fields.0.is_empty().then_some(found)
    };
    read().map(Some).ok_or(malformed)
}

/// Data of a TSIG record: nothing in it is compressed (§4.2).
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u48(&mut self) -> Option<u64> {
        Some(self.take(6)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn sized(&mut self) -> Option<Vec<u8>> {
        let length = self.u16()?;
        self.take(length.into()).map(<[u8]>::to_vec)
    }

    fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        loop {
            let length = *self.0.first()?;
            if length > 63 || name.len() > 254 {
                return None;
            }
            name.extend(self.take(usize::from(length) + 1)?.to_ascii_lowercase());
            if length == 0 {
                return Some(name);
            }
        }
    }
}

/// Why a signed request is not taken. Each is answered with NOTAUTH.
#[derive(Debug)]
pub enum Refusal {
    /// Nobody has that key, or not with that algorithm.
    Key(Found),
    /// The MAC is another's.
    Signature(Found),
    /// The clock, ours or theirs, is off.
    Time(Conversation, Found),
}

impl Refusal {
    /// For logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Key(_) => "BADKEY",
            Self::Signature(_) => "BADSIG",
            Self::Time(..) => "BADTIME",
        }
    }

    /// The answer.
    pub fn reply(self, request: &Message<'_>, now: u64) -> Vec<u8> {
        let mut reply = request.reply(NOTAUTH, false);
        match self {
            Self::Key(found) => unsigned(&mut reply, &found, now, 17),
            Self::Signature(found) => unsigned(&mut reply, &found, now, 16),
            Self::Time(mut conversation, found) => {
                // The time is the client's, so that it can verify the MAC; ours is beside it.
                conversation.finish(&mut reply, found.time, 18, &u48(now));
            }
        }
        reply
    }
}

fn unsigned(reply: &mut Vec<u8>, found: &Found, now: u64, error: u16) {
    let data = rdata(&found.algorithm, now, LONGEST_FUDGE_S, &[], found.original_id, error, &[]);
    append(reply, &found.key, &data);
}

/// Verifies a request with the key that is known by its name.
///
/// # Errors
/// [`Refusal`].
pub fn verify(
    message: &Message<'_>,
    found: Found,
    key: Option<Key>,
    now: u64,
) -> Result<Conversation, Box<Refusal>> {
    let Some(key) = key.filter(|key| key.name == found.key && key.algorithm.name() == found.algorithm) else {
        return Err(Box::new(Refusal::Key(found)));
    };
    let mut conversation =
        Conversation { key, prior: Vec::new(), first: true, id: found.original_id, peer_fudge: found.fudge };
    let text = conversation.text(message.bytes, &found);
    if hmac::verify(&conversation.key.hmac, &text, &found.mac).is_err() {
        return Err(Box::new(Refusal::Signature(found)));
    }
    conversation.prior.clone_from(&found.mac);
    if now.abs_diff(found.time) > u64::from(found.fudge.min(LONGEST_FUDGE_S)) {
        return Err(Box::new(Refusal::Time(conversation, found)));
    }
    Ok(conversation)
}

/// What was said with a key: each MAC covers the one before it.
#[derive(Debug, Clone)]
pub struct Conversation {
    key: Key,
    /// The last MAC; none before a request.
    prior: Vec<u8>,
    /// The next message is the first response.
    first: bool,
    /// The request's id.
    id: u16,
    peer_fudge: u16,
}

impl Conversation {
    /// With whom.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Signs a request of ours.
    pub fn ask(key: Key, request: &mut Vec<u8>, now: u64) -> Self {
        let id =
            request.get(..2).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes).unwrap_or_default();
        let mut conversation = Self { key, prior: Vec::new(), first: true, id, peer_fudge: LONGEST_FUDGE_S };
        conversation.put(request, now, 0, &[], true);
        conversation
    }

    /// Signs a response, or the next message of a transfer.
    pub fn sign(&mut self, response: &mut Vec<u8>, now: u64) {
        self.finish(response, now, 0, &[]);
    }

    fn finish(&mut self, response: &mut Vec<u8>, now: u64, error: u16, other: &[u8]) {
        let first = std::mem::replace(&mut self.first, false);
        self.put(response, now, error, other, first);
    }

    fn put(&mut self, message: &mut Vec<u8>, now: u64, error: u16, other: &[u8], whole: bool) {
        let mut text = self.before();
        let begin = text.len();
        text.extend_from_slice(message);
        if let Some(id) = text.get_mut(begin..begin + 2) {
            id.copy_from_slice(&self.id.to_be_bytes());
        }
        match whole {
            true => {
                text.extend(self.variables(self.key.algorithm.name(), now, LONGEST_FUDGE_S, error, other))
            }
            // §5.3.1: later messages carry the time only.
            false => {
                text.extend(u48(now));
                text.extend(LONGEST_FUDGE_S.to_be_bytes());
            }
        }
        let mac = hmac::sign(&self.key.hmac, &text).as_ref().to_vec();
        let data = rdata(self.key.algorithm.name(), now, LONGEST_FUDGE_S, &mac, self.id, error, other);
        append(message, &self.key.name, &data);
        self.prior = mac;
    }

    /// Whether `response`, the first one, was made by who has the key, about what was asked, and lately.
    pub fn is_answered_by(&self, response: &Message<'_>, now: u64) -> bool {
        let Ok(Some(found)) = find(response) else { return false };
        let timely = now.abs_diff(found.time) <= u64::from(self.peer_fudge.min(LONGEST_FUDGE_S));
        let ours = found.key == self.key.name && found.algorithm == self.key.algorithm.name();
        let text = self.text(response.bytes, &found);
        ours && timely && hmac::verify(&self.key.hmac, &text, &found.mac).is_ok()
    }

    /// §4.3.1: the MAC before this one, with its length.
    fn before(&self) -> Vec<u8> {
        if self.prior.is_empty() {
            return Vec::new();
        }
        // MACs are of 64 bytes at most.
        let length = u16::try_from(self.prior.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), self.prior.as_slice()].concat()
    }

    /// What the MAC of a message with this TSIG is made over: the message as it was before it was signed (§4.3.2), and the variables.
    fn text(&self, message: &[u8], found: &Found) -> Vec<u8> {
        let mut text = self.before();
        let begin = text.len();
        text.extend_from_slice(message.get(..found.at).unwrap_or_default());
        if let Some(header) = text.get_mut(begin..begin + 12) {
            header[..2].copy_from_slice(&found.original_id.to_be_bytes());
            let additional = u16::from_be_bytes([header[10], header[11]]).saturating_sub(1);
            header[10..].copy_from_slice(&additional.to_be_bytes());
        }
        text.extend(self.variables(&found.algorithm, found.time, found.fudge, found.error, &found.other));
        text
    }

    /// §4.3.3.
    fn variables(&self, algorithm: &[u8], time: u64, fudge: u16, error: u16, other: &[u8]) -> Vec<u8> {
        let length = u16::try_from(other.len()).unwrap_or(u16::MAX);
        [
            &self.key.name,
            &ANY.to_be_bytes()[..],
            &[0; 4],
            algorithm,
            &u48(time),
            &fudge.to_be_bytes(),
            &error.to_be_bytes(),
            &length.to_be_bytes(),
            other,
        ]
        .concat()
    }
}

fn u48(time: u64) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = time.to_be_bytes();
    [a, b, c, d, e, f]
}

fn rdata(algorithm: &[u8], time: u64, fudge: u16, mac: &[u8], id: u16, error: u16, other: &[u8]) -> Vec<u8> {
    let size = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
    [
        algorithm,
        &u48(time),
        &fudge.to_be_bytes(),
        &size(mac),
        mac,
        &id.to_be_bytes(),
        &error.to_be_bytes(),
        &size(other),
        other,
    ]
    .concat()
}

fn append(message: &mut Vec<u8>, key: &[u8], data: &[u8]) {
    if put_record(message, key, TSIG, ANY, 0, data) {
        count_one(message, 3);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(algorithm: Algorithm) -> Key {
        Key::new(b"\x03Key\x00", algorithm, b"secret")
    }

    fn question() -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x04test\x00\x00\xfc\x00\x01");
        bytes
    }

    fn heard(bytes: &[u8], key: Option<Key>, now: u64) -> Result<Conversation, Box<Refusal>> {
        let message = Message::parse(bytes).unwrap();
        let found = find(&message).unwrap().unwrap();
        verify(&message, found, key, now)
    }

    #[test]
    fn a_request_and_its_response_verify_with_each_algorithm() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
            let mut request = question();
            let asked = Conversation::ask(key(algorithm), &mut request, NOW);
            // A forwarder may change the id.
            request[0] = 0x99;
            let mut server = heard(&request, Some(key(algorithm)), NOW + 299).unwrap();
            let mut response = Message::parse(&request).unwrap().reply(0, true);
            server.sign(&mut response, NOW);
            assert!(asked.is_answered_by(&Message::parse(&response).unwrap(), NOW));
            assert!(!asked.is_answered_by(&Message::parse(&response).unwrap(), NOW + 301));
            let mut other = response.clone();
            other[3] ^= 1;
            assert!(!asked.is_answered_by(&Message::parse(&other).unwrap(), NOW));
            assert!(!format!("{server:?}").contains("secret"));
        }
    }

    #[test]
    fn an_unknown_key_a_wrong_mac_and_a_wrong_clock_have_an_answer_each() {
        let code = |refusal: Box<Refusal>, request: &[u8]| {
            let word = refusal.word();
            let reply = refusal.reply(&Message::parse(request).unwrap(), NOW);
            let parsed = Message::parse(&reply).unwrap();
            assert_eq!(parsed.header.rcode(), NOTAUTH);
            let found = find(&parsed).unwrap().unwrap();
            (word, found.error, found.mac.is_empty(), found.other)
        };
        let mut request = question();
        let asked = Conversation::ask(key(Algorithm::Sha256), &mut request, NOW);
        assert_eq!(code(heard(&request, None, NOW).unwrap_err(), &request), ("BADKEY", 17, true, vec![]));
        let longer = Some(key(Algorithm::Sha512));
        assert_eq!(code(heard(&request, longer, NOW).unwrap_err(), &request), ("BADKEY", 17, true, vec![]));
        let other = Some(Key::new(b"\x03key\x00", Algorithm::Sha256, b"other"));
        assert_eq!(code(heard(&request, other, NOW).unwrap_err(), &request), ("BADSIG", 16, true, vec![]));
        let refusal = heard(&request, Some(key(Algorithm::Sha256)), NOW + 301).unwrap_err();
        let reply = refusal.reply(&Message::parse(&request).unwrap(), NOW + 301);
        let parsed = Message::parse(&reply).unwrap();
        let found = find(&parsed).unwrap().unwrap();
        assert_eq!((found.error, found.other.as_slice()), (18, &u48(NOW + 301)[..]));
        assert!(asked.is_answered_by(&parsed, NOW), "a client with a wrong clock learns who says so");
    }

    #[test]
    fn a_short_mac_is_no_mac() {
        let mut request = question();
        Conversation::ask(key(Algorithm::Sha256), &mut request, NOW);
        let message = Message::parse(&request).unwrap();
        let mut found = find(&message).unwrap().unwrap();
        found.mac.truncate(16);
        assert!(verify(&message, found, Some(key(Algorithm::Sha256)), NOW).is_err());
    }

    #[test]
    fn a_tsig_that_is_not_the_last_record_is_malformed() {
        let mut request = question();
        Conversation::ask(key(Algorithm::Sha256), &mut request, NOW);
        let mut twice = request.clone();
        Conversation::ask(key(Algorithm::Sha256), &mut twice, NOW);
        assert!(find(&Message::parse(&twice).unwrap()).is_err());
        put_record(&mut request, &[0], 16, 1, 0, b"\x00");
        count_one(&mut request, 3);
        assert!(find(&Message::parse(&request).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_verifies(at in 0usize..200, flip in 1u8..) {
            let mut request = question();
            Conversation::ask(key(Algorithm::Sha256), &mut request, NOW);
            let at = at % request.len();
            request[at] ^= flip;
            // A forwarder may change the id, and the letter case of the key's and the algorithm's names says nothing.
            let Ok(message) = Message::parse(&request) else { return Ok(()) };
            let Ok(Some(found)) = find(&message) else { return Ok(()) };
            let sound = verify(&message, found, Some(key(Algorithm::Sha256)), NOW);
            let in_tsig = at >= question().len();
            prop_assert!(sound.is_err() || at < 2 || in_tsig && flip == 0x20, "byte {at}");
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = Message::parse(&bytes) {
                if let Ok(Some(found)) = find(&message) {
                    let _ = verify(&message, found, Some(key(Algorithm::Sha256)), NOW);
                }
            }
        }
    }
}
