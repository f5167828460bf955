//! What there is to say about each name: a projection of the replica, and finding a name in it.
//!
//! ```text
//! View ──Projector (project.rs)──▶ Zones ──lookup──▶ Node ──▶ RrSet, RrSet, …
//!        what changed, not all       │
//!                                    ├─ fixed.rs     few names, made anew as a whole: apex, servers, entries, operator's
//!                                    ├─ machine.rs   a hundred bytes a machine, of which its records are made when asked for
//!                                    ├─ ordered.rs   machines by slug and addresses by number, in canonical order
//!                                    └─ walk.rs      every name of a zone in canonical order, for transfers
//! ```
//!
//! Invariants:
//! - A name exists while its machine's record does and nobody asked for its destruction. Sleeping and stopped machines keep theirs.
//! - Names of the platform (apex, name servers, entries) win over a machine that carries the same.
//! - A [`Zones`] never changes: a copy is cheap and shares what is the same, so who reads sees one moment.
//! - A zone's serial is the low 32 bits of the revision that its content last changed with.

pub mod fixed;
pub mod machine;
mod ordered;
mod platform;
mod project;
mod walk;

use std::net::Ipv6Addr;
use std::sync::Arc;

use smol_str::SmolStr;

pub use self::project::{Applied, Projector, Touched};
pub use self::walk::Owner;
use crate::kind;
use crate::name::{Name, Path};
use crate::reverse::NibblePrefix;
use crate::rrset::{Data, OwnedSet, RrSet};
use crate::sign::KeySet;
use fixed::Fixed;
use machine::{MachineNames, Place, Shared, TTL};
use ordered::Ordered;

/// How long a resolver may keep "no such name", seconds (RFC 2308 §5): short, for the name that was asked for just before its launch.
pub const NEGATIVE_TTL: u32 = 5;

/// How long a resolver may keep the apex's NS and SOA, seconds.
pub const APEX_TTL: u32 = 300;

/// A record of the fleet that cannot be served, and why. The rest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint(pub String);

/// Everything this server is authoritative for, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Zones {
    /// Those with more labels first, so that the first that fits is the nearest.
    zones: Vec<Arc<Zone>>,
    machines: Ordered<SmolStr, MachineNames>,
    /// Whose address it is: the label below the fleet's apex.
    pointers: Ordered<Ipv6Addr, SmolStr>,
    shared: Arc<Shared>,
    /// The fleet's domain, which pointers lead to.
    domain: Option<Name>,
}

/// One zone.
#[derive(Debug, Clone)]
pub struct Zone {
    apex: Name,
    labels: usize,
    kind: ZoneKind,
    serial: u32,
    soa: OwnedSet,
    fixed: Arc<Fixed>,
    keys: Option<Arc<KeySet>>,
    keys_missing: bool,
}

/// What a zone consists of, its fixed names aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneKind {
    /// The fleet's domain: its machines.
    Fleet,
    /// A part of `ip6.arpa`: a pointer for each address.
    Reverse,
    /// Nothing but what the operator wrote.
    Static,
}

impl Zone {
    /// Its top.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// Labels of the apex.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// What it consists of.
    pub fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// Its serial.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The start of authority with the TTL of a positive answer.
    pub fn soa(&self) -> RrSet<'_> {
        self.soa.borrowed()
    }

    /// The start of authority as a negative answer carries it: RFC 2308 §3, the lesser of its own TTL and its MINIMUM.
    pub fn negative_soa(&self) -> RrSet<'_> {
        RrSet { ttl: NEGATIVE_TTL.min(APEX_TTL), ..self.soa.borrowed() }
    }

    /// What it is signed with; none while it has no keys.
    pub fn keys(&self) -> Option<&Arc<KeySet>> {
        self.keys.as_ref()
    }

    /// It has keys, which this server cannot open: whatever it said unsigned would be taken for forged.
    pub fn is_locked(&self) -> bool {
        self.keys_missing
    }

    /// The names that are not machines' or pointers.
    pub fn fixed(&self) -> &Fixed {
        &self.fixed
    }
}

/// What is known about a name.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// It is in none of our zones.
    OffZone,
    /// Our zone, no such name and none below it.
    NoName(&'a Arc<Zone>),
    /// It is at or below a delegation of ours, which begins at the last `depth` labels.
    Delegation {
        /// The delegating zone.
        zone: &'a Arc<Zone>,
        /// Labels of the delegated name.
        depth: usize,
        /// What is known there: NS, perhaps DS.
        sets: &'a [OwnedSet],
    },
    /// The name exists, or a wildcard stands for it; without records it is an empty non-terminal.
    Found {
        /// Its zone.
        zone: &'a Arc<Zone>,
        /// What is there.
        node: Node<'a>,
        /// A wildcard stands for it: there are as many such names as anybody can think of.
        by_wildcard: bool,
    },
}

/// A name that exists.
#[derive(Debug, Clone, Copy)]
pub enum Node<'a> {
    /// The top of a zone.
    Apex(&'a Zone),
    /// A name with sets of its own; none at an empty non-terminal.
    Sets(&'a [OwnedSet]),
    /// A machine, or the wildcard below it.
    Machine(&'a Shared, &'a MachineNames, Place),
    /// An address: whose, and the fleet's domain.
    Pointer(&'a SmolStr, &'a Name),
}

impl<'a> Node<'a> {
    /// The set of that type.
    pub fn rrset(&self, kind: u16) -> Option<RrSet<'a>> {
        let of = |sets: &'a [OwnedSet]| sets.iter().find(|set| set.kind == kind).map(OwnedSet::borrowed);
        match *self {
            Self::Apex(zone) if kind == kind::SOA => Some(zone.soa()),
            Self::Apex(zone) => of(zone.fixed.get(zone.apex.as_wire()).unwrap_or_default()),
            Self::Sets(sets) => of(sets),
            Self::Machine(shared, machine, place) => machine.rrset(shared, place, kind),
            Self::Pointer(label, domain) if kind == kind::PTR => pointer(label, domain),
            Self::Pointer(..) => None,
        }
    }

    /// All its sets, by type.
    pub fn sets(&self) -> Vec<RrSet<'a>> {
        match *self {
            Self::Apex(zone) => {
                let fixed = zone.fixed.get(zone.apex.as_wire()).unwrap_or_default();
                let mut sets: Vec<_> = fixed.iter().map(OwnedSet::borrowed).chain([zone.soa()]).collect();
                sets.sort_by_key(|set| set.kind);
                sets
            }
            Self::Sets(sets) => sets.iter().map(OwnedSet::borrowed).collect(),
            Self::Machine(shared, machine, place) => machine.sets(shared, place),
            Self::Pointer(label, domain) => pointer(label, domain).into_iter().collect(),
        }
    }
}

fn pointer<'a>(label: &SmolStr, domain: &Name) -> Option<RrSet<'a>> {
    let target = domain.child(label.as_bytes()).ok()?;
    Some(RrSet { kind: kind::PTR, ttl: TTL, data: Data::Made(target.as_wire().into()) })
}

impl Zones {
    /// All zones, those with more labels first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.iter()
    }

    /// The zone with exactly that apex.
    pub fn zone(&self, apex: &Name) -> Option<&Arc<Zone>> {
        self.zones.iter().find(|zone| zone.apex == *apex)
    }

    /// How many machines have names.
    pub fn machine_count(&self) -> usize {
        self.machines.len()
    }

    /// The zone that answers for a name. DS belongs to the zone above a delegation (RFC 4035 §3.1.4.1).
    pub fn zone_of(&self, path: &Path<'_>, kind: u16) -> Option<&Arc<Zone>> {
        let holds = |zone: &&Arc<Zone>| {
            zone.labels <= path.labels() && path.suffix(zone.labels) == zone.apex.as_wire()
        };
        let mut fitting = self.zones.iter().filter(holds);
        let nearest = fitting.next()?;
        if kind == kind::DS && nearest.labels == path.labels() {
            return Some(fitting.next().unwrap_or(nearest));
        }
        Some(nearest)
    }

    /// What there is at a name, for a question of that type.
    pub fn lookup<'a>(&'a self, path: &Path<'_>, kind: u16) -> Lookup<'a> {
        let Some(zone) = self.zone_of(path, kind) else { return Lookup::OffZone };
        if zone.kind == ZoneKind::Reverse {
            return match self.reverse_node(zone, path) {
                Some(node) => Lookup::Found { zone, node, by_wildcard: false },
                None => Lookup::NoName(zone),
            };
        }
        let mut node = Node::Apex(zone);
        // From the apex down: a name that does not exist costs one look, however long it is.
        for depth in zone.labels + 1..=path.labels() {
            let Some(next) = self.forward_node(zone, path, depth) else {
                // RFC 4592 §3.3.1: only the wildcard at the closest name that exists stands for those below it.
                return match self.wildcard(zone, path, depth - 1) {
                    Some(node) => Lookup::Found { zone, node, by_wildcard: true },
                    None => Lookup::NoName(zone),
                };
            };
            if let (true, Node::Sets(sets)) = (zone.fixed.has_cuts, next)
                && sets.iter().any(|set| set.kind == kind::NS)
                && !(depth == path.labels() && kind == kind::DS)
            {
                return Lookup::Delegation { zone, depth, sets };
            }
            node = next;
        }
        Lookup::Found { zone, node, by_wildcard: false }
    }

    /// What there is at the last `depth` labels, which are below the apex.
    fn forward_node<'a>(&'a self, zone: &'a Arc<Zone>, path: &Path<'_>, depth: usize) -> Option<Node<'a>> {
        let fixed = zone.fixed.get(path.suffix(depth));
        match fixed {
            Some(sets) if !sets.is_empty() => Some(Node::Sets(sets)),
            // A fixed name without records may still be a machine's: `ns` above `a.ns.mashine.dev`.
            fixed => self.machine_node(zone, path, depth).or_else(|| fixed.map(Node::Sets)),
        }
    }

    fn machine_node<'a>(&'a self, zone: &'a Zone, path: &Path<'_>, depth: usize) -> Option<Node<'a>> {
        let machine = self.machine_at(zone, path)?;
        let relative = path.between(depth, zone.labels + 1);
        let node = |place| Node::Machine(&self.shared, machine, place);
        match relative {
            b"" => Some(node(Place::Slug)),
            b"\x01*" => Some(node(Place::Wildcard)),
            _ => machine.own().and_then(|own| own.get(relative)).map(Node::Sets),
        }
    }

    /// The machine that the label below the apex names, unless that is a name of the platform.
    fn machine_at(&self, zone: &Zone, path: &Path<'_>) -> Option<&MachineNames> {
        if zone.kind != ZoneKind::Fleet {
            return None;
        }
        let slug = std::str::from_utf8(path.label(zone.labels + 1)).ok()?;
        let machine = self.machines.get(slug)?;
        let fixed = zone.fixed.get(path.suffix(zone.labels + 1));
        fixed.is_none_or(<[_]>::is_empty).then_some(machine)
    }

    /// The wildcard right below the last `depth` labels.
    fn wildcard<'a>(&'a self, zone: &'a Arc<Zone>, path: &Path<'_>, depth: usize) -> Option<Node<'a>> {
        if depth == zone.labels + 1
            && let Some(machine) = self.machine_at(zone, path)
        {
            return Some(Node::Machine(&self.shared, machine, Place::Wildcard));
        }
        let mut wildcard = b"\x01*".to_vec();
        if depth > zone.labels
            && let Some(own) = self.machine_at(zone, path).and_then(MachineNames::own)
        {
            wildcard.extend_from_slice(path.between(depth, zone.labels + 1));
            if let Some(sets) = own.get(&wildcard) {
                return Some(Node::Sets(sets));
            }
            wildcard.truncate(2);
        }
        wildcard.extend_from_slice(path.suffix(depth));
        zone.fixed.get(&wildcard).map(Node::Sets)
    }

    /// PTR at a whole address; nothing at a prefix of one, which is an empty non-terminal.
    fn reverse_node<'a>(&'a self, zone: &'a Arc<Zone>, path: &Path<'_>) -> Option<Node<'a>> {
        if path.labels() == zone.labels {
            return Some(Node::Apex(zone));
        }
        if let Some(sets) = zone.fixed.get(path.wire()) {
            return Some(Node::Sets(sets));
        }
        let prefix = NibblePrefix::parse(path.wire())?;
        let domain = self.domain.as_ref()?;
        if let Some(address) = prefix.address() {
            return self.pointers.get(&address).map(|label| Node::Pointer(label, domain));
        }
        let (first, last) = prefix.range();
        let (next, _) = self.pointers.iter_from(&first).next()?;
        (*next <= last).then_some(Node::Sets(&[]))
    }
}
