//! The store: keys and values with revisions, the one place where the fleet's truth is kept.
//!
//! Each transaction that writes raises the store's revision by one; each key remembers the revision of its last write. A
//! transaction may check several keys ("still at revision N", "still absent") and is applied as a whole or not at all:
//! that is the compare-and-swap that keeps a machine in one place.
//!
//! The change log can be read from any revision that is not compacted. Keys below `private/` never enter it.
//!
//! Engines: [`SqliteStore`], for one box and small fleets. [`conformance`] says what an engine must do; each is held to it.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod sqlite;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use sqlite::SqliteStore;

/// Counts the transactions of a store. The first makes 1.
pub type Revision = u64;

/// A value and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision of its last write.
    pub revision: Revision,
}

/// Entries as they were at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// What a transaction insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision.
    Revision(Revision),
}

/// Several checks and writes, done as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    checks: Vec<(String, Expect)>,
    writes: Vec<(String, Option<Bytes>)>,
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fails unless the key is as expected.
    pub fn check(&mut self, key: impl Into<String>, expect: Expect) -> &mut Self {
        self.checks.push((key.into(), expect));
        self
    }

    /// Writes the key. The last write of a key in a transaction counts.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) -> &mut Self {
        self.writes.push((key.into(), Some(value.into())));
        self
    }

    /// Removes the key; one that is not there stays so.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.writes.push((key.into(), None));
        self
    }

    /// Writes a key that must be new.
    pub fn create(&mut self, key: impl Into<String>, value: impl Into<Bytes>) -> &mut Self {
        let key = key.into();
        self.check(key.clone(), Expect::Absent).put(key, value)
    }

    /// Nothing would be written.
    pub fn is_read_only(&self) -> bool {
        self.writes.is_empty()
    }
}

/// One write of the change log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The key.
    pub key: String,
    /// The value; none when the key was removed.
    pub value: Option<Bytes>,
}

/// The writes of one transaction, without private ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// The revision that it made.
    pub revision: Revision,
    /// Each key once, in the order of the keys.
    pub entries: Vec<LogEntry>,
}

/// Why the store did not do as told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A check failed: somebody else was there first. Read again and decide anew.
    #[error("{key} was changed meanwhile")]
    Conflict {
        /// The first key whose check failed.
        key: String,
    },
    /// The change log does not reach back so far: read everything again.
    #[error("changes from revision {from} are compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        from: Revision,
        /// Watching from here works.
        oldest: Revision,
    },
    /// The key may not be watched.
    #[error("{0} is private: it has no change log")]
    Private(String),
    /// The engine failed: disk full, file damaged, peer gone.
    #[error("the store failed to {action}: {why}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        why: String,
    },
}

/// A stream of the change log.
pub type Watch = BoxStream<'static, Result<LogBatch, StoreError>>;

/// What every engine does.
pub trait Store: Send + Sync {
    /// Which store this is: made with it, never changed. Revisions of different stores cannot be compared.
    fn id(&self) -> &str;

    /// The newest revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// One key.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>>;

    /// All keys that begin so, at one revision.
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Listing, StoreError>>;

    /// Applies a transaction, durably, and returns the revision it made (the newest one when it writes nothing).
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// All transactions after `after` that touch keys beginning with `prefix`, then those that come, without end.
    /// It may answer [`StoreError::Compacted`] here or, for a slow reader, in the stream.
    fn watch(&self, prefix: &str, after: Revision) -> BoxFuture<'_, Result<Watch, StoreError>>;
}
