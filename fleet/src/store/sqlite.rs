//! The store in one SQLite file: write-ahead log, `synchronous=FULL` (an acknowledged write survives a power loss).
//!
//! One connection behind a lock: SQLite has one writer anyway, and reads of control are answered from memory. Calls
//! block on the disk, so they run on the blocking pool.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::{Entry, Expect, Listing, LogBatch, LogEntry, Revision, Store, StoreError, Transaction, Watch};
use crate::key::{PRIVATE, is_private};

/// Transactions that the change log keeps.
const DEFAULT_LOG: u64 = 100_000;
/// Rows that a watcher takes at a time.
const CHUNK: u64 = 512;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS entry (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log (
        revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT OR IGNORE INTO meta VALUES ('revision', 0), ('compacted', 0);
";

/// The SQLite engine. Clones share the file.
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    id: String,
    connection: Mutex<Connection>,
    newest: watch::Sender<Revision>,
    log_length: u64,
}

impl SqliteStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Engine`]: the file cannot be opened or is no store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_log(path, DEFAULT_LOG)
    }

    /// The same with a change log of so many transactions.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with_log(path: &Path, log_length: u64) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(failed("open its file"))?;
        let (id, newest) = prepare(&connection).map_err(failed("prepare its file"))?;
        let connection = Mutex::new(connection);
        Ok(Self(Arc::new(Inner { id, connection, newest: watch::channel(newest).0, log_length })))
    }

    /// Runs on the blocking pool, with the connection.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Connection, &Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = inner.connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection, &inner)
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Engine { action, why: error.to_string() }))
    }

    /// One chunk of the log after a revision.
    async fn log(&self, prefix: String, after: Revision) -> Result<Vec<LogBatch>, StoreError> {
        const ACTION: &str = "read the change log";
        self.run(ACTION, move |connection, _| {
            read_log(connection, &prefix, after).map_err(failed(ACTION)).and_then(|log| log)
        })
        .await
    }
}

fn failed(action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |error| StoreError::Engine { action, why: error.to_string() }
}

fn prepare(connection: &Connection) -> rusqlite::Result<(String, Revision)> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.execute_batch(SCHEMA)?;
    let fresh = ulid::Ulid::generate().to_string();
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('id', ?1)", params![fresh])?;
    let id = connection.query_row("SELECT value FROM meta WHERE name = 'id'", [], |row| row.get(0))?;
    Ok((id, meta(connection, "revision")?))
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", params![name], |row| row.get(0))
}

fn set_meta(connection: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET value = ?2 WHERE name = ?1", params![name, value]).map(drop)
}

/// The smallest text above all that begin with the prefix, in SQLite's byte order. Keys are ASCII, so 0x7f is above them.
fn above(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

fn find(connection: &Connection, key: &str) -> rusqlite::Result<Option<Entry>> {
    let mut statement = connection.prepare_cached("SELECT key, value, revision FROM entry WHERE key = ?1")?;
    statement.query_row(params![key], entry).optional()
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: Bytes::from(row.get::<_, Vec<u8>>(1)?), revision: row.get(2)? })
}

fn list(connection: &Connection, prefix: &str) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = connection
        .prepare_cached("SELECT key, value, revision FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key")?;
    statement.query_map(params![prefix, above(prefix)], entry)?.collect()
}

/// Checks, writes, logs, compacts: in one SQLite transaction.
fn apply(
    connection: &mut Connection,
    transaction: &Transaction,
    log_length: u64,
) -> rusqlite::Result<Result<Revision, StoreError>> {
    let db = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for (key, expect) in &transaction.checks {
        let found = find(&db, key)?.map(|entry| entry.revision);
        let holds = match expect {
            Expect::Absent => found.is_none(),
            Expect::Revision(revision) => found == Some(*revision),
        };
        if !holds {
            return Ok(Err(StoreError::Conflict { key: key.clone() }));
        }
    }
    let revision = meta(&db, "revision")?;
    if transaction.is_read_only() {
        return Ok(Ok(revision));
    }
    let revision = revision + 1;
    let writes: BTreeMap<&String, &Option<Bytes>> = transaction.writes.iter().map(|(k, v)| (k, v)).collect();
    for (key, value) in writes {
        write(&db, key, value.as_deref(), revision)?;
    }
    set_meta(&db, "revision", revision)?;
    // Once in a while, not each time: a delete costs about as much as a write.
    if revision % 64 == 0 && revision > log_length {
        let oldest = revision - log_length;
        if db.execute("DELETE FROM log WHERE revision <= ?1", params![oldest])? > 0 {
            set_meta(&db, "compacted", oldest)?;
        }
    }
    db.commit()?;
    Ok(Ok(revision))
}

fn write(db: &Connection, key: &str, value: Option<&[u8]>, revision: Revision) -> rusqlite::Result<()> {
    match value {
        Some(value) => db
            .prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3)")?
            .execute(params![key, value, revision])?,
        None => db.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute(params![key])?,
    };
    if !is_private(key) {
        db.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3)")?.execute(params![revision, key, value])?;
    }
    Ok(())
}

fn read_log(
    connection: &Connection,
    prefix: &str,
    after: Revision,
) -> rusqlite::Result<Result<Vec<LogBatch>, StoreError>> {
    let oldest = meta(connection, "compacted")?;
    if after < oldest {
        return Ok(Err(StoreError::Compacted { from: after, oldest }));
    }
    let mut statement = connection.prepare_cached(
        "SELECT revision, key, value FROM log
         WHERE revision > ?1 AND revision <= ?1 + ?4 AND key >= ?2 AND key < ?3 ORDER BY revision, key",
    )?;
    let mut rows = statement.query(params![after, prefix, above(prefix), CHUNK])?;
    let mut batches: Vec<LogBatch> = Vec::new();
    while let Some(row) = rows.next()? {
        let revision = row.get(0)?;
        let value: Option<Vec<u8>> = row.get(2)?;
        let entry = LogEntry { key: row.get(1)?, value: value.map(Bytes::from) };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.entries.push(entry),
            _ => batches.push(LogBatch { revision, entries: vec![entry] }),
        }
    }
    Ok(Ok(batches))
}

/// A watcher's place in the log.
struct Cursor {
    store: SqliteStore,
    prefix: String,
    after: Revision,
    newest: watch::Receiver<Revision>,
}

impl Cursor {
    /// The next batches, when there are some; none when the store is gone.
    async fn next(mut self) -> Option<(Vec<Result<LogBatch, StoreError>>, Self)> {
        loop {
            let newest = *self.newest.wait_for(|newest| *newest > self.after).await.ok()?;
            match self.store.log(self.prefix.clone(), self.after).await {
                Ok(batches) => {
                    self.after = newest.min(self.after.saturating_add(CHUNK));
                    if !batches.is_empty() {
                        return Some((batches.into_iter().map(Ok).collect(), self));
                    }
                }
                Err(error) => return Some((vec![Err(error)], self)),
            }
        }
    }
}

impl Store for SqliteStore {
    fn id(&self) -> &str {
        &self.0.id
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async { Ok(*self.0.newest.borrow()) })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.run("read", move |connection, _| find(connection, &key).map_err(failed("read"))))
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Listing, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.run("list", move |connection, inner| {
            let entries = list(connection, &prefix).map_err(failed("list"))?;
            // The lock is held: nothing was committed since.
            Ok(Listing { revision: *inner.newest.borrow(), entries })
        }))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.run("commit", move |connection, inner| {
            let revision = apply(connection, &transaction, inner.log_length)
                .map_err(failed("commit"))
                .and_then(|r| r)?;
            inner.newest.send_replace(revision);
            Ok(revision)
        }))
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            if prefix.starts_with(PRIVATE) {
                return Err(StoreError::Private(prefix));
            }
            self.log(prefix.clone(), after).await?;
            let newest = self.0.newest.subscribe();
            let cursor = Cursor { store: self.clone(), prefix, after, newest };
            let chunks = futures_util::stream::unfold(cursor, Cursor::next);
            Ok(chunks.flat_map(futures_util::stream::iter).boxed())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    fn store(log: u64) -> (tempfile::TempDir, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open_with_log(&directory.path().join("store.sqlite"), log).unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn sqlite_does_what_a_store_must() {
        let (_directory, store) = store(10_000);
        conformance::run(&store).await;
    }

    #[tokio::test]
    async fn a_watcher_behind_the_compaction_is_told_so() {
        let (_directory, store) = store(100);
        for n in 0..300 {
            store.commit(Transaction::new().put("hosts/a", n.to_string()).clone()).await.unwrap();
        }
        let outcome = store.watch("", 1).await.err();
        assert!(matches!(outcome, Some(StoreError::Compacted { from: 1, .. })), "{outcome:?}");
        let Some(StoreError::Compacted { oldest, .. }) = outcome else { return };
        let first = store.watch("", oldest).await.unwrap().next().await.unwrap().unwrap();
        assert_eq!(first.revision, oldest + 1);
    }

    #[tokio::test]
    async fn everything_is_there_after_opening_again() {
        let (directory, store) = store(100);
        let revision = store.commit(Transaction::new().put("config", "1").clone()).await.unwrap();
        let id = store.id().to_owned();
        drop(store);
        let again = SqliteStore::open(&directory.path().join("store.sqlite")).unwrap();
        assert_eq!((again.id(), again.revision().await.unwrap()), (id.as_str(), revision));
        assert_eq!(again.get("config").await.unwrap().unwrap().revision, revision);
    }

    #[test]
    fn a_file_that_is_no_store_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.sqlite");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::Engine { .. })));
    }
}
