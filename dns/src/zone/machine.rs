//! The names of one machine: its slug, what its owner put there and below it, and a wildcard over the rest.
//!
//! At the slug the platform's addresses and key stay as they are: whoever trusts the name must reach the machine. All else there is
//! the owner's, and below it everything is.

use std::sync::Arc;

use mashines_fleet::rdata;
use mashines_fleet::record::{Machine, OwnRecord};

use super::Complaint;
use crate::kind;
use crate::name;
use crate::rrset::{Data, OwnedSet, RrSet};
use crate::sshfp::sshfp;

/// How long a resolver may keep a machine's or an entry's records, seconds. Addresses never change, so this only bounds how
/// long a destroyed machine's name lives on.
pub const TTL: u32 = 60;

/// Below which name an issuer looks for its challenge (RFC 8555 §8.4).
pub const CHALLENGE: &[u8] = b"\x0f_acme-challenge";

/// How long a resolver may keep a challenge, seconds: the next one has other text.
pub const CHALLENGE_TTL: u32 = 5;

/// What is kept of a machine: a hundred bytes, of which all its records are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineNames {
    /// The record's id, as a number.
    pub id: u64,
    ipv6: [u8; 16],
    ipv4: Ipv4Source,
    sshfp: Option<[u8; 34]>,
    own: Option<Arc<OwnNames>>,
}

/// Where the A record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Source {
    /// There is none.
    None,
    /// An address that names this machine among its account's.
    Own([u8; 4]),
    /// The addresses of the entry with this number: the machine has a shared port there.
    Entry(u16),
}

/// What all machines have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// IPv4 addresses of entries, by their numbers.
    pub entries: Vec<Box<[[u8; 4]]>>,
    /// The HTTPS record that leads browsers to the edge (RFC 9460); none while no entry is known.
    pub https: Option<OwnedSet>,
}

/// Names at and below a slug that have records of their own, and the empty non-terminals between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnNames(Vec<(Box<[u8]>, Vec<OwnedSet>)>);

impl OwnNames {
    /// The sets at a relative wire name (without the root; empty for the slug itself).
    pub fn get(&self, relative: &[u8]) -> Option<&[OwnedSet]> {
        self.0.iter().find(|(name, _)| **name == *relative).map(|(_, sets)| sets.as_slice())
    }

    /// All names in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[OwnedSet])> {
        self.0.iter().map(|(name, sets)| (name.as_ref(), sets.as_slice()))
    }
}

impl MachineNames {
    /// What there is to say about `machine`. `challenges`: relative names and texts that an issuer wants to see.
    pub fn project(
        machine: &Machine,
        challenges: &[(Vec<u8>, String)],
        entry: impl FnOnce(&mashines_fleet::id::HostId) -> u16,
        complaints: &mut Vec<Complaint>,
    ) -> Self {
        let ipv4 = match (&machine.net.entry_ipv4, &machine.net.ssh_port) {
            (Some(own), _) => Ipv4Source::Own(own.octets()),
            (None, Some(port)) => Ipv4Source::Entry(entry(&port.entry)),
            (None, None) => Ipv4Source::None,
        };
        let own = own_names(machine, challenges, complaints);
        Self {
            id: number_of(machine),
            ipv6: machine.net.ipv6.octets(),
            ipv4,
            sshfp: machine.host_key_public.as_deref().and_then(sshfp),
            own: own.map(Arc::new),
        }
    }

    /// Its address.
    pub fn address(&self) -> std::net::Ipv6Addr {
        self.ipv6.into()
    }

    /// What its owner put below the slug.
    pub fn own(&self) -> Option<&OwnNames> {
        self.own.as_deref()
    }

    /// The set at the slug, or at the wildcard below it.
    pub fn rrset<'a>(&'a self, shared: &'a Shared, place: Place, kind: u16) -> Option<RrSet<'a>> {
        let own = self.own_sets(place).iter().find(|set| set.kind == kind).map(OwnedSet::borrowed);
        match place {
            Place::Slug if kind != kind::HTTPS => self.platforms(shared, place, kind).or(own),
            Place::Slug => own.or_else(|| self.platforms(shared, place, kind)),
            Place::Wildcard => own.or_else(|| self.platforms(shared, place, kind)),
        }
    }

    /// All sets, by type.
    pub fn sets<'a>(&'a self, shared: &'a Shared, place: Place) -> Vec<RrSet<'a>> {
        let own = self.own_sets(place);
        let mut kinds: Vec<u16> = own.iter().map(|set| set.kind).collect();
        if !own.iter().any(|set| set.kind == kind::CNAME) {
            kinds.extend([kind::A, kind::AAAA, kind::SSHFP, kind::HTTPS]);
        }
        kinds.sort_unstable();
        kinds.dedup();
        kinds.into_iter().filter_map(|kind| self.rrset(shared, place, kind)).collect()
    }

    fn own_sets(&self, place: Place) -> &[OwnedSet] {
        let relative: &[u8] = match place {
            Place::Slug => b"",
            Place::Wildcard => b"\x01*",
        };
        self.own.as_deref().and_then(|own| own.get(relative)).unwrap_or_default()
    }

    fn platforms<'a>(&'a self, shared: &'a Shared, place: Place, kind: u16) -> Option<RrSet<'a>> {
        let set = |data| Some(RrSet { kind, ttl: TTL, data });
        match kind {
            kind::AAAA if !self.is_alias(place) => set(Data::One(&self.ipv6)),
            kind::A if !self.is_alias(place) => match &self.ipv4 {
                Ipv4Source::None => None,
                Ipv4Source::Own(address) => set(Data::One(address)),
                Ipv4Source::Entry(number) => {
                    let addresses = shared.entries.get(usize::from(*number))?;
                    if addresses.is_empty() { None } else { set(Data::Ipv4(addresses)) }
                }
            },
            kind::SSHFP if place == Place::Slug => set(Data::One(self.sshfp.as_ref()?)),
            kind::HTTPS if !self.is_alias(place) => shared.https.as_ref().map(OwnedSet::borrowed),
            _ => None,
        }
    }

    /// An owner's CNAME at the wildcard stands alone.
    fn is_alias(&self, place: Place) -> bool {
        place == Place::Wildcard && self.own_sets(place).iter().any(|set| set.kind == kind::CNAME)
    }
}

/// Where in a machine's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `slug.mashine.dev`.
    Slug,
    /// `*.slug.mashine.dev`: the machine's addresses for each name below it that nobody wrote.
    Wildcard,
}

/// A machine's id as a number: 14 hex digits.
pub fn number_of(machine: &Machine) -> u64 {
    u64::from_str_radix(machine.id.as_str(), 16).unwrap_or(u64::MAX)
}

fn own_names(
    machine: &Machine,
    challenges: &[(Vec<u8>, String)],
    complaints: &mut Vec<Complaint>,
) -> Option<OwnNames> {
    if machine.records.is_empty() && challenges.is_empty() {
        return None;
    }
    let mut names: Vec<(Vec<u8>, Vec<OwnedSet>)> = Vec::new();
    for record in &machine.records {
        match own_data(record) {
            Ok(OwnData { relative, kind, data }) => put(&mut names, relative, kind, record.ttl, data),
            Err(why) => complaints.push(Complaint(format!(
                "machine {}: the record {} {} of its owner is not served: {why}",
                machine.slug, record.name, record.kind
            ))),
        }
    }
    for (relative, text) in challenges {
        put(&mut names, relative.clone(), kind::TXT, CHALLENGE_TTL, text_data(text));
    }
    for (relative, sets) in &mut names {
        // RFC 1034 §3.6.2: an alias stands alone. Control refuses such records; what is older gives way.
        if sets.len() > 1 && sets.iter().any(|set| set.kind == kind::CNAME) {
            sets.retain(|set| set.kind != kind::CNAME);
            let name = String::from_utf8_lossy(relative).into_owned();
            complaints.push(Complaint(format!(
                "machine {}: the CNAME at {name:?} stands beside other records and is not served",
                machine.slug
            )));
        }
    }
    Some(with_non_terminals(names))
}

fn put(names: &mut Vec<(Vec<u8>, Vec<OwnedSet>)>, relative: Vec<u8>, kind: u16, ttl: u32, data: Box<[u8]>) {
    let at = names.iter().position(|(name, _)| *name == relative).unwrap_or_else(|| {
        names.push((relative, Vec::new()));
        names.len() - 1
    });
    let Some((_, sets)) = names.get_mut(at) else { return };
    match sets.iter().position(|set| set.kind == kind) {
        Some(at) => {
            let set = sets.swap_remove(at);
            sets.push(set.merged(ttl, vec![data]));
        }
        None => sets.push(OwnedSet::new(kind, ttl, vec![data])),
    }
}

/// An owner's record, read.
struct OwnData {
    relative: Vec<u8>,
    kind: u16,
    data: Box<[u8]>,
}

fn own_data(record: &OwnRecord) -> Result<OwnData, String> {
    let relative = name::relative(&record.name).map_err(|error| error.to_string())?;
    let data = rdata::encode(&record.kind, &record.data).map_err(|error| error.to_string())?;
    if kind::is_reserved(data.kind) || matches!(data.kind, kind::NS | kind::DS) {
        return Err(format!("{} is made by the server, or would give the name away", record.kind));
    }
    if relative.is_empty() && data.kind == kind::CNAME {
        return Err("the machine's own name has addresses, beside which no CNAME can be".to_owned());
    }
    Ok(OwnData { relative, kind: data.kind, data: data.bytes.into() })
}

fn with_non_terminals(mut names: Vec<(Vec<u8>, Vec<OwnedSet>)>) -> OwnNames {
    for at in 0..names.len() {
        let mut above = names.get(at).map(|(name, _)| name.clone()).unwrap_or_default();
        while let Some((&length, _)) = above.split_first() {
            above = above.split_off(above.len().min(usize::from(length) + 1));
            if !above.is_empty() && !names.iter().any(|(name, _)| *name == above) {
                names.push((above.clone(), Vec::new()));
            }
        }
    }
    for (_, sets) in &mut names {
        sets.sort_by_key(|set| set.kind);
    }
    names.sort_by(|one, two| name::canonical_order(&one.0, &two.0));
    OwnNames(names.into_iter().map(|(name, sets)| (name.into(), sets)).collect())
}

/// A text as the data of a TXT record: strings of at most 255 bytes.
pub fn text_data(text: &str) -> Box<[u8]> {
    let strings = text.as_bytes().chunks(255).flat_map(|part| {
        let length = u8::try_from(part.len()).unwrap_or(u8::MAX);
        std::iter::once(length).chain(part.iter().copied())
    });
    strings.collect()
}
