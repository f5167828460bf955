//! What a machine's owner may put into DNS: text as in a zone file on one side, the bytes that are served on the other.
//!
//! Control checks with it before it writes, name servers encode with it before they serve: what was taken is what is served.
//!
//! - [`encode`]: type and data of one record become RDATA ([`crate::rdata`]).
//! - [`add`], [`remove`]: the rules about the records of one machine together.
//!
//! Not taken, and why: `NS` (a machine's name is no zone of its own), `SOA`, `DNSKEY`, `RRSIG`, `NSEC` (the zone's), `HTTPS` (made by the
//! platform from the machine's services), `PTR` (the platform's reverse zones).

use crate::rdata::{self, Rdata};
use crate::record::OwnRecord;

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
const KINDS: [&str; 9] = ["A", "AAAA", "CAA", "CNAME", "MX", "SRV", "SSHFP", "TLSA", "TXT"];

fn must_be_known(kind: &str) -> Result<()> {
    if KINDS.contains(&kind) {
        return Ok(());
    }
    let why = match kind {
        "NS" => ": a machine's name is no zone of its own; use a domain of yours, and a CNAME to the machine",
        "HTTPS" | "SVCB" => ": the platform makes it from the machine's services",
        "PTR" => ": the platform names its addresses itself",
        "SOA" | "DNSKEY" | "DS" | "CDS" | "CDNSKEY" | "RRSIG" | "NSEC" | "NSEC3" => {
            ": it belongs to the zone"
        }
        _ => "",
    };
    let kind: String = kind.chars().take(20).collect();
    Err(BadRecord::new(format!("type {kind:?} is not taken{why} (types: {})", KINDS.join(", "))))
}

/// The bytes of one record, whatever its name.
///
/// # Errors
/// [`BadRecord`]: the type is not one that owners may use, or the data is not of that type.
pub fn encode(record: &OwnRecord) -> Result<Rdata> {
    must_be_known(&record.kind)?;
    if record.data.chars().count() > LONGEST_DATA {
        return Err(BadRecord::new(format!("the data of a record has at most {LONGEST_DATA} characters")));
    }
    rdata::encode(&record.kind, &record.data).map_err(|bad| BadRecord::new(bad.to_string()))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
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
pub fn checked(record: &OwnRecord) -> Result<(OwnRecord, Rdata)> {
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
        match record.kind.as_str() {
            kind @ ("A" | "AAAA" | "SSHFP") => {
                return Err(BadRecord::new(format!(
                    "{kind} at the machine's own name is the platform's: it follows the machine; put yours below it, with a name"
                )));
            }
            "CNAME" => {
                return Err(BadRecord::new(
                    "a CNAME at the machine's own name would hide its addresses: put it below, with a name",
                ));
            }
            _ => {}
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

#[cfg(test)]
mod tests;
