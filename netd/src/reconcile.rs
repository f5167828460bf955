//! From what the kernel holds to what the plan wants, by the fewest messages.
//!
//! Pure. [`Routes`] is what netd knows the kernel to hold, read once at the start and then kept up with every change that
//! the kernel took. A route that changes its target is one [`Action::Put`] (the kernel's `replace`), never a removal and an addition:
//! in between packets would be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::plan::{RouteKey, Target};

/// Whom a route is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// This host as such.
    Host,
    /// A machine.
    Machine(Arc<str>),
    /// Nobody that this process knows: it was there at the start.
    Unclaimed,
}

/// One message to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make or turn a route.
    Put(RouteKey, Target),
    /// Take a route away.
    Drop(RouteKey),
}

/// A route as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    owner: Owner,
    // None: the kernel holds something there that is not of ours; any change must be written.
    target: Option<Target>,
}

/// What the kernel is known to hold in netd's tables.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    held: BTreeMap<RouteKey, Held>,
    by_owner: BTreeMap<Owner, BTreeSet<RouteKey>>,
}

impl Routes {
    /// What the kernel was found to hold. Routes with owners keep them.
    pub fn found(&mut self, found: BTreeMap<RouteKey, Option<Target>>) {
        let old = std::mem::take(self);
        for (key, target) in found {
            let owner = old.held.get(&key).map_or(Owner::Unclaimed, |held| held.owner.clone());
            self.insert(key, owner, target);
        }
    }

    /// The messages that make `owner` have exactly `desired`.
    pub fn diff(&self, owner: &Owner, desired: &BTreeMap<RouteKey, Target>) -> Vec<Action> {
        let stale = self.keys(owner).filter(|key| !desired.contains_key(key));
        let drops = stale.map(|key| Action::Drop(*key));
        let changed = desired.iter().filter(|(key, target)| self.target(key) != Some(*target));
        changed.map(|(key, target)| Action::Put(*key, target.clone())).chain(drops).collect()
    }

    /// Claims for `owner` the desired routes that the kernel holds already, so that they are not taken for leftovers.
    pub fn claim(&mut self, owner: &Owner, desired: &BTreeMap<RouteKey, Target>) {
        for (key, target) in desired {
            if self.target(key) == Some(target) && self.held.get(key).is_some_and(|held| held.owner != *owner)
            {
                self.insert(*key, owner.clone(), Some(target.clone()));
            }
        }
    }

    /// Notes that the kernel took an action.
    pub fn done(&mut self, owner: &Owner, action: Action) {
        match action {
            Action::Put(key, target) => self.insert(key, owner.clone(), Some(target)),
            Action::Drop(key) => self.remove(&key),
        }
    }

    /// The messages that take away what nobody claimed.
    pub fn leftovers(&self) -> Vec<Action> {
        self.keys(&Owner::Unclaimed).map(|key| Action::Drop(*key)).collect()
    }

    /// Everyone who owns a route.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.by_owner.keys()
    }

    /// All routes whose targets are known.
    pub fn iter(&self) -> impl Iterator<Item = (&RouteKey, &Target)> {
        self.held.iter().filter_map(|(key, held)| held.target.as_ref().map(|target| (key, target)))
    }

    fn keys(&self, owner: &Owner) -> impl Iterator<Item = &RouteKey> {
        self.by_owner.get(owner).into_iter().flatten()
    }

    fn target(&self, key: &RouteKey) -> Option<&Target> {
        self.held.get(key)?.target.as_ref()
    }

    fn insert(&mut self, key: RouteKey, owner: Owner, target: Option<Target>) {
        self.remove(&key);
        self.by_owner.entry(owner.clone()).or_default().insert(key);
        self.held.insert(key, Held { owner, target });
    }

    fn remove(&mut self, key: &RouteKey) {
        let Some(held) = self.held.remove(key) else { return };
        if let Some(keys) = self.by_owner.get_mut(&held.owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(&held.owner);
            }
        }
    }
}
