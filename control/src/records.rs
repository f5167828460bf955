//! Control's hold on the store: reads from memory, writes as optimistic transactions.
//!
//! - [`Records::view`] is the same projection of the change log that every replica holds.
//! - An [`Edit`] reads records with their revisions and writes them back only if none of them changed meanwhile. That is
//!   the compare-and-swap behind every change of a machine's place.
//! - A write is visible in the view before its call returns, so whoever writes can read.

use std::sync::Arc;

use futures_util::Future;
use mashines_fleet::id::{
    AccountId, AppName, ChallengeId, DomainName, HostId, MachineId, MigrationId, VolumeId,
};
use mashines_fleet::key::{Key, PRIVATE, is_private};
use mashines_fleet::record::{
    Account, AcmeAccount, Certificate, Challenge, Domain, FleetConfig, Host, Machine, Migration, Volume,
    ZoneKeys,
};
use mashines_fleet::store::{Expect, Store, Transaction};
use mashines_fleet::stream::{Follower, Position};
use mashines_fleet::view::View;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::failure::{Failure, Result};

/// How often an overtaken change is tried anew.
const TRIES: u32 = 32;

/// A record that is streamed.
pub trait Record: Serialize + DeserializeOwned {
    /// Where it lives.
    fn key(&self) -> Key;
}

macro_rules! records {
    ($($record:ident => $key:ident),*) => {$(
        impl Record for $record {
            fn key(&self) -> Key {
                Key::$key(self.id.clone())
            }
        }
    )*};
}
records!(
    Account => Account, Host => Host, Machine => Machine, Volume => Volume, Migration => Migration, Domain => Domain,
    Certificate => Certificate, ZoneKeys => ZoneKeys, AcmeAccount => AcmeAccount
);

impl Record for FleetConfig {
    fn key(&self) -> Key {
        Key::Config
    }
}

/// Keys below `private/`: secrets, and indices whose existence is the promise that nothing is given out twice.
#[derive(Debug, Clone, Copy)]
pub enum Private<'a> {
    /// The fleet's CA.
    Ca,
    /// The platform's SSH CA.
    SshCa,
    /// The key that a machine's sshd proves its name with.
    HostKey(&'a MachineId),
    /// A person's token, by its hash.
    Token(&'a str),
    /// That a signed token is refused, by its account or its key's and the hash of its nonce: until when that must be known.
    Revoked(&'a AccountId, &'a str),
    /// An invite, by its hash.
    Invite(&'a str),
    /// The hash of an account's invite, by its short id.
    InviteOf(&'a AccountId, &'a str),
    /// A join token, by its hash.
    Join(&'a str),
    /// An app of an account.
    App(&'a AccountId, &'a AppName),
    /// A name in DNS.
    Slug(&'a str),
    /// A shared port of an entry.
    Port(&'a HostId, u16),
    /// An entry's shared address, of an account.
    EntryAddress(&'a AccountId, std::net::Ipv4Addr),
    /// A public or private address.
    Address(std::net::Ipv6Addr),
    /// A volume's name in its app.
    VolumeName(&'a AccountId, &'a AppName, &'a str),
    /// The one migration of a machine.
    Migrating(&'a MachineId),
    /// What an idempotency key of an account made.
    Idempotency(&'a AccountId, &'a str),
    /// A machine's lease.
    Lease(&'a MachineId),
    /// What the last `stop` of a machine said.
    Stop(&'a MachineId),
    /// The newest drain of a host.
    Drain(&'a HostId),
    /// That somebody asked to end a migration.
    Cancel(&'a MigrationId),
    /// What a migration was asked to keep to.
    Terms(&'a MigrationId),
    /// What an account has to show for a name that another account has.
    DomainClaim(&'a AccountId, &'a DomainName),
}

impl std::fmt::Display for Private<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(PRIVATE)?;
        match self {
            Self::Ca => f.write_str("ca"),
            Self::SshCa => f.write_str("ssh-ca"),
            Self::HostKey(machine) => write!(f, "host-key/{machine}"),
            Self::Token(hash) => write!(f, "token/{hash}"),
            Self::Revoked(account, hash) => write!(f, "revoked/{account}/{hash}"),
            Self::Invite(hash) => write!(f, "invite/{hash}"),
            Self::InviteOf(account, id) => write!(f, "invite-of/{account}/{id}"),
            Self::Join(hash) => write!(f, "join/{hash}"),
            Self::App(account, app) => write!(f, "app/{account}/{app}"),
            Self::Slug(slug) => write!(f, "slug/{slug}"),
            Self::Port(entry, port) => write!(f, "port/{entry}/{port}"),
            Self::EntryAddress(account, address) => write!(f, "entry-address/{account}/{address}"),
            Self::Address(address) => write!(f, "address/{address}"),
            Self::VolumeName(account, app, name) => write!(f, "volume-name/{account}/{app}/{name}"),
            Self::Migrating(machine) => write!(f, "migrating/{machine}"),
            Self::Idempotency(account, hash) => write!(f, "idempotency/{account}/{hash}"),
            Self::Lease(machine) => write!(f, "lease/{machine}"),
            Self::Stop(machine) => write!(f, "stop/{machine}"),
            Self::Drain(host) => write!(f, "drain/{host}"),
            Self::Cancel(migration) => write!(f, "cancel/{migration}"),
            Self::Terms(migration) => write!(f, "terms/{migration}"),
            Self::DomainClaim(account, name) => write!(f, "domain-claim/{account}/{name}"),
        }
    }
}

/// The store and its view.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    view: watch::Receiver<Arc<View>>,
}

impl Records {
    /// Reads the store, and follows it in a task that ends with the runtime.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let mut follower = Follower::default();
        let mut lines =
            mashines_fleet::stream::lines(Arc::clone(&store), Position { store: String::new(), revision: 0 });
        let (sender, view) = watch::channel(Arc::clone(follower.view()));
        let (whole, mut opened) = tokio::sync::oneshot::channel();
        let mut whole = Some(whole);
        tokio::spawn(async move {
            while let Some(line) = futures_util::StreamExt::next(&mut lines).await {
                match follower.hear(line) {
                    Ok(heard) => {
                        for skipped in heard.skipped {
                            tracing::error!(%skipped, "a record of the store was left out");
                        }
                        if heard.changed {
                            sender.send_replace(Arc::clone(follower.view()));
                            whole.take().map(|whole| whole.send(()));
                        }
                    }
                    Err(error) => tracing::error!(%error, "the store's own stream is out of order"),
                }
            }
            tracing::error!(
                "the store's change stream ended: control answers with stale facts until it is restarted"
            );
        });
        (&mut opened).await.map_err(|_| Failure::internal("the store cannot be read"))?;
        Ok(Self { store, view })
    }

    /// The fleet, now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The fleet, as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The store, for its change stream.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Begins a transaction.
    pub fn edit(&self) -> Edit<'_> {
        Edit { records: self, transaction: Transaction::new(), public: false }
    }

    /// Reads a private value.
    ///
    /// # Errors
    /// The store's.
    pub async fn private<T: DeserializeOwned>(&self, key: Private<'_>) -> Result<Option<T>> {
        let entry = self.store.get(&key.to_string()).await?;
        Ok(entry.map(|entry| serde_json::from_slice(&entry.value)).transpose()?)
    }

    /// Reads all private values whose keys begin so (`private/` left out), by what follows.
    ///
    /// # Errors
    /// The store's.
    pub async fn private_below<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>> {
        let prefix = format!("{PRIVATE}{prefix}");
        let listing = self.store.list(&prefix).await?;
        let parsed = listing.entries.iter().filter_map(|entry| {
            let rest = entry.key.strip_prefix(&prefix)?;
            Some(serde_json::from_slice(&entry.value).map(|value| (rest.to_owned(), value)))
        });
        Ok(parsed.collect::<std::result::Result<_, _>>()?)
    }

    /// Reads one record, changes it and writes it back; tries again when somebody was faster. `change` says whether
    /// there is something to write; it may run several times.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::failure::Kind::NotFound), what `change` answers, and the store's.
    pub async fn update<T: Record>(
        &self,
        key: &Key,
        mut change: impl FnMut(&mut T) -> Result<bool>,
    ) -> Result<T> {
        for _ in 0..TRIES {
            let mut edit = self.edit();
            let mut record: T = edit.require(key).await?;
            if !change(&mut record)? {
                return Ok(record);
            }
            edit.put(&record)?;
            match edit.commit().await {
                Err(failure) if failure.is_race() => {}
                Err(failure) => return Err(failure),
                Ok(()) => return Ok(record),
            }
        }
        Err(Failure::internal(format!("{key} is changed so fast that a change of it found no gap")))
    }
}

/// Runs a transaction again for as long as others are faster.
///
/// # Errors
/// What the attempt answers.
pub async fn retrying<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let mut last = Failure::internal("nothing was tried");
    for _ in 0..TRIES {
        match attempt().await {
            Err(failure) if failure.is_race() => last = failure,
            outcome => return outcome,
        }
    }
    Err(last)
}

/// A transaction: what was read must not have changed when it is written.
pub struct Edit<'a> {
    records: &'a Records,
    transaction: Transaction,
    public: bool,
}

impl Edit<'_> {
    async fn read<T: DeserializeOwned>(&mut self, key: String) -> Result<Option<T>> {
        let entry = self.records.store.get(&key).await?;
        let expect = entry.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        self.transaction.check(key, expect);
        Ok(entry.map(|entry| serde_json::from_slice(&entry.value)).transpose()?)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// The store's.
    pub async fn get<T: Record>(&mut self, key: &Key) -> Result<Option<T>> {
        self.read(key.to_string()).await
    }

    /// Reads a record that must be there.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::failure::Kind::NotFound), and the store's.
    pub async fn require<T: Record>(&mut self, key: &Key) -> Result<T> {
        let record = self.get(key).await?;
        record.ok_or_else(|| Failure::not_found(format!("{key} is not there (any more)")))
    }

    /// Reads a private value.
    ///
    /// # Errors
    /// The store's.
    pub async fn private<T: DeserializeOwned>(&mut self, key: Private<'_>) -> Result<Option<T>> {
        self.read(key.to_string()).await
    }

    /// Writes a record.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn put<T: Record>(&mut self, record: &T) -> Result<&mut Self> {
        self.public = true;
        self.transaction.put(record.key().to_string(), serde_json::to_vec(record)?);
        Ok(self)
    }

    /// Writes a challenge, whose record does not hold its id.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn put_challenge(&mut self, id: &ChallengeId, challenge: &Challenge) -> Result<&mut Self> {
        self.public = true;
        self.transaction.put(Key::Challenge(id.clone()).to_string(), serde_json::to_vec(challenge)?);
        Ok(self)
    }

    /// Removes a record.
    pub fn delete(&mut self, key: &Key) -> &mut Self {
        self.public = true;
        self.transaction.delete(key.to_string());
        self
    }

    /// Writes a private value.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn put_private<T: Serialize>(&mut self, key: Private<'_>, value: &T) -> Result<&mut Self> {
        debug_assert!(is_private(&key.to_string()));
        self.transaction.put(key.to_string(), serde_json::to_vec(value)?);
        Ok(self)
    }

    /// Writes a private value that must be new: the transaction is overtaken when it is not.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn claim<T: Serialize>(&mut self, key: Private<'_>, value: &T) -> Result<&mut Self> {
        self.transaction.create(key.to_string(), serde_json::to_vec(value)?);
        Ok(self)
    }

    /// Removes a private value.
    pub fn delete_private(&mut self, key: Private<'_>) -> &mut Self {
        self.transaction.delete(key.to_string());
        self
    }

    /// Writes it all, and waits until the view shows it.
    ///
    /// # Errors
    /// [`Kind::Race`](crate::failure::Kind::Race) when something read has changed; the store's.
    pub async fn commit(self) -> Result<()> {
        let revision = self.records.store.commit(self.transaction).await?;
        if self.public {
            let mut view = self.records.view.clone();
            let seen = view.wait_for(|view| view.revision >= revision).await;
            seen.map(drop).map_err(|_| Failure::internal("the store's change stream ended"))?;
        }
        Ok(())
    }
}

/// Ids of the records behind volumes' mounts, in their order.
pub fn volumes_of(view: &View, machine: &Machine) -> Vec<Arc<Volume>> {
    let ids: Vec<&VolumeId> = machine.config.mounts.iter().map(|mount| &mount.volume).collect();
    ids.into_iter().filter_map(|id| view.volumes.get(id).cloned()).collect()
}
