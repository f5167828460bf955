//! The fleet as one value: what every daemon derives its own state from.
//!
//! A [`View`] is the fold of the change stream. [`View::apply`] is pure: the same batches in the same order give the
//! same view, wherever it started from. Records are behind `Arc`s, so a clone is a few tree copies and comparing an
//! old with a new view can begin with `Arc::ptr_eq`. A view also remembers what changed last, so that who follows machines by
//! [`View::changed_machines`] looks at those that changed and not at a million.
//!
//! Invariant: a view that was handed out is changed by [`View::apply`] alone; fields are public to be read, and to make one up for a test.

mod trail;

pub use trail::Trail;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{AccountId, ChallengeId, DomainName, HostId, IssuerName, MachineId, MigrationId, VolumeId};
use crate::key::Key;
use crate::record::{
    Account, AcmeAccount, Certificate, Challenge, Domain, FleetConfig, Host, Machine, Migration, Volume,
    ZoneKeys,
};

/// All streamed records at one revision of the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The store's revision that this view shows; 0 before anything was heard.
    pub revision: u64,
    /// What the whole fleet shares; none until control was heard for the first time.
    pub config: Option<Arc<FleetConfig>>,
    /// Accounts.
    pub accounts: BTreeMap<AccountId, Arc<Account>>,
    /// Hosts and entries.
    pub hosts: BTreeMap<HostId, Arc<Host>>,
    /// Machines, destroyed ones for a while too.
    pub machines: BTreeMap<MachineId, Arc<Machine>>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Migrations, finished ones for a while too.
    pub migrations: BTreeMap<MigrationId, Arc<Migration>>,
    /// Names outside of the fleet's zones.
    #[serde(default)]
    pub domains: BTreeMap<DomainName, Arc<Domain>>,
    /// Certificates, by their first names.
    #[serde(default)]
    pub certificates: BTreeMap<DomainName, Arc<Certificate>>,
    /// What issuers want to see now.
    #[serde(default)]
    pub challenges: BTreeMap<ChallengeId, Arc<Challenge>>,
    /// The keys that zones are signed with.
    #[serde(default)]
    pub zone_keys: BTreeMap<DomainName, Arc<ZoneKeys>>,
    /// The platform's accounts at issuers of certificates.
    #[serde(default)]
    pub acme_accounts: BTreeMap<IssuerName, Arc<AcmeAccount>>,
    /// What changed last; for nobody but the view to look into.
    #[serde(skip)]
    pub trail: Trail,
}

/// A record before and after: none where it was not there.
pub type Difference<'a, T> = (Option<&'a Arc<T>>, Option<&'a Arc<T>>);

/// One record's change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The record's key in the store.
    pub key: String,
    /// The record, or none when it was deleted.
    pub value: Option<serde_json::Value>,
}

/// What one transaction of the store changed. It is applied as a whole: no reader sees half of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The revision that the transaction made.
    pub revision: u64,
    /// Its changes, each key once.
    pub changes: Vec<Change>,
}

/// A change that a view could not take, and went without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {key} of revision {revision} is not one this version understands: {why}")]
pub struct Skipped {
    /// The record's key.
    pub key: String,
    /// The batch's revision.
    pub revision: u64,
    /// What the decoder said.
    pub why: String,
}

impl View {
    /// Applies a transaction. A batch that is not newer than the view changes nothing, so a replayed one is harmless.
    ///
    /// Records of a kind that this version does not know are passed over in silence; records of a known kind that do
    /// not decode are returned, and the older record stays: stale facts are safer than none, since epochs fence them.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Skipped> {
        if batch.revision <= self.revision {
            return Vec::new();
        }
        self.revision = batch.revision;
        self.trail.step(batch.changes.iter().filter_map(|change| change.key.parse().ok()).collect());
        batch.changes.iter().filter_map(|change| self.put(change).err()).collect()
    }

    /// Puts or removes one record, without a look at revisions: a snapshot is a row of these.
    ///
    /// # Errors
    /// [`Skipped`] when the record does not decode; the view is as before.
    pub fn apply_change(&mut self, change: &Change) -> Result<(), Skipped> {
        // What began anew is nobody's successor.
        self.trail = Trail::default();
        self.put(change)
    }

    fn put(&mut self, change: &Change) -> Result<(), Skipped> {
        let Ok(key) = change.key.parse::<Key>() else { return Ok(()) };
        let outcome = match key {
            Key::Config => decode(change).map(|record| self.config = record),
            Key::Account(id) => decode(change).map(|record| put(&mut self.accounts, id, record)),
            Key::Host(id) => decode(change).map(|record| put(&mut self.hosts, id, record)),
            Key::Machine(id) => decode(change).map(|record| put(&mut self.machines, id, record)),
            Key::Volume(id) => decode(change).map(|record| put(&mut self.volumes, id, record)),
            Key::Migration(id) => decode(change).map(|record| put(&mut self.migrations, id, record)),
            Key::Domain(name) => decode(change).map(|record| put(&mut self.domains, name, record)),
            Key::Certificate(name) => decode(change).map(|record| put(&mut self.certificates, name, record)),
            Key::Challenge(id) => decode(change).map(|record| put(&mut self.challenges, id, record)),
            Key::ZoneKeys(zone) => decode(change).map(|record| put(&mut self.zone_keys, zone, record)),
            Key::AcmeAccount(id) => decode(change).map(|record| put(&mut self.acme_accounts, id, record)),
        };
        outcome.map_err(|why| Skipped { key: change.key.clone(), revision: self.revision, why })
    }

    /// Becomes `newer`, with the very same records, where it is known what changed in between: so a copy that fell behind catches up
    /// without a copy of all. Whether it did.
    #[must_use]
    pub fn catch_up(&mut self, newer: &Self) -> bool {
        let Some(keys) = newer.trail.since(&self.trail) else { return false };
        keys.into_iter().for_each(|key| self.take_from(newer, key));
        self.revision = newer.revision;
        self.trail = newer.trail.clone();
        true
    }

    /// Machines that are not the same object in `before`, an older view, as in this one: by what is remembered of the changes in between, else
    /// by a walk over all.
    pub fn changed_machines<'a>(&'a self, before: &'a Self) -> Vec<Difference<'a, Machine>> {
        let Some(keys) = self.trail.since(&before.trail) else {
            return differences(&before.machines, &self.machines);
        };
        let machines = keys.into_iter().filter_map(|key| match key {
            Key::Machine(id) => Some((before.machines.get(id), self.machines.get(id))),
            Key::Config
            | Key::Account(_)
            | Key::Host(_)
            | Key::Volume(_)
            | Key::Migration(_)
            | Key::Domain(_)
            | Key::Certificate(_)
            | Key::Challenge(_)
            | Key::ZoneKeys(_)
            | Key::AcmeAccount(_) => None,
        });
        machines.filter(|(old, new)| !is_same(*old, *new)).collect()
    }

    /// Makes the record of `key` what it is in `other`.
    fn take_from(&mut self, other: &Self, key: &Key) {
        fn take<K: Ord + Clone, T>(to: &mut BTreeMap<K, Arc<T>>, from: &BTreeMap<K, Arc<T>>, id: &K) {
            put(to, id.clone(), from.get(id).map(Arc::clone));
        }
        match key {
            Key::Config => self.config.clone_from(&other.config),
            Key::Account(id) => take(&mut self.accounts, &other.accounts, id),
            Key::Host(id) => take(&mut self.hosts, &other.hosts, id),
            Key::Machine(id) => take(&mut self.machines, &other.machines, id),
            Key::Volume(id) => take(&mut self.volumes, &other.volumes, id),
            Key::Migration(id) => take(&mut self.migrations, &other.migrations, id),
            Key::Domain(name) => take(&mut self.domains, &other.domains, name),
            Key::Certificate(name) => take(&mut self.certificates, &other.certificates, name),
            Key::Challenge(id) => take(&mut self.challenges, &other.challenges, id),
            Key::ZoneKeys(zone) => take(&mut self.zone_keys, &other.zone_keys, zone),
            Key::AcmeAccount(issuer) => take(&mut self.acme_accounts, &other.acme_accounts, issuer),
        }
    }

    /// The machine of that name, unless it is destroyed.
    pub fn machine_by_slug(&self, slug: &str) -> Option<&Arc<Machine>> {
        use crate::record::MachineState;
        self.machines
            .values()
            .find(|machine| machine.slug.as_str() == slug && machine.state != MachineState::Destroyed)
    }

    /// The migration of that machine that is under way.
    pub fn migration_of(&self, machine: &MachineId) -> Option<&Arc<Migration>> {
        self.migrations.values().find(|m| m.machine == *machine && !m.step.is_final())
    }
}

fn decode<T: DeserializeOwned>(change: &Change) -> Result<Option<Arc<T>>, String> {
    let Some(value) = &change.value else { return Ok(None) };
    T::deserialize(value).map(|record| Some(Arc::new(record))).map_err(|error| error.to_string())
}

fn put<K: Ord, T>(map: &mut BTreeMap<K, Arc<T>>, key: K, record: Option<Arc<T>>) {
    match record {
        Some(record) => map.insert(key, record),
        None => map.remove(&key),
    };
}

fn is_same<T>(one: Option<&Arc<T>>, two: Option<&Arc<T>>) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => Arc::ptr_eq(one, two),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Records that are not the same object in both, in one walk over both rows.
fn differences<'a, K: Ord, T>(
    before: &'a BTreeMap<K, Arc<T>>,
    after: &'a BTreeMap<K, Arc<T>>,
) -> Vec<Difference<'a, T>> {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut found = Vec::new();
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some((_, one)), None) => found.push((Some(*one), None)),
            (None, Some((_, two))) => found.push((None, Some(*two))),
            // The same object has the same key, which is then not looked at: that is what makes a million quick.
            (Some((_, one)), Some((_, two))) if Arc::ptr_eq(one, two) => {}
            (Some((one_key, one)), Some((two_key, two))) => match one_key.cmp(two_key) {
                std::cmp::Ordering::Less => {
                    found.push((Some(*one), None));
                    old.next();
                    continue;
                }
                std::cmp::Ordering::Greater => {
                    found.push((None, Some(*two)));
                    new.next();
                    continue;
                }
                std::cmp::Ordering::Equal => found.push((Some(*one), Some(*two))),
            },
        }
        old.next();
        new.next();
    }
}

#[cfg(test)]
mod tests;
