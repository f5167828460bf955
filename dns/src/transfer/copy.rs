//! A zone as secondaries get it: every record, each set signed, and a chain of NSEC through all names.
//!
//! The answers of this server deny names by making an NSEC for the question (RFC 9824), which a stock secondary cannot. So a copy has the
//! chain of RFC 4034, from each name to the next and from the last to the apex.
//!
//! Invariants:
//! - A copy never changes. The next one shares every name with it that says the same.
//! - Two copies of one serial are the same but for the signatures: ECDSA's are never twice alike.
//! - Signatures are made anew in each [`PERIOD_S`] and the serial rises with it; they are good for [`LIFE_S`] from its beginning. So a
//!   secondary that refreshes within its SOA's expiry never serves one that has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kind;
use crate::message::put_record;
use crate::name::Name;
use crate::rrset::{OwnedSet, RrSet};
use crate::sign::{KeyError, KeySet, Validity};
use crate::zone::{NEGATIVE_TTL, Owner, Zone, Zones};

/// How often all signatures are made anew, seconds.
pub const PERIOD_S: u64 = 4 * 86_400;

/// How long signatures are good, from the beginning of their period, seconds: the period, the SOA's expiry of a week, and three days.
pub const LIFE_S: u64 = 14 * 86_400;

/// For clocks that are behind, seconds.
const SKEW_S: u64 = 3600;

const CLASS_IN: u16 = 1;

/// A record in wire form, its name in full.
pub type Wire = Arc<[u8]>;

/// A zone at one serial.
#[derive(Debug)]
pub struct ZoneCopy {
    apex: Name,
    serial: u32,
    period: u64,
    keys: Option<Arc<KeySet>>,
    /// The SOA, then its signatures.
    soa: Vec<Wire>,
    names: BTreeMap<Name, Arc<Signed>>,
    /// How many records there are, the SOA and its signatures left out.
    len: usize,
}

/// A name with all its records.
#[derive(Debug)]
struct Signed {
    content: Vec<OwnedSet>,
    part: Part,
    /// Without its name: the next one of the chain.
    next: Option<Name>,
    records: Vec<Wire>,
}

/// What of a name is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All.
    Ours,
    /// A delegation: DS and the NSEC only (RFC 4035 §2.2).
    Cut,
    /// Below one: nothing, and it is not in the chain.
    Glue,
}

/// What two copies differ in, besides the SOA itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// In the older one only.
    pub removed: Vec<Wire>,
    /// In the newer one only.
    pub added: Vec<Wire>,
}

/// The period that a moment (seconds since 1970) is in.
pub fn period_of(now: u64) -> u64 {
    now / PERIOD_S
}

fn validity(period: u64) -> Validity {
    let begin = period * PERIOD_S;
    Validity::between(begin.saturating_sub(SKEW_S), begin + LIFE_S)
}

impl ZoneCopy {
    /// The zone's copy for a period. What `old` has of it is taken over.
    ///
    /// # Errors
    /// A signature could not be made.
    pub fn of(zones: &Zones, zone: &Zone, period: u64, old: Option<&Self>) -> Result<Self, KeyError> {
        let keys = zone.keys().cloned();
        let same_keys = |old: &&Self| match (&old.keys, &keys) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let old = old.filter(|old| old.period == period).filter(same_keys);
        let mut copy = Self {
            apex: zone.apex().clone(),
            // Both rise, so does the sum; and it is the same at every server that has heard the same.
            serial: zone.serial().wrapping_add(low(period)),
            period,
            keys,
            soa: Vec::new(),
            names: BTreeMap::new(),
            len: 0,
        };
        copy.soa = copy.soa_records(zone)?;
        let mut waiting: Option<(Name, Vec<OwnedSet>, Part)> = None;
        for owner in zones.walk(zone) {
            let part = part_of(&owner, zone);
            let content: Vec<OwnedSet> =
                owner.sets.iter().filter(|set| set.kind != kind::SOA).map(owned).collect();
            if owner.sets.is_empty() {
                continue;
            }
            if part == Part::Glue {
                copy.put(old, owner.name, content, part, None)?;
                continue;
            }
            let next = owner.name.clone();
            if let Some((name, content, part)) = waiting.replace((owner.name, content, part)) {
                copy.put(old, name, content, part, Some(next))?;
            }
        }
        if let Some((name, content, part)) = waiting {
            let apex = copy.apex.clone();
            copy.put(old, name, content, part, Some(apex))?;
        }
        Ok(copy)
    }

    /// The zone.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// Its serial.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The SOA record.
    pub fn soa(&self) -> Option<&Wire> {
        self.soa.first()
    }

    /// The SOA's signatures.
    pub fn soa_signatures(&self) -> &[Wire] {
        self.soa.get(1..).unwrap_or_default()
    }

    /// The record behind a place among all but the SOA, with its own place: from the beginning for none.
    pub fn after(&self, place: Option<&Place>) -> Option<(Place, &Wire)> {
        use std::ops::Bound::{Included, Unbounded};
        let begin = place.map_or(Unbounded, |place| Included(&place.name));
        let mut from = place.map_or(0, |place| place.index + 1);
        for (name, signed) in self.names.range::<Name, _>((begin, Unbounded)) {
            let all = signed.records.len() + self.extra(name).len();
            if from < all {
                let record =
                    signed.records.get(from).or_else(|| self.extra(name).get(from - signed.records.len()))?;
                return Some((Place { name: name.clone(), index: from }, record));
            }
            from = 0;
        }
        None
    }

    /// What belongs to a name and changes with each serial: the SOA's signatures.
    fn extra(&self, name: &Name) -> &[Wire] {
        if *name == self.apex { self.soa_signatures() } else { &[] }
    }

    /// How many records there are, the SOA and its signatures left out.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing but the SOA.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is to be removed from and added to `older` to have this one.
    pub fn since(&self, older: &Self) -> Difference {
        let mut difference =
            Difference { removed: older.soa_signatures().to_vec(), added: self.soa_signatures().to_vec() };
        let mut before = older.names.iter().peekable();
        let mut after = self.names.iter().peekable();
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((one, _)), Some((two, _))) => one.cmp(two),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return difference,
            };
            let gone = if order.is_le() { before.next() } else { None };
            let new = if order.is_ge() { after.next() } else { None };
            let gone = gone.map(|(_, signed)| signed);
            let new = new.map(|(_, signed)| signed);
            if let (Some(gone), Some(new)) = (gone, new)
                && Arc::ptr_eq(gone, new)
            {
                continue;
            }
            let records = |signed: Option<&Arc<Signed>>| {
                signed.map(|signed| signed.records.as_slice()).unwrap_or_default().to_vec()
            };
            let (gone, new) = (records(gone), records(new));
            difference.removed.extend(gone.iter().filter(|record| !new.contains(record)).cloned());
            difference.added.extend(new.iter().filter(|record| !gone.contains(record)).cloned());
        }
    }

    fn put(
        &mut self,
        old: Option<&Self>,
        name: Name,
        content: Vec<OwnedSet>,
        part: Part,
        next: Option<Name>,
    ) -> Result<(), KeyError> {
        let known = old.and_then(|old| old.names.get(&name));
        let same =
            |known: &&Arc<Signed>| known.part == part && known.next == next && known.content == content;
        let signed = match known.filter(same) {
            Some(known) => Arc::clone(known),
            None => Arc::new(self.sign(&name, content, part, next, known.map(AsRef::as_ref))?),
        };
        self.len += signed.records.len();
        self.names.insert(name, signed);
        Ok(())
    }

    /// All records of a name. Sets that it had before keep their signatures.
    fn sign(
        &self,
        name: &Name,
        content: Vec<OwnedSet>,
        part: Part,
        next: Option<Name>,
        known: Option<&Signed>,
    ) -> Result<Signed, KeyError> {
        let mut records = Vec::new();
        for set in &content {
            records.extend(wires(name, &set.borrowed()));
            let signed = match part {
                Part::Ours => true,
                Part::Cut => set.kind == kind::DS,
                Part::Glue => false,
            };
            if !signed {
                continue;
            }
            let kept = known.filter(|known| known.part == part && known.content.contains(set));
            let kept: Vec<Wire> = kept.map(|known| known.signatures(name, set.kind)).unwrap_or_default();
            match kept.is_empty() {
                true => records.extend(self.signatures(name, &set.borrowed())?),
                false => records.extend(kept),
            }
        }
        if let (Some(next), Some(_)) = (&next, &self.keys) {
            let types = content.iter().map(|set| set.kind).chain((*name == self.apex).then_some(kind::SOA));
            let nsec = OwnedSet::new(kind::NSEC, NEGATIVE_TTL, vec![nsec(next, types).into()]);
            records.extend(wires(name, &nsec.borrowed()));
            records.extend(self.signatures(name, &nsec.borrowed())?);
        }
        Ok(Signed { content, part, next, records })
    }

    fn signatures(&self, name: &Name, set: &RrSet<'_>) -> Result<Vec<Wire>, KeyError> {
        let Some(keys) = &self.keys else { return Ok(Vec::new()) };
        let data = keys.sign(name.as_wire(), set, validity(self.period))?;
        Ok(data.iter().filter_map(|data| wire(name, kind::RRSIG, set.ttl, data)).collect())
    }

    fn soa_records(&self, zone: &Zone) -> Result<Vec<Wire>, KeyError> {
        let soa = zone.soa();
        let data: Vec<Box<[u8]>> = soa.data.iter().map(|data| with_serial(data, self.serial)).collect();
        let soa = OwnedSet::new(kind::SOA, soa.ttl, data);
        let mut records: Vec<Wire> = wires(&self.apex, &soa.borrowed()).collect();
        records.extend(self.signatures(&self.apex, &soa.borrowed())?);
        Ok(records)
    }
}

impl Signed {
    /// The signatures of the set of that type.
    fn signatures(&self, name: &Name, kind: u16) -> Vec<Wire> {
        // Name, type, class, TTL, length; then the type covered.
        let fixed = name.as_wire().len();
        let covers = |record: &&Wire| {
            let of = |at: usize| record.get(fixed + at..fixed + at + 2);
            of(0) == Some(&kind::RRSIG.to_be_bytes()[..]) && of(10) == Some(&kind.to_be_bytes()[..])
        };
        self.records.iter().filter(covers).cloned().collect()
    }
}

/// Where a record is in a copy.
#[derive(Debug, Clone)]
pub struct Place {
    name: Name,
    index: usize,
}

fn part_of(owner: &Owner<'_>, zone: &Zone) -> Part {
    match (owner.is_glue, owner.is_cut(zone)) {
        (true, _) => Part::Glue,
        (false, true) => Part::Cut,
        (false, false) => Part::Ours,
    }
}

fn owned(set: &RrSet<'_>) -> OwnedSet {
    OwnedSet::new(set.kind, set.ttl, set.data.iter().map(Into::into).collect())
}

fn wires<'a>(name: &'a Name, set: &'a RrSet<'a>) -> impl Iterator<Item = Wire> + 'a {
    set.data.iter().filter_map(|data| wire(name, set.kind, set.ttl, data))
}

fn wire(name: &Name, kind: u16, ttl: u32, data: &[u8]) -> Option<Wire> {
    let mut record = Vec::with_capacity(name.as_wire().len() + 10 + data.len());
    put_record(&mut record, name.as_wire(), kind, CLASS_IN, ttl, data).then(|| record.into())
}

/// The data of an SOA with another serial: it is before the last four numbers (RFC 1035 §3.3.13).
fn with_serial(data: &[u8], serial: u32) -> Box<[u8]> {
    let mut data: Box<[u8]> = data.into();
    if let Some(at) = data.len().checked_sub(20)
        && let Some(place) = data.get_mut(at..at + 4)
    {
        place.copy_from_slice(&serial.to_be_bytes());
    }
    data
}

/// The data of an NSEC (RFC 4034 §4.1): the next name, and the types that there are, itself and signatures among them.
fn nsec(next: &Name, types: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut types: Vec<u16> = types.chain([kind::NSEC, kind::RRSIG]).collect();
    types.sort_unstable();
    types.dedup();
    let mut data = next.as_wire().to_vec();
    for window in types.chunk_by(|one, two| one >> 8 == two >> 8) {
        let mut bits = [0u8; 32];
        let mut length = 0u8;
        for kind in window {
            let [_, low] = kind.to_be_bytes();
            if let Some(byte) = bits.get_mut(usize::from(low / 8)) {
                *byte |= 0x80 >> (low % 8);
            }
            length = low / 8 + 1;
        }
        let [number, _] = window.first().copied().unwrap_or_default().to_be_bytes();
        data.extend([number, length]);
        data.extend_from_slice(bits.get(..usize::from(length)).unwrap_or_default());
    }
    data
}

fn low(period: u64) -> u32 {
    let [.., a, b, c, d] = period.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_is_that_of_rfc_4034() {
        // §4.3: A MX RRSIG NSEC TYPE1234.
        let next: Name = "host.example.com".parse().unwrap();
        let data = nsec(&next, [1, 15, 1234].into_iter());
        let bitmap = &data[next.as_wire().len()..];
        let mut expected = vec![0x00, 0x06, 0x40, 0x01, 0x00, 0x00, 0x00, 0x03, 0x04, 0x1b];
        expected.extend([0; 26]);
        expected.push(0x20);
        assert_eq!(bitmap, expected);
    }

    #[test]
    fn signatures_outlive_the_expiry_of_a_secondary_at_the_end_of_their_period() {
        let begin = 5000 * PERIOD_S;
        for now in [begin, begin + PERIOD_S - 1] {
            let Validity { inception, expiration } = validity(period_of(now));
            assert!(u64::from(inception) + SKEW_S <= now);
            assert!(u64::from(expiration) >= now + 7 * 86_400 + 2 * 86_400);
        }
    }

    #[test]
    fn an_soa_gets_its_serial_and_nothing_else() {
        let data: Vec<u8> = [&b"\x00\x00"[..], &[1; 20]].concat();
        let changed = with_serial(&data, 0x0a0b_0c0d);
        assert_eq!(changed[..6], [0, 0, 10, 11, 12, 13]);
        assert_eq!(changed[6..], data[6..]);
        assert_eq!(with_serial(b"x", 1).as_ref(), b"x");
    }
}
