//! What a machine's owner may put into DNS: text as in a zone file on one side, the bytes that are served on the other.
//!
//! Control checks with it before it writes, name servers encode with it before they serve: what was taken is what is served.
//!
//! - [`encode`]: type and data of one record become RDATA (RFC 1035 §5.1 for the text, each type's own RFC for the rest).
//! - [`add`], [`remove`]: the rules about the records of one machine together.
//!
//! Not taken, and why: `NS` (a machine's name is no zone of its own), `SOA`, `DNSKEY`, `RRSIG`, `NSEC` (the zone's), `HTTPS` (made by the
//! platform from the machine's services), `PTR` (the platform's reverse zones).

mod text;

use crate::record::OwnRecord;
use text::Token;

/// The most records of one machine.
pub const MOST: usize = 64;
/// The longest data of one record, characters.
pub const LONGEST_DATA: usize = 2048;
/// The longest data of all records of one machine, characters: they are in every replica.
pub const LONGEST_IN_ALL: usize = 16 * 1024;
/// The shortest time that resolvers may keep a record, seconds.
pub const LEAST_TTL: u32 = 30;
/// The longest, seconds.
pub const MOST_TTL: u32 = 86_400;
/// The TTL when nobody says otherwise, seconds.
pub const DEFAULT_TTL: u32 = 300;
/// The most labels below a machine's name.
const MOST_LABELS: usize = 8;
/// What is left of 255 bytes for a name below a slug of 63 in a zone whose own name is not extravagant.
const LONGEST_NAME: usize = 120;

/// A record's type and its RDATA, names in it uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The type's number.
    pub rtype: u16,
    /// The data.
    pub rdata: Vec<u8>,
}

/// Why a record is not taken. The text names the record, the rule, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(String);

impl BadRecord {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

type Result<T> = std::result::Result<T, BadRecord>;

/// The types that an owner may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    A,
    Aaaa,
    Caa,
    Cname,
    Mx,
    Srv,
    Sshfp,
    Tlsa,
    Txt,
}

const KINDS: [(&str, Kind, u16); 9] = [
    ("A", Kind::A, 1),
    ("AAAA", Kind::Aaaa, 28),
    ("CAA", Kind::Caa, 257),
    ("CNAME", Kind::Cname, 5),
    ("MX", Kind::Mx, 15),
    ("SRV", Kind::Srv, 33),
    ("SSHFP", Kind::Sshfp, 44),
    ("TLSA", Kind::Tlsa, 52),
    ("TXT", Kind::Txt, 16),
];

fn kind(word: &str) -> Result<(Kind, u16)> {
    if let Some((_, kind, rtype)) = KINDS.iter().find(|(name, ..)| *name == word) {
        return Ok((*kind, *rtype));
    }
    let why = match word {
        "NS" => ": a machine's name is no zone of its own; use a domain of yours, and a CNAME to the machine",
        "HTTPS" | "SVCB" => ": the platform makes it from the machine's services",
        "PTR" => ": the platform names its addresses itself",
        "SOA" | "DNSKEY" | "DS" | "CDS" | "CDNSKEY" | "RRSIG" | "NSEC" | "NSEC3" => {
            ": it belongs to the zone"
        }
        _ => "",
    };
    let word: String = word.chars().take(20).collect();
    let names: Vec<&str> = KINDS.iter().map(|(name, ..)| *name).collect();
    Err(BadRecord::new(format!("type {word:?} is not taken{why} (types: {})", names.join(", "))))
}

/// The bytes of one record, whatever its name.
///
/// # Errors
/// [`BadRecord`]: the type is not one that owners may use, or the data is not of that type.
pub fn encode(record: &OwnRecord) -> Result<Encoded> {
    let (kind, rtype) = kind(&record.kind)?;
    if record.data.chars().count() > LONGEST_DATA {
        return Err(BadRecord::new(format!("the data of a record has at most {LONGEST_DATA} characters")));
    }
    let shape = |why: String| {
        BadRecord::new(format!(
            "{} {:?}: {why}; it looks like: {}",
            record.kind,
            short(&record.data),
            example(kind)
        ))
    };
    let tokens = text::tokens(&record.data).map_err(|why| shape(why.to_owned()))?;
    let rdata = rdata(kind, &tokens).map_err(shape)?;
    Ok(Encoded { rtype, rdata })
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::A => "192.0.2.7",
        Kind::Aaaa => "2001:db8::7",
        Kind::Caa => "0 issue \"letsencrypt.org\"",
        Kind::Cname => "www.example.org.",
        Kind::Mx => "10 mail.example.org.",
        Kind::Srv => "0 5 5060 sip.example.org.",
        Kind::Sshfp => "4 2 and 64 hex digits",
        Kind::Tlsa => "3 1 1 and 64 hex digits",
        Kind::Txt => "\"v=spf1 -all\"",
    }
}

fn rdata(kind: Kind, tokens: &[Token]) -> std::result::Result<Vec<u8>, String> {
    let mut fields = Fields { tokens, next: 0 };
    let mut out = Vec::new();
    match kind {
        Kind::A => out.extend(fields.parsed::<std::net::Ipv4Addr>("an IPv4 address")?.octets()),
        Kind::Aaaa => out.extend(fields.parsed::<std::net::Ipv6Addr>("an IPv6 address")?.octets()),
        Kind::Cname => out.extend(fields.name()?),
        Kind::Mx => {
            out.extend(fields.parsed::<u16>("a preference")?.to_be_bytes());
            out.extend(fields.name()?);
        }
        Kind::Srv => {
            for what in ["a priority", "a weight", "a port"] {
                out.extend(fields.parsed::<u16>(what)?.to_be_bytes());
            }
            out.extend(fields.name()?);
        }
        Kind::Caa => {
            // RFC 8659 §4.1: one flag is known, and a tag is of letters and digits.
            let flags: u8 = fields.parsed("flags")?;
            if !matches!(flags, 0 | 128) {
                return Err(format!("flags {flags} are unknown: 0, or 128 for critical"));
            }
            let tag = fields.plain("a tag")?;
            if tag.is_empty() || tag.len() > 15 || !tag.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err("a tag is of 1 to 15 letters and digits".to_owned());
            }
            let value = fields.token("a value")?.bytes.clone();
            out.push(flags);
            out.extend(u8::try_from(tag.len()).map(|n| [n]).unwrap_or_default());
            out.extend(tag.to_ascii_lowercase().bytes());
            out.extend(value);
        }
        Kind::Sshfp => {
            let (algorithm, digest): (u8, u8) =
                (fields.parsed("an algorithm")?, fields.parsed("a digest type")?);
            let print = fields.hex("a fingerprint")?;
            digest_fits(digest, &[(1, 20), (2, 32)], &print)?;
            out.extend([algorithm, digest]);
            out.extend(print);
        }
        Kind::Tlsa => {
            let usage: u8 = fields.parsed("a usage")?;
            let (selector, matching): (u8, u8) =
                (fields.parsed("a selector")?, fields.parsed("a matching type")?);
            let data = fields.hex("a digest")?;
            digest_fits(matching, &[(1, 32), (2, 64)], &data)?;
            out.extend([usage, selector, matching]);
            out.extend(data);
        }
        Kind::Txt => {
            while fields.next < tokens.len() {
                let bytes = &fields.token("text")?.bytes;
                let length = u8::try_from(bytes.len()).map_err(|_| {
                    "a string of it is longer than 255 bytes: split it, \"first part\" \"second part\""
                        .to_owned()
                })?;
                out.push(length);
                out.extend(bytes);
            }
            if out.is_empty() {
                return Err("there is no text".to_owned());
            }
        }
    }
    fields.end()?;
    Ok(out)
}

/// Digests of known kinds have known lengths; of unknown kinds any length is taken.
fn digest_fits(kind: u8, known: &[(u8, usize)], digest: &[u8]) -> std::result::Result<(), String> {
    match known.iter().find(|(known, _)| *known == kind) {
        Some((_, length)) if *length != digest.len() => {
            Err(format!("a digest of kind {kind} has {} hex digits, not {}", length * 2, digest.len() * 2))
        }
        _ if digest.is_empty() => Err("the digest is missing".to_owned()),
        _ => Ok(()),
    }
}

/// The tokens of one record's data, from left to right.
struct Fields<'a> {
    tokens: &'a [Token],
    next: usize,
}

impl<'a> Fields<'a> {
    fn token(&mut self, what: &str) -> std::result::Result<&'a Token, String> {
        let token = self.tokens.get(self.next).ok_or_else(|| format!("{what} is missing"))?;
        self.next += 1;
        Ok(token)
    }

    fn plain(&mut self, what: &str) -> std::result::Result<&'a str, String> {
        let token = self.token(what)?;
        std::str::from_utf8(&token.bytes).map_err(|_| format!("{what} is of plain characters"))
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> std::result::Result<T, String> {
        let word = self.plain(what)?;
        // `u16::from_str` takes a plus sign, zone files do not.
        let parsed = if word.starts_with('+') { None } else { word.parse().ok() };
        parsed.ok_or_else(|| format!("{:?} is not {what}", short(word)))
    }

    fn name(&mut self) -> std::result::Result<Vec<u8>, String> {
        let token = self.token("a name")?;
        text::name(&token.source)
    }

    /// Hex digits, which a zone file may break into several words.
    fn hex(&mut self, what: &str) -> std::result::Result<Vec<u8>, String> {
        let mut digits = String::new();
        while self.next < self.tokens.len() {
            digits.push_str(self.plain(what)?);
        }
        hex::decode(&digits).map_err(|_| format!("{what} is an even number of hex digits"))
    }

    fn end(&self) -> std::result::Result<(), String> {
        match self.tokens.get(self.next) {
            Some(token) => Err(format!("there is more than it takes, from {:?}", short(&token.source))),
            None => Ok(()),
        }
    }
}

/// A name below a machine's, lower case; empty for the machine's own.
///
/// # Errors
/// [`BadRecord`].
pub fn checked_name(name: &str) -> Result<String> {
    let name = name.trim().to_ascii_lowercase();
    let name = if name == "@" { String::new() } else { name };
    if name.is_empty() {
        return Ok(name);
    }
    let bad = |why: &str| {
        BadRecord::new(format!(
            "{:?} is no name below a machine's: {why}; such as www, _acme-challenge, *.preview",
            short(&name)
        ))
    };
    if name.ends_with('.') {
        return Err(bad("it is given without the machine's own name and without a dot at its end"));
    }
    let labels: Vec<&str> = name.split('.').collect();
    if labels.len() > MOST_LABELS || name.len() > LONGEST_NAME {
        return Err(bad(&format!("it has at most {MOST_LABELS} labels and {LONGEST_NAME} characters")));
    }
    for (at, label) in labels.iter().enumerate() {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let wildcard = at == 0 && *label == "*";
        if !wildcard && (label.is_empty() || label.len() > 63 || !label.bytes().all(plain)) {
            return Err(bad("labels are of letters, digits, - and _, at most 63, and the first may be *"));
        }
    }
    Ok(name)
}

/// One record, with its name as it is kept.
///
/// # Errors
/// [`BadRecord`]: name, TTL, type or data are wrong, or what it says of the machine's own name is the platform's to say.
pub fn checked(record: &OwnRecord) -> Result<(OwnRecord, Encoded)> {
    let record = OwnRecord {
        name: checked_name(&record.name)?,
        kind: record.kind.trim().to_ascii_uppercase(),
        ttl: record.ttl,
        data: record.data.trim().to_owned(),
    };
    if !(LEAST_TTL..=MOST_TTL).contains(&record.ttl) {
        return Err(BadRecord::new(format!("ttl {}: it is {LEAST_TTL} to {MOST_TTL} seconds", record.ttl)));
    }
    let encoded = encode(&record)?;
    if record.name.is_empty() {
        match kind(&record.kind)?.0 {
            Kind::A | Kind::Aaaa | Kind::Sshfp => {
                return Err(BadRecord::new(format!(
                    "{} at the machine's own name is the platform's: it follows the machine; put yours below it, with a name",
                    record.kind
                )));
            }
            Kind::Cname => {
                return Err(BadRecord::new(
                    "a CNAME at the machine's own name would hide its addresses: put it below, with a name",
                ));
            }
            Kind::Caa | Kind::Mx | Kind::Srv | Kind::Tlsa | Kind::Txt => {}
        }
    }
    Ok((record, encoded))
}

/// Adds a record to those of a machine. One that is there already gets the TTL; all of one name and type have the same (RFC 2181 §5.2).
///
/// # Errors
/// [`BadRecord`]: the record is wrong by itself ([`checked`]), does not go with the others, or is one too many.
pub fn add(records: &mut Vec<OwnRecord>, record: &OwnRecord) -> Result<()> {
    let (record, new) = checked(record)?;
    let place = if record.name.is_empty() { "the machine's name" } else { &record.name };
    let here = |other: &&OwnRecord| other.name == record.name;
    let is_cname = record.kind == "CNAME";
    let known = |other: &OwnRecord| {
        here(&other) && other.kind == record.kind && encode(other).is_ok_and(|other| other == new)
    };
    let there = records.iter().any(known);
    if !there {
        // RFC 1034 §3.6.2: a name that is an alias has nothing else.
        if let Some(other) = records.iter().filter(here).find(|other| is_cname != (other.kind == "CNAME")) {
            return Err(BadRecord::new(format!(
                "{place} has {} {:?}, and a CNAME stands alone: remove one of the two",
                other.kind,
                short(&other.data)
            )));
        }
        if is_cname && records.iter().any(|other| here(&other)) {
            return Err(BadRecord::new(format!("{place} has a CNAME already: remove it first")));
        }
        if records.len() >= MOST {
            return Err(BadRecord::new(format!("a machine has at most {MOST} records: remove some first")));
        }
        let length: usize = records.iter().map(|other| other.data.len()).sum();
        if length + record.data.len() > LONGEST_IN_ALL {
            return Err(BadRecord::new(format!(
                "the records of a machine have at most {LONGEST_IN_ALL} bytes of data together: remove some first"
            )));
        }
    }
    for other in records.iter_mut().filter(|other| other.name == record.name && other.kind == record.kind) {
        other.ttl = record.ttl;
    }
    if !there {
        records.push(record);
        records.sort();
    }
    Ok(())
}

/// Removes what is at a name: of one type and with one data where they are said. How many were there.
///
/// # Errors
/// [`BadRecord`]: a name, type or data that nothing can have.
pub fn remove(
    records: &mut Vec<OwnRecord>,
    name: &str,
    kind: Option<&str>,
    data: Option<&str>,
) -> Result<usize> {
    let name = checked_name(name)?;
    let kind = kind.map(|kind| kind.trim().to_ascii_uppercase());
    let wanted = match (&kind, data) {
        (Some(kind), Some(data)) => {
            let record = OwnRecord {
                name: name.clone(),
                kind: kind.clone(),
                ttl: DEFAULT_TTL,
                data: data.trim().to_owned(),
            };
            Some(encode(&record)?)
        }
        (None, Some(_)) => return Err(BadRecord::new("data is given with its type: NAME TYPE DATA")),
        (_, None) => None,
    };
    let before = records.len();
    records.retain(|record| {
        let goes = record.name == name
            && kind.as_ref().is_none_or(|kind| record.kind == *kind)
            && wanted.as_ref().is_none_or(|wanted| encode(record).is_ok_and(|has| has == *wanted));
        !goes
    });
    Ok(before - records.len())
}

/// A string as zone files write it: in quotes, with what could end it escaped.
pub fn quoted(bytes: &[u8]) -> String {
    text::quoted(bytes)
}

#[cfg(test)]
mod tests;
