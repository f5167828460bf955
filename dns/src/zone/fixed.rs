//! Names that are few: the platform's own and the operator's. Made anew as a whole when one of them changes.
//!
//! Invariant: whatever has a name below it is there too, if need be without records (an empty non-terminal, RFC 8020), up to the apex.

use std::collections::{BTreeMap, HashMap};

use crate::kind;
use crate::name::Name;
use crate::rrset::OwnedSet;

/// The names of one zone, the apex first, in canonical order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    nodes: Vec<(Name, Vec<OwnedSet>)>,
    index: HashMap<Box<[u8]>, usize>,
    /// There is a delegation.
    pub has_cuts: bool,
}

impl Fixed {
    /// The sets at a lower-case wire name; an empty slice at an empty non-terminal.
    pub fn get(&self, wire: &[u8]) -> Option<&[OwnedSet]> {
        let (_, sets) = self.nodes.get(*self.index.get(wire)?)?;
        Some(sets)
    }

    /// All names in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &[OwnedSet])> {
        self.nodes.iter().map(|(name, sets)| (name, sets.as_slice()))
    }
}

/// What becomes a [`Fixed`].
#[derive(Debug)]
pub struct Builder {
    apex: Name,
    nodes: BTreeMap<Name, Vec<OwnedSet>>,
}

impl Builder {
    /// Nothing but the apex.
    pub fn new(apex: Name) -> Self {
        Self { nodes: BTreeMap::from([(apex.clone(), Vec::new())]), apex }
    }

    /// Adds a record, and the names between it and the apex. A name outside of the zone is left out.
    pub fn add(&mut self, name: &Name, kind: u16, ttl: u32, data: impl Into<Box<[u8]>>) {
        if !name.is_within(&self.apex) {
            return;
        }
        let sets = self.nodes.entry(name.clone()).or_default();
        let data = vec![data.into()];
        match sets.iter().position(|set| set.kind == kind) {
            Some(at) => {
                let set = sets.swap_remove(at);
                sets.push(set.merged(ttl, data));
            }
            None => sets.push(OwnedSet::new(kind, ttl, data)),
        }
        let mut above = name.parent();
        while let Some(name) = above.filter(|name| name.is_within(&self.apex)) {
            self.nodes.entry(name.clone()).or_default();
            above = name.parent();
        }
    }

    /// Adds a whole set.
    pub fn add_set(&mut self, name: &Name, set: &OwnedSet) {
        for data in set.data() {
            self.add(name, set.kind, set.ttl, data.clone());
        }
    }

    /// Whether something is known of that type at that name.
    pub fn has(&self, name: &Name, kind: u16) -> bool {
        self.nodes.get(name).is_some_and(|sets| sets.iter().any(|set| set.kind == kind))
    }

    /// The names.
    pub fn build(self) -> Fixed {
        let mut nodes: Vec<_> = self.nodes.into_iter().collect();
        for (_, sets) in &mut nodes {
            sets.sort_by_key(|set| set.kind);
        }
        let index = nodes.iter().enumerate().map(|(at, (name, _))| (name.as_wire().into(), at)).collect();
        let cut = |(name, sets): &(Name, Vec<OwnedSet>)| {
            *name != self.apex && sets.iter().any(|set| set.kind == kind::NS)
        };
        Fixed { has_cuts: nodes.iter().any(cut), nodes, index }
    }
}
