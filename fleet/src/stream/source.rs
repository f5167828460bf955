//! The sending end of the stream: a store's change log as lines.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{HEARTBEAT_MS, Line};
use crate::key::is_private;
use crate::store::{LogBatch, LogEntry, Store, StoreError, Watch};
use crate::view::{Batch, Change};

/// Where a follower stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The store that it follows; empty when it has nothing.
    pub store: String,
    /// The revision of its view.
    pub revision: u64,
}

/// All that a follower at `position` has to hear, without end; it ends only when the store fails, and the follower
/// comes again.
pub fn lines(store: Arc<dyn Store>, position: Position) -> BoxStream<'static, Line> {
    futures_util::stream::once(open(store, position)).flat_map(|opened| opened).boxed()
}

async fn open(store: Arc<dyn Store>, position: Position) -> BoxStream<'static, Line> {
    match try_open(&store, &position).await {
        Ok((first, watch)) => futures_util::stream::iter(first).chain(follow(store, watch)).boxed(),
        Err(error) => {
            tracing::error!(%error, "cannot open a change stream");
            futures_util::stream::empty().boxed()
        }
    }
}

/// What is said first, and what follows it.
async fn try_open(store: &Arc<dyn Store>, position: &Position) -> Result<(Vec<Line>, Watch), StoreError> {
    let known = position.store == store.id() && position.revision <= store.revision().await?;
    if known {
        match store.watch("", position.revision).await {
            Ok(watch) => return Ok((vec![Line::Resume { store: store.id().to_owned() }], watch)),
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let listing = store.list("").await?;
    let begin = Line::SnapshotBegin { store: store.id().to_owned(), revision: listing.revision };
    let mut first = vec![begin];
    let public = listing.entries.into_iter().filter(|entry| !is_private(&entry.key));
    first.extend(public.filter_map(|entry| change(entry.key, Some(entry.value))).map(Line::Put));
    first.push(Line::SnapshotEnd);
    Ok((first, store.watch("", listing.revision).await?))
}

/// Batches as they come, and heartbeats in between.
fn follow(store: Arc<dyn Store>, watch: Watch) -> BoxStream<'static, Line> {
    futures_util::stream::unfold((store, watch), |(store, mut watch)| async move {
        let pause = Duration::from_millis(HEARTBEAT_MS);
        let line = match tokio::time::timeout(pause, watch.next()).await {
            Err(_) => Line::Heartbeat { revision: store.revision().await.ok()? },
            Ok(Some(Ok(batch))) => Line::Batch(line_of(batch)),
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "a change stream ends");
                return None;
            }
            Ok(None) => return None,
        };
        Some((line, (store, watch)))
    })
    .boxed()
}

fn line_of(batch: LogBatch) -> Batch {
    let entries = batch.entries.into_iter().filter(|entry| !is_private(&entry.key));
    let changes = entries.filter_map(|LogEntry { key, value }| change(key, value)).collect();
    Batch { revision: batch.revision, changes }
}

fn change(key: String, value: Option<bytes::Bytes>) -> Option<Change> {
    let value = match value.map(|value| serde_json::from_slice(&value)).transpose() {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(%key, %error, "a record is no JSON: left out of the stream");
            return None;
        }
    };
    Some(Change { key, value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::store::{SqliteStore, Transaction};
    use crate::stream::Follower;
    use crate::view::View;

    /// Puts and deletes over a few keys, grouped into transactions, private ones among them.
    fn histories() -> impl Strategy<Value = Vec<Vec<(String, Option<u16>)>>> {
        let key =
            prop::sample::select(vec!["accounts/a", "accounts/b", "hosts/odd", "private/x", "config/odd"]);
        let write = (key.prop_map(str::to_owned), prop::option::weighted(0.7, any::<u16>()));
        prop::collection::vec(prop::collection::vec(write, 1..4), 1..20)
    }

    fn value(key: &str, n: u16) -> String {
        let id = key.split('/').next_back().unwrap_or_default();
        json!({"id": id, "ssh_keys": [n.to_string()], "private_prefix": "fd00::"}).to_string()
    }

    async fn play(store: &SqliteStore, history: &[Vec<(String, Option<u16>)>]) {
        for writes in history {
            let mut transaction = Transaction::new();
            for (key, n) in writes {
                match n {
                    Some(n) => transaction.put(key.clone(), value(key, *n)),
                    None => transaction.delete(key.clone()),
                };
            }
            store.commit(transaction).await.unwrap();
        }
    }

    /// Hears until the follower has reached the revision.
    async fn catch_up(store: &Arc<dyn Store>, follower: &mut Follower, until: u64) {
        let from = Position { store: follower.store().to_owned(), revision: follower.view().revision };
        let mut lines = lines(Arc::clone(store), from);
        follower.reconnected();
        while follower.view().revision < until {
            follower.hear(lines.next().await.unwrap()).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn from_whatever_revision_the_stream_is_replayed_the_view_is_the_same(
            before in histories(), after in histories(), log in 1_u64..200,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let views: Vec<View> = runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let store = SqliteStore::open_with_log(&directory.path().join("s"), log).unwrap();
                let shared: Arc<dyn Store> = Arc::new(store.clone());
                play(&store, &before).await;
                let (mut early, mut late) = (Follower::default(), Follower::default());
                store.commit(Transaction::new().put("accounts/z", value("accounts/z", 1)).clone()).await.unwrap();
                catch_up(&shared, &mut early, store.revision().await.unwrap()).await;
                play(&store, &after).await;
                let last = Transaction::new().put("accounts/z", value("accounts/z", 2)).clone();
                let newest = store.commit(last).await.unwrap();
                catch_up(&shared, &mut early, newest).await;
                catch_up(&shared, &mut late, newest).await;
                vec![(**early.view()).clone(), (**late.view()).clone()]
            });
            prop_assert_eq!(&views[0], &views[1]);
            prop_assert!(views[0].accounts.keys().all(|id| id.as_str() != "x"));
        }
    }

    #[tokio::test]
    async fn a_follower_of_another_store_gets_a_snapshot_though_its_revision_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("s")).unwrap();
        play(&store, &[vec![("accounts/a".into(), Some(1))], vec![("private/ca".into(), Some(2))]]).await;
        let shared: Arc<dyn Store> = Arc::new(store);
        let foreign = Position { store: "other".into(), revision: 1 };
        let first: Vec<Line> = lines(shared, foreign).take(3).collect().await;
        assert!(matches!(&first[0], Line::SnapshotBegin { revision: 2, .. }), "{first:?}");
        assert!(matches!(&first[1], Line::Put(change) if change.key == "accounts/a"), "{first:?}");
        assert_eq!(first[2], Line::SnapshotEnd, "nothing private in between");
    }
}
