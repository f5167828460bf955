//! The fleet as one value: what every daemon derives its own state from.
//!
//! A [`View`] is the fold of the change stream. [`View::apply`] is pure: the same batches in the same order give the
//! same view, wherever it started from. Records are behind `Arc`s, so a clone is a few tree copies and comparing an
//! old with a new view can begin with `Arc::ptr_eq`.

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
}

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
        batch.changes.iter().filter_map(|change| self.apply_change(change).err()).collect()
    }

    /// Puts or removes one record, without a look at revisions: a snapshot is a row of these.
    ///
    /// # Errors
    /// [`Skipped`] when the record does not decode; the view is as before.
    pub fn apply_change(&mut self, change: &Change) -> Result<(), Skipped> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn account(id: &str, admin: bool) -> Change {
        let value = json!({"id": id, "ssh_keys": [], "private_prefix": "fd00::", "admin": admin});
        Change { key: format!("accounts/{id}"), value: Some(value) }
    }

    #[test]
    fn an_old_batch_changes_nothing() {
        let mut view = View::default();
        view.apply(&Batch { revision: 5, changes: vec![account("ann", true)] });
        let before = view.clone();
        view.apply(&Batch { revision: 5, changes: vec![account("bob", true)] });
        view.apply(&Batch { revision: 4, changes: vec![account("ann", false)] });
        assert_eq!(view, before);
    }

    #[test]
    fn a_record_that_does_not_decode_leaves_the_older_one_and_is_told() {
        let mut view = View::default();
        view.apply(&Batch { revision: 1, changes: vec![account("ann", true)] });
        let broken = Change { key: "accounts/ann".into(), value: Some(json!({"id": 7})) };
        let skipped = view.apply(&Batch { revision: 2, changes: vec![broken, account("bob", false)] });
        assert_eq!(skipped.len(), 1);
        assert!(view.accounts.values().any(|a| a.admin), "ann's older record stays");
        assert_eq!(view.accounts.len(), 2, "the rest of the batch is applied");
    }

    #[test]
    fn kinds_of_a_newer_version_are_passed_over() {
        let mut view = View::default();
        let foreign = Change { key: "kinds-to-come/x".into(), value: Some(json!({})) };
        assert!(view.apply(&Batch { revision: 1, changes: vec![foreign] }).is_empty());
        assert_eq!(view.revision, 1);
    }
}
