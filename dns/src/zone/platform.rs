//! The names that are not machines': what is derived from the fleet's configuration, its entries, challenges and keys.
//!
//! | name | records |
//! | --- | --- |
//! | apex | NS, addresses of all entries, CAA, DNSKEY, CDS, CDNSKEY |
//! | name servers in the zone | their addresses |
//! | `<entry>` | its addresses |
//! | `edge` | addresses of all entries: where TLS ends; machines' HTTPS records lead here |
//! | `_acme-challenge.<name>` | texts that an issuer wants to see of a name in one of our zones |
//! | `<domain>._acme` | the same for a domain elsewhere, whose owner put a CNAME to it at `_acme-challenge.<domain>` |
//! | further zones of ours below this one | NS, DS |
//! | what the operator wrote | as written |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mashines_fleet::id::{DomainName, HostId};
use mashines_fleet::rdata;
use mashines_fleet::record::{FleetConfig, OwnRecord, Show};
use mashines_fleet::view::View;
use smol_str::SmolStr;

use super::fixed::{Builder, Fixed};
use super::machine::{CHALLENGE, CHALLENGE_TTL, TTL, text_data};
use super::project::{addresses, entries, top_label};
use super::{APEX_TTL, Complaint, NEGATIVE_TTL, Zone, ZoneKind};
use crate::kind;
use crate::name::{self, Name};
use crate::reverse::NibblePrefix;
use crate::rrset::{OwnedSet, address};
use crate::sign::KeySet;

/// The label below the apex that all entries' addresses are at.
pub const EDGE: &[u8] = b"edge";

/// The label below the apex that challenges of domains elsewhere are below.
pub const ACME: &[u8] = b"_acme";

/// Addresses of either family that a machine's HTTPS record repeats: enough to begin with.
const HINTS: usize = 4;

/// What the fixed names are made of. The same value gives the same names.
#[derive(Debug)]
pub(super) struct Platform {
    pub apex: Name,
    pub entries: Vec<Entry>,
    /// All our zones, to know which names are ours.
    ours: Vec<(Name, ZoneKind)>,
    /// Name and text.
    challenges: Vec<(Name, String)>,
    keys: BTreeMap<DomainName, Option<Arc<KeySet>>>,
}

/// An entry, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: HostId,
    pub ipv4: Vec<Ipv4Addr>,
    pub ipv6: Vec<Ipv6Addr>,
}

/// A zone's keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub set: Option<Arc<KeySet>>,
    pub is_locked: bool,
}

impl Keys {
    /// Whether `zone` has the same.
    pub fn are_those_of(&self, zone: &Zone) -> bool {
        self.is_locked == zone.keys_missing && is_same(&self.set, &zone.keys)
    }
}

/// The same object: opened once, it is the same as long as its record is.
fn is_same(one: &Option<Arc<KeySet>>, two: &Option<Arc<KeySet>>) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => Arc::ptr_eq(one, two),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl PartialEq for Platform {
    fn eq(&self, other: &Self) -> bool {
        self.apex == other.apex
            && self.entries == other.entries
            && self.ours == other.ours
            && self.challenges == other.challenges
            && self.keys.len() == other.keys.len()
            && self.keys.iter().zip(&other.keys).all(|(one, two)| one.0 == two.0 && is_same(one.1, two.1))
    }
}

impl Platform {
    pub fn of(
        view: &View,
        config: &FleetConfig,
        apex: Name,
        keys: BTreeMap<DomainName, Option<Arc<KeySet>>>,
        complaints: &mut Vec<Complaint>,
    ) -> Self {
        let mut platform =
            Self { entries: entries(view), ours: Vec::new(), challenges: Vec::new(), apex, keys };
        platform.ours = platform.apexes(config);
        for challenge in view.challenges.values() {
            let Show::Dns01 { value } = &challenge.show else { continue };
            match platform.challenge_name(challenge.name.as_str()) {
                Ok(None) => {}
                Ok(Some(name)) => platform.challenges.push((name, value.clone())),
                Err(error) => {
                    complaints.push(Complaint(format!("the challenge for {}: {error}", challenge.name)))
                }
            }
        }
        platform
    }

    /// All zones: the fleet's, reverse ones, the operator's.
    pub fn apexes(&self, config: &FleetConfig) -> Vec<(Name, ZoneKind)> {
        let mut zones = vec![(self.apex.clone(), ZoneKind::Fleet)];
        let reverse = NibblePrefix::covering(config.prefix).into_iter();
        zones.extend(reverse.map(|prefix| (prefix.name(), ZoneKind::Reverse)));
        for zone in &config.zones {
            if let Ok(name) = zone.name.as_str().parse::<Name>()
                && !zones.iter().any(|(known, _)| *known == name)
            {
                zones.push((name, ZoneKind::Static));
            }
        }
        zones
    }

    /// The machine that `name` is at or below, and what is in front of its slug.
    pub fn machine_of<'a>(&self, name: &'a Name) -> Option<(SmolStr, &'a [u8])> {
        let nearest = self.zone_of(name)?;
        let relative = name.relative_to(&self.apex).filter(|_| nearest.1 == ZoneKind::Fleet)?;
        let slug = top_label(relative)?;
        let above = relative.get(..relative.len().checked_sub(slug.len() + 1)?)?;
        Some((SmolStr::new(slug), above))
    }

    fn zone_of(&self, name: &Name) -> Option<&(Name, ZoneKind)> {
        let ours = self.ours.iter().filter(|(apex, _)| name.is_within(apex));
        ours.max_by_key(|(apex, _)| apex.label_count())
    }

    /// Where the text for `name` belongs; none when below a machine.
    fn challenge_name(&self, name: &str) -> Result<Option<Name>, name::BadName> {
        let parsed: Name = name.parse()?;
        if self.machine_of(&parsed).is_some() {
            return Ok(None);
        }
        match self.zone_of(&parsed) {
            Some(_) => parsed.below(CHALLENGE).map(Some),
            None => self.apex.child(ACME)?.below(&name::relative(name)?).map(Some),
        }
    }

    pub fn keys_of(&self, apex: &Name) -> Keys {
        match id_of(apex).and_then(|id| self.keys.get(&id)) {
            Some(Some(set)) => Keys { set: Some(Arc::clone(set)), is_locked: false },
            Some(None) => Keys { set: None, is_locked: true },
            None => Keys::default(),
        }
    }

    /// The HTTPS record of each machine (RFC 9460): browsers that know it come to the edge on either family.
    pub fn https(&self) -> Option<OwnedSet> {
        if self.entries.is_empty() {
            return None;
        }
        let target = self.apex.child(EDGE).ok()?;
        let mut data = 1u16.to_be_bytes().to_vec();
        data.extend_from_slice(target.as_wire());
        let mut parameter = |key: u16, value: &[u8]| {
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
            if !value.is_empty() {
                data.extend_from_slice(&key.to_be_bytes());
                data.extend_from_slice(&length.to_be_bytes());
                data.extend_from_slice(value);
            }
        };
        let ipv4 = self.entries.iter().flat_map(|entry| &entry.ipv4).take(HINTS);
        let ipv6 = self.entries.iter().flat_map(|entry| &entry.ipv6).take(HINTS);
        // alpn, ipv4hint, ipv6hint: in the order of their numbers.
        parameter(1, b"\x02h2\x08http/1.1");
        parameter(4, &ipv4.flat_map(Ipv4Addr::octets).collect::<Vec<_>>());
        parameter(6, &ipv6.flat_map(Ipv6Addr::octets).collect::<Vec<_>>());
        Some(OwnedSet::new(kind::HTTPS, TTL, vec![data.into()]))
    }

    /// The fixed names of one zone.
    pub fn fixed(
        &self,
        config: &FleetConfig,
        apex: &Name,
        kind: ZoneKind,
        complaints: &mut Vec<Complaint>,
    ) -> Fixed {
        let servers = servers_of(config, complaints);
        let mut names = Builder::new(apex.clone());
        let keys = self.keys_of(apex);
        for set in keys.set.iter().flat_map(|keys| keys.apex_sets()) {
            names.add_set(apex, &set);
        }
        for (server, ips) in &servers {
            names.add(apex, kind::NS, APEX_TTL, server.as_wire());
            for ip in ips {
                let (kind, data) = address(*ip);
                names.add(server, kind, TTL, data);
            }
        }
        match kind {
            ZoneKind::Fleet => self.add_entries(apex, &mut names, complaints),
            ZoneKind::Reverse | ZoneKind::Static => {}
        }
        if kind == ZoneKind::Fleet {
            self.add_issuers(config, apex, &mut names, complaints);
        }
        for (name, text) in &self.challenges {
            names.add(name, kind::TXT, CHALLENGE_TTL, text_data(text));
        }
        let written =
            config.zones.iter().filter(|zone| zone.name.as_str().parse::<Name>().as_ref() == Ok(apex));
        for record in written.flat_map(|zone| &zone.records) {
            if let Err(why) = add_written(apex, record, &mut names) {
                complaints.push(Complaint(format!(
                    "zone {apex}: the record {} {}: {why}",
                    record.name, record.kind
                )));
            }
        }
        self.delegate_ours(apex, &servers, &mut names);
        names.build()
    }

    fn add_entries(&self, apex: &Name, names: &mut Builder, complaints: &mut Vec<Complaint>) {
        let edge = apex.child(EDGE).ok();
        for entry in &self.entries {
            let own = apex.child(entry.id.as_str().as_bytes());
            if own.is_err() {
                complaints.push(Complaint(format!("entry {}: its name below {apex} is too long", entry.id)));
            }
            for ip in addresses(entry) {
                let (kind, data) = address(ip);
                for name in own.iter().chain(&edge).chain([apex]) {
                    names.add(name, kind, TTL, data.clone());
                }
            }
        }
    }

    fn add_issuers(
        &self,
        config: &FleetConfig,
        apex: &Name,
        names: &mut Builder,
        complaints: &mut Vec<Complaint>,
    ) {
        for issuer in &config.caa_issuers {
            match rdata::encode("CAA", &format!("0 issue \"{issuer}\"")) {
                Ok(data) => names.add(apex, kind::CAA, APEX_TTL, data.bytes),
                Err(error) => {
                    complaints.push(Complaint(format!("the issuer {issuer:?} of caa_issuers: {error}")))
                }
            }
        }
    }

    /// Zones of ours right below this one: their NS, and DS where they are signed.
    fn delegate_ours(&self, apex: &Name, servers: &[(Name, Vec<IpAddr>)], names: &mut Builder) {
        for (child, _) in &self.ours {
            let above = child.parent().and_then(|parent| self.zone_of(&parent).map(|(apex, _)| apex.clone()));
            if above.as_ref() != Some(apex) {
                continue;
            }
            for (server, _) in servers {
                names.add(child, kind::NS, APEX_TTL, server.as_wire());
            }
            if let Some(keys) = self.keys_of(child).set {
                names.add_set(child, &keys.ds_set());
            }
        }
    }
}

fn add_written(apex: &Name, record: &OwnRecord, names: &mut Builder) -> Result<(), String> {
    let relative = name::relative(&record.name).map_err(|error| error.to_string())?;
    let name = apex.below(&relative).map_err(|error| error.to_string())?;
    let data = rdata::encode(&record.kind, &record.data).map_err(|error| error.to_string())?;
    if kind::is_reserved(data.kind) {
        return Err("the server makes these itself".to_owned());
    }
    if data.kind == kind::CNAME && name == *apex {
        return Err(
            "the top of a zone has other records, beside which no CNAME can be (RFC 1034 §3.6.2)".to_owned()
        );
    }
    names.add(&name, data.kind, record.ttl, data.bytes);
    Ok(())
}

/// The fleet's name servers.
pub(super) fn servers_of(config: &FleetConfig, complaints: &mut Vec<Complaint>) -> Vec<(Name, Vec<IpAddr>)> {
    let mut servers = Vec::new();
    for server in &config.name_servers {
        match server.name.parse::<Name>() {
            Ok(name) => servers.push((name, server.addresses.clone())),
            Err(error) => complaints.push(Complaint(format!("a name server: {error}"))),
        }
    }
    if servers.is_empty() {
        complaints
            .push(Complaint("the fleet's configuration names no name server: the zones have no NS".into()));
    }
    servers
}

/// The start of authority.
pub(super) fn soa(apex: &Name, servers: &[(Name, Vec<IpAddr>)], serial: u32) -> OwnedSet {
    let primary = servers.first().map_or(apex, |(name, _)| name);
    let mailbox = apex.child(b"hostmaster").unwrap_or_else(|_| apex.clone());
    let mut data = [primary.as_wire(), mailbox.as_wire()].concat();
    // Serial, refresh, retry, expire, minimum (RFC 1035 §3.3.13).
    for number in [serial, 300, 60, 604_800, NEGATIVE_TTL] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    OwnedSet::new(kind::SOA, APEX_TTL, vec![data.into()])
}

/// The id that a zone's keys have.
fn id_of(apex: &Name) -> Option<DomainName> {
    apex.to_string().trim_end_matches('.').parse().ok()
}
