//! Every name of a zone in canonical order (RFC 4034 §6.1), with its sets: what a transfer sends and a chain of NSEC goes along.
//!
//! Nothing is sorted here: fixed names, machines and pointers are in that order, and a machine's names follow each other.

use std::cmp::Ordering;
use std::iter::Peekable;

use super::machine::{MachineNames, Place};
use super::{Node, Zone, ZoneKind, Zones};
use crate::kind;
use crate::name::{Name, canonical_order};
use crate::reverse::NibblePrefix;
use crate::rrset::{OwnedSet, RrSet};

/// One name of a zone.
#[derive(Debug, Clone)]
pub struct Owner<'a> {
    /// The name.
    pub name: Name,
    /// Its sets, by type; none at an empty non-terminal.
    pub sets: Vec<RrSet<'a>>,
    /// It is below a delegation: glue, which is neither signed nor in the chain (RFC 4035 §2.2, §2.3).
    pub is_glue: bool,
}

impl Owner<'_> {
    /// It is delegated: only DS and the NSEC are signed here.
    pub fn is_cut(&self, zone: &Zone) -> bool {
        self.name != *zone.apex() && self.sets.iter().any(|set| set.kind == kind::NS)
    }
}

impl Zones {
    /// All names of `zone`, the apex first. Empty non-terminals of reverse zones, which a chain of NSEC leaves out as well, are not among them.
    pub fn walk<'a>(&'a self, zone: &'a Zone) -> impl Iterator<Item = Owner<'a>> {
        let fixed = zone.fixed.iter().map(|(name, sets)| (name.clone(), fixed_node(zone, name, sets)));
        let other: Box<dyn Iterator<Item = (Name, Node<'a>)> + 'a> = match zone.kind {
            ZoneKind::Static => Box::new(std::iter::empty()),
            ZoneKind::Fleet => Box::new(self.machine_names(zone)),
            ZoneKind::Reverse => Box::new(self.pointer_names(zone)),
        };
        Merged { one: fixed.peekable(), two: other.peekable() }.scan(
            None,
            move |cut: &mut Option<Name>, (name, node)| {
                let is_glue = cut.as_ref().is_some_and(|cut| name.is_within(cut));
                let owner = Owner { name, sets: node.sets(), is_glue };
                if !is_glue {
                    *cut = owner.is_cut(zone).then(|| owner.name.clone());
                }
                Some(owner)
            },
        )
    }

    /// What there is at exactly this name of the zone, as [`Zones::walk`] would show it; wildcards stand only for themselves.
    pub fn owner<'a>(&'a self, zone: &'a Zone, name: &Name) -> Option<Owner<'a>> {
        self.walk_below(zone, name).next().filter(|owner| owner.name == *name)
    }

    /// The names of `zone` at and below `top`, in canonical order. It costs no more than what it returns, where `top` is a machine's name,
    /// an address or below one.
    pub fn walk_below<'a>(&'a self, zone: &'a Zone, top: &Name) -> impl Iterator<Item = Owner<'a>> {
        let within = |name: &Name| name.is_within(top);
        let fixed: Vec<_> = zone
            .fixed
            .iter()
            .filter(|(name, _)| within(name))
            .map(|(name, sets)| (name.clone(), fixed_node(zone, name, sets)))
            .collect();
        let other: Vec<_> = match (zone.kind, top.relative_to(&zone.apex)) {
            (ZoneKind::Static, _) | (_, None) => Vec::new(),
            (ZoneKind::Fleet, Some([])) => self.machine_names(zone).collect(),
            (ZoneKind::Fleet, Some(relative)) => {
                let slug =
                    crate::name::Labels::of(relative).last().and_then(|slug| std::str::from_utf8(slug).ok());
                let machine = slug.and_then(|slug| self.machines.get(slug).map(|machine| (slug, machine)));
                let names =
                    machine.into_iter().flat_map(|(slug, machine)| self.names_of(zone, slug, machine));
                names.filter(|(name, _)| within(name)).collect()
            }
            (ZoneKind::Reverse, Some(_)) => {
                let domain = self.domain.as_ref();
                let range = NibblePrefix::parse(top.as_wire()).map(NibblePrefix::range);
                let found = range.into_iter().flat_map(|(first, last)| {
                    self.pointers.iter_from(&first).take_while(move |(address, _)| **address <= last)
                });
                found
                    .filter_map(|(address, label)| {
                        Some((NibblePrefix::of(*address).name(), Node::Pointer(label, domain?)))
                    })
                    .collect()
            }
        };
        let below_cut = fixed_cut_above(zone, top);
        Merged { one: fixed.into_iter().peekable(), two: other.into_iter().peekable() }.map(
            move |(name, node)| Owner {
                is_glue: below_cut || fixed_cut_above(zone, &name),
                name,
                sets: node.sets(),
            },
        )
    }

    fn machine_names<'a>(&'a self, zone: &'a Zone) -> impl Iterator<Item = (Name, Node<'a>)> {
        self.machines.iter().flat_map(|(slug, machine)| self.names_of(zone, slug, machine))
    }

    /// The names of one machine in canonical order; none when its name is the platform's.
    fn names_of<'a>(
        &'a self,
        zone: &'a Zone,
        slug: &str,
        machine: &'a MachineNames,
    ) -> Vec<(Name, Node<'a>)> {
        let Ok(top) = zone.apex.child(slug.as_bytes()) else { return Vec::new() };
        if zone.fixed.get(top.as_wire()).is_some_and(|sets| !sets.is_empty()) {
            return Vec::new();
        }
        let node = |place| Node::Machine(&self.shared, machine, place);
        let mut names = vec![(&b""[..], node(Place::Slug)), (b"\x01*", node(Place::Wildcard))];
        let own = machine.own().into_iter().flat_map(|own| own.iter());
        names.extend(
            own.filter(|(name, _)| !matches!(*name, b"" | b"\x01*"))
                .map(|(name, sets)| (name, Node::Sets(sets))),
        );
        names.sort_by(|one, two| canonical_order(one.0, two.0));
        names.into_iter().filter_map(|(name, node)| Some((top.below(name).ok()?, node))).collect()
    }

    fn pointer_names<'a>(&'a self, zone: &'a Zone) -> impl Iterator<Item = (Name, Node<'a>)> {
        let (first, last) = NibblePrefix::parse(zone.apex.as_wire())
            .map_or((std::net::Ipv6Addr::UNSPECIFIED, std::net::Ipv6Addr::UNSPECIFIED), NibblePrefix::range);
        let found = self.pointers.iter_from(&first).take_while(move |(address, _)| **address <= last);
        found.filter_map(|(address, label)| {
            Some((NibblePrefix::of(*address).name(), Node::Pointer(label, self.domain.as_ref()?)))
        })
    }
}

fn fixed_node<'a>(zone: &'a Zone, name: &Name, sets: &'a [OwnedSet]) -> Node<'a> {
    if *name == zone.apex { Node::Apex(zone) } else { Node::Sets(sets) }
}

/// Whether a delegation is truly above `name`.
fn fixed_cut_above(zone: &Zone, name: &Name) -> bool {
    let mut above = name.parent();
    while let Some(name) =
        above.filter(|name| zone.fixed.has_cuts && name.is_within(&zone.apex) && *name != zone.apex)
    {
        let sets = zone.fixed.get(name.as_wire()).unwrap_or_default();
        if sets.iter().any(|set| set.kind == kind::NS) {
            return true;
        }
        above = name.parent();
    }
    false
}

/// Two rows in canonical order as one. Of the same name in both, the one with records counts, and of these the first: as in a lookup.
struct Merged<A: Iterator, B: Iterator> {
    one: Peekable<A>,
    two: Peekable<B>,
}

impl<'a, A, B> Iterator for Merged<A, B>
where
    A: Iterator<Item = (Name, Node<'a>)>,
    B: Iterator<Item = (Name, Node<'a>)>,
{
    type Item = (Name, Node<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.one.peek(), self.two.peek()) {
            (Some((one, _)), Some((two, _))) => one.cmp(two),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        match order {
            Ordering::Less => self.one.next(),
            Ordering::Greater => self.two.next(),
            Ordering::Equal => {
                let (one, two) = (self.one.next()?, self.two.next()?);
                match one.1 {
                    Node::Sets([]) => Some(two),
                    Node::Apex(_) | Node::Sets(_) | Node::Machine(..) | Node::Pointer(..) => Some(one),
                }
            }
        }
    }
}
