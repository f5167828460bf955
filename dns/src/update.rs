//! Dynamic updates (RFC 2136): with a machine's key, of TXT records at `_acme-challenge` below its name and below that.
//!
//! | § | what | here |
//! | --- | --- | --- |
//! | 3.1 | one zone, of type SOA, ours: else FORMERR, NOTAUTH | [`read`] |
//! | 3.2 | prerequisites: read here, held by control in the transaction that changes | [`condition`] |
//! | 3.3 | permission: the key's machine, TXT, within the scope: else REFUSED | [`read`] |
//! | 3.4 | changes: all or none | [`change`], control |
//! | 3.5 | answered when it is so | whoever sends the answer waits for this server's own replica |
//!
//! Wrong form is told before wrong zones, and these before what is not allowed (§3.4.1).

use mashines_fleet::dns_update::{Change, Condition, MOST, Outcome, Update};
use mashines_fleet::id::MachineId;
use mashines_fleet::rdata::quoted;

use crate::message::{Message, Record};

/// The opcode.
pub const OPCODE: u8 = 5;

const SOA: u16 = 6;
const TXT: u16 = 16;
const ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_NONE: u16 = 254;
const CLASS_ANY: u16 = 255;

/// Response codes (§2.2 and RFC 1035).
pub mod rcode {
    #![allow(missing_docs)]
    pub const NOERROR: u8 = 0;
    pub const FORMERR: u8 = 1;
    pub const SERVFAIL: u8 = 2;
    pub const NXDOMAIN: u8 = 3;
    pub const NOTIMP: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const YXDOMAIN: u8 = 6;
    pub const YXRRSET: u8 = 7;
    pub const NXRRSET: u8 = 8;
    pub const NOTAUTH: u8 = 9;
    pub const NOTZONE: u8 = 10;
}

/// The code for what control said.
pub fn code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Done => rcode::NOERROR,
        Outcome::NameInUse => rcode::YXDOMAIN,
        Outcome::NameNotInUse => rcode::NXDOMAIN,
        Outcome::RrsetExists => rcode::YXRRSET,
        Outcome::RrsetAbsent => rcode::NXRRSET,
        Outcome::Refused => rcode::REFUSED,
    }
}

/// Whose update it is: names in wire form, lower case.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The machine of the key.
    pub machine: &'a MachineId,
    /// Its name in full.
    pub name: &'a [u8],
    /// The zone that it is in.
    pub zone: &'a [u8],
}

/// What an update asks for.
///
/// # Errors
/// The response code to refuse it with.
pub fn read(message: &Message<'_>, owner: Owner<'_>) -> Result<Update, u8> {
    let [zone] = message.questions.as_slice() else { return Err(rcode::FORMERR) };
    if zone.kind != SOA {
        return Err(rcode::FORMERR);
    }
    if zone.class != CLASS_IN || zone.name != owner.zone {
        return Err(rcode::NOTAUTH);
    }
    let [conditions, changes, _] = &message.sections;
    let conditions: Vec<Read<Condition>> =
        conditions.iter().map(|record| condition(message, record, owner)).collect::<Result<_, _>>()?;
    let changes: Vec<Read<Change>> =
        changes.iter().map(|record| change(message, record, owner)).collect::<Result<_, _>>()?;
    let all = || conditions.iter().map(Read::problem).chain(changes.iter().map(Read::problem));
    if all().any(|problem| problem == Some(rcode::NOTZONE)) {
        return Err(rcode::NOTZONE);
    }
    if all().any(|problem| problem.is_some()) || conditions.len() > MOST || changes.len() > MOST {
        return Err(rcode::REFUSED);
    }
    let conditions = merged(conditions.into_iter().filter_map(Read::good));
    let changes = changes.into_iter().filter_map(Read::good).collect();
    Ok(Update { machine: owner.machine.clone(), conditions, changes })
}

/// A record of the right form: what it says, or why that is not taken.
enum Read<T> {
    Good(T),
    Bad(u8),
}

impl<T> Read<T> {
    fn problem(&self) -> Option<u8> {
        match self {
            Self::Good(_) => None,
            Self::Bad(code) => Some(*code),
        }
    }

    fn good(self) -> Option<T> {
        match self {
            Self::Good(good) => Some(good),
            Self::Bad(_) => None,
        }
    }
}

/// Sets that are to be exactly so come as one record each: they are put together by name.
fn merged(conditions: impl Iterator<Item = Condition>) -> Vec<Condition> {
    let mut all: Vec<Condition> = Vec::new();
    for condition in conditions {
        if let Condition::TxtIs { name, data } = &condition {
            let same = all.iter_mut().find_map(|known| match known {
                Condition::TxtIs { name: known, data } if known == name => Some(data),
                _ => None,
            });
            if let Some(known) = same {
                known.extend(data.iter().cloned());
                continue;
            }
        }
        all.push(condition);
    }
    all
}

/// A prerequisite (§2.4).
fn condition(message: &Message<'_>, record: &Record, owner: Owner<'_>) -> Result<Read<Condition>, u8> {
    let data = message.data(record);
    if record.ttl != 0 {
        return Err(rcode::FORMERR);
    }
    let name = below(record, owner);
    let read = |make: &dyn Fn(String) -> Condition| match &name {
        Ok(name) => Read::Good(make(name.clone())),
        Err(code) => Read::Bad(*code),
    };
    match (record.class, record.kind) {
        (CLASS_ANY | CLASS_NONE, _) if !data.is_empty() => Err(rcode::FORMERR),
        (CLASS_ANY, ANY) => Ok(read(&|name| Condition::NameInUse { name })),
        (CLASS_NONE, ANY) => Ok(read(&|name| Condition::NameNotInUse { name })),
        (CLASS_ANY, TXT) => Ok(read(&|name| Condition::RrsetExists { name, kind: "TXT".to_owned() })),
        (CLASS_NONE, TXT) => Ok(read(&|name| Condition::RrsetAbsent { name, kind: "TXT".to_owned() })),
        (CLASS_IN, TXT) => {
            let data = text(data)?;
            Ok(read(&|name| Condition::TxtIs { name, data: vec![data.clone()] }))
        }
        (CLASS_ANY | CLASS_NONE | CLASS_IN, _) => Ok(not_allowed(&name)),
        _ => Err(rcode::FORMERR),
    }
}

/// A change (§2.5).
fn change(message: &Message<'_>, record: &Record, owner: Owner<'_>) -> Result<Read<Change>, u8> {
    let data = message.data(record);
    let name = below(record, owner);
    let read = |make: &dyn Fn(String) -> Change| match &name {
        Ok(name) => Read::Good(make(name.clone())),
        Err(code) => Read::Bad(*code),
    };
    match (record.class, record.kind) {
        (CLASS_ANY, _) if record.ttl != 0 || !data.is_empty() => Err(rcode::FORMERR),
        (CLASS_NONE, _) if record.ttl != 0 => Err(rcode::FORMERR),
        // Questions' types are no records' (§3.4.1.3).
        (CLASS_IN | CLASS_NONE, 128..=255) | (CLASS_ANY, 128..=254) => Err(rcode::FORMERR),
        (CLASS_IN, TXT) => {
            let data = text(data)?;
            Ok(read(&|name| Change::Add { name, ttl: record.ttl, data: data.clone() }))
        }
        (CLASS_NONE, TXT) => {
            let data = text(data)?;
            Ok(read(&|name| Change::Remove { name, data: data.clone() }))
        }
        (CLASS_ANY, TXT | ANY) => Ok(read(&|name| Change::RemoveAll { name })),
        (CLASS_ANY | CLASS_NONE | CLASS_IN, _) => Ok(not_allowed(&name)),
        _ => Err(rcode::FORMERR),
    }
}

fn not_allowed<T>(name: &Result<String, u8>) -> Read<T> {
    Read::Bad(name.as_ref().err().copied().unwrap_or(rcode::REFUSED))
}

/// The record's name relative to the machine's, as text; NOTZONE outside of the zone, REFUSED elsewhere than below the machine.
fn below(record: &Record, owner: Owner<'_>) -> Result<String, u8> {
    relative(&record.name, owner.zone).ok_or(rcode::NOTZONE)?;
    let labels = relative(&record.name, owner.name).ok_or(rcode::REFUSED)?;
    let plain = |label: &[u8]| {
        let usable = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        label.iter().all(usable).then(|| String::from_utf8_lossy(label).into_owned())
    };
    let words: Option<Vec<String>> = labels.into_iter().map(plain).collect();
    let name = words.ok_or(rcode::REFUSED)?.join(".");
    match mashines_fleet::dns_update::in_scope(&name) {
        true => Ok(name),
        false => Err(rcode::REFUSED),
    }
}

/// The labels in front of `apex`; none when the name is not within it.
fn relative<'a>(name: &'a [u8], apex: &[u8]) -> Option<Vec<&'a [u8]>> {
    let mut labels = Vec::new();
    let mut rest = name;
    while rest != apex {
        let (&length, tail) = rest.split_first()?;
        let (label, tail) = tail.split_at_checked(usize::from(length)).filter(|_| length > 0)?;
        labels.push(label);
        rest = tail;
    }
    Some(labels)
}

/// The strings of a TXT record as a zone file has them.
fn text(data: &[u8]) -> Result<String, u8> {
    let mut strings = Vec::new();
    let mut rest = data;
    while let Some((&length, tail)) = rest.split_first() {
        let (string, tail) = tail.split_at_checked(usize::from(length)).ok_or(rcode::FORMERR)?;
        strings.push(quoted(string));
        rest = tail;
    }
    match strings.is_empty() {
        true => Err(rcode::FORMERR),
        false => Ok(strings.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{count_one, put_record};

    const ZONE: &[u8] = b"\x07mashine\x04test\x00";
    const AT: &[u8] = b"\x0f_acme-challenge\x03web\x07mashine\x04test\x00";

    struct Packet(Vec<u8>);

    impl Packet {
        fn new(zone: &[u8]) -> Self {
            let mut bytes = vec![0, 1, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            bytes.extend(zone);
            bytes.extend([0, 6, 0, 1]);
            Self(bytes)
        }

        fn with(mut self, section: usize, name: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Self {
            assert!(put_record(&mut self.0, name, kind, class, ttl, data));
            count_one(&mut self.0, section);
            self
        }

        fn read(&self) -> Result<Update, u8> {
            let machine = "0123456789abcd".parse().unwrap();
            let owner = Owner { machine: &machine, name: b"\x03web\x07mashine\x04test\x00", zone: ZONE };
            read(&Message::parse(&self.0).unwrap(), owner)
        }
    }

    #[test]
    fn an_update_is_what_its_records_say() {
        let update = Packet::new(ZONE)
            .with(1, AT, ANY, CLASS_NONE, 0, b"")
            .with(1, AT, TXT, CLASS_IN, 0, b"\x01a")
            .with(1, AT, TXT, CLASS_IN, 0, b"\x01b")
            .with(2, AT, TXT, CLASS_IN, 60, b"\x05token\x00")
            .with(2, AT, TXT, CLASS_NONE, 0, b"\x03\"\\\xff")
            .with(2, AT, TXT, CLASS_ANY, 0, b"")
            .read()
            .unwrap();
        let name = || "_acme-challenge".to_owned();
        assert_eq!(
            update.conditions,
            [
                Condition::NameNotInUse { name: name() },
                Condition::TxtIs { name: name(), data: vec!["\"a\"".into(), "\"b\"".into()] }
            ]
        );
        assert_eq!(
            update.changes,
            [
                Change::Add { name: name(), ttl: 60, data: "\"token\" \"\"".into() },
                Change::Remove { name: name(), data: "\"\\\"\\\\\\255\"".into() },
                Change::RemoveAll { name: name() },
            ]
        );
    }

    #[test]
    fn each_mistake_has_the_code_of_the_rfc() {
        let with = |name, kind, class, ttl, data| {
            Packet::new(ZONE).with(2, name, kind, class, ttl, data).read().unwrap_err()
        };
        let own = b"\x03web\x07mashine\x04test\x00";
        let others = b"\x0f_acme-challenge\x05other\x07mashine\x04test\x00";
        assert_eq!(with(own, TXT, CLASS_IN, 60, b"\x01x"), rcode::REFUSED);
        assert_eq!(with(others, TXT, CLASS_IN, 60, b"\x01x"), rcode::REFUSED);
        assert_eq!(with(AT, 1, CLASS_IN, 60, b"\x01\x02\x03\x04"), rcode::REFUSED);
        assert_eq!(with(b"\x03web\x04test\x00", TXT, CLASS_IN, 60, b"\x01x"), rcode::NOTZONE);
        assert_eq!(with(AT, TXT, CLASS_IN, 60, b""), rcode::FORMERR);
        assert_eq!(with(AT, TXT, CLASS_IN, 60, b"\x05x"), rcode::FORMERR);
        assert_eq!(with(AT, TXT, CLASS_ANY, 60, b""), rcode::FORMERR);
        assert_eq!(with(AT, TXT, CLASS_ANY, 0, b"\x01x"), rcode::FORMERR);
        assert_eq!(with(AT, TXT, CLASS_NONE, 1, b"\x01x"), rcode::FORMERR);
        assert_eq!(with(AT, ANY, CLASS_IN, 0, b"\x01x"), rcode::FORMERR);
        assert_eq!(with(AT, TXT, 3, 0, b"\x01x"), rcode::FORMERR);
        assert_eq!(Packet::new(b"\x05other\x00").read().unwrap_err(), rcode::NOTAUTH);
        let many = (0..=MOST).fold(Packet::new(ZONE), |p, _| p.with(2, AT, TXT, CLASS_ANY, 0, b""));
        assert_eq!(many.read().unwrap_err(), rcode::REFUSED);
        let odd = b"\x03a.b\x0f_acme-challenge\x03web\x07mashine\x04test\x00";
        assert_eq!(with(odd, TXT, CLASS_IN, 60, b"\x01x"), rcode::REFUSED);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_within_the_scope(
            names in proptest::collection::vec(prop_oneof![Just(AT), Just(ZONE), Just(&b"\x00"[..])], 0..6),
            kind in any::<u16>(), class in prop_oneof![Just(1u16), Just(254), Just(255), any::<u16>()],
            ttl in 0u32..2, data in proptest::collection::vec(any::<u8>(), 0..8), section in 1usize..3,
        ) {
            let packet = names.iter().fold(Packet::new(ZONE), |p, name| p.with(section, name, kind, class, ttl, &data));
            if let Ok(update) = packet.read() {
                let mut records = vec![];
                let outcome = mashines_fleet::dns_update::apply(&mut records, &update);
                prop_assert!(outcome != Outcome::Refused || !update.changes.is_empty());
                prop_assert!(records.iter().all(|r| mashines_fleet::dns_update::in_scope(&r.name) && r.kind == "TXT"));
            }
        }
    }
}
