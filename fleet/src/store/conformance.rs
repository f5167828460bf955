//! What an engine must do, whatever it is made of. Panics, as tests do, at the first thing it does not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::time::Duration;

use futures_util::StreamExt;

use super::{Expect, Store, StoreError, Transaction};

/// Runs all of it on an empty store.
pub async fn run(store: &dyn Store) {
    a_write_raises_the_revision_and_is_read_back(store).await;
    a_transaction_is_applied_as_a_whole_or_not_at_all(store).await;
    of_two_that_saw_the_same_one_wins(store).await;
    a_listing_has_its_prefix_only_in_order(store).await;
    a_watcher_sees_each_transaction_once_in_order(store).await;
    private_keys_are_never_logged(store).await;
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.to_owned()).clone()
}

async fn a_write_raises_the_revision_and_is_read_back(store: &dyn Store) {
    let before = store.revision().await.unwrap();
    assert_eq!(store.get("machines/a").await.unwrap(), None);
    let revision = store.commit(put("machines/a", "1")).await.unwrap();
    assert_eq!(revision, before + 1);
    let entry = store.get("machines/a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.revision), (b"1".as_slice(), revision));
    let read_only = Transaction::new().check("machines/a", Expect::Revision(revision)).clone();
    assert_eq!(store.commit(read_only).await.unwrap(), revision, "a check alone writes nothing");
}

async fn a_transaction_is_applied_as_a_whole_or_not_at_all(store: &dyn Store) {
    let revision = store.revision().await.unwrap();
    let half = Transaction::new().put("machines/b", "1").create("machines/a", "2").clone();
    let conflict = StoreError::Conflict { key: "machines/a".to_owned() };
    assert_eq!(store.commit(half).await, Err(conflict));
    assert_eq!(store.get("machines/b").await.unwrap(), None);
    assert_eq!(store.revision().await.unwrap(), revision);
    let several =
        Transaction::new().put("machines/b", "1").delete("machines/a").put("machines/b", "2").clone();
    let revision = store.commit(several).await.unwrap();
    assert_eq!(store.get("machines/a").await.unwrap(), None);
    let entry = store.get("machines/b").await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.revision), (b"2".as_slice(), revision));
}

async fn of_two_that_saw_the_same_one_wins(store: &dyn Store) {
    let seen = store.commit(put("hosts/a", "0")).await.unwrap();
    let swap = |value: &str| {
        let mut transaction = put("hosts/a", value);
        transaction.check("hosts/a", Expect::Revision(seen)).clone()
    };
    let both = futures_util::future::join(store.commit(swap("1")), store.commit(swap("2"))).await;
    assert!(both.0.is_ok() != both.1.is_ok(), "{both:?}");
    let absent =
        Transaction::new().check("hosts/none", Expect::Revision(seen)).put("hosts/none", "1").clone();
    assert!(store.commit(absent).await.is_err());
}

async fn a_listing_has_its_prefix_only_in_order(store: &dyn Store) {
    for key in ["volumes/b", "volumes/a", "volumesx", "volumes/ab"] {
        store.commit(put(key, key)).await.unwrap();
    }
    let listing = store.list("volumes/").await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["volumes/a", "volumes/ab", "volumes/b"]);
    assert_eq!(listing.revision, store.revision().await.unwrap());
}

async fn a_watcher_sees_each_transaction_once_in_order(store: &dyn Store) {
    let from = store.revision().await.unwrap();
    let first = Transaction::new().put("accounts/b", "1").put("accounts/a", "1").put("hosts/x", "1").clone();
    let first = store.commit(first).await.unwrap();
    let mut watch = store.watch("accounts/", from).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    let keys: Vec<_> = batch.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((batch.revision, keys), (first, vec!["accounts/a", "accounts/b"]));
    let waiting = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(waiting.is_err(), "it waits for what comes");
    store.commit(put("hosts/x", "2")).await.unwrap();
    let gone = store.commit(Transaction::new().delete("accounts/a").clone()).await.unwrap();
    let batch = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
    let batch = batch.expect("a change arrives").unwrap().unwrap();
    assert_eq!((batch.revision, batch.entries.len()), (gone, 1));
    assert_eq!(batch.entries[0].value, None);
    let all = store.watch("", 0).await.unwrap().take_while(|b| {
        let more = b.as_ref().unwrap().revision < gone;
        async move { more }
    });
    let revisions: Vec<_> = all.map(|b| b.unwrap().revision).collect().await;
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
}

async fn private_keys_are_never_logged(store: &dyn Store) {
    let from = store.revision().await.unwrap();
    let mixed = Transaction::new().put("private/ca", "secret").put("machines/c", "1").clone();
    store.commit(mixed).await.unwrap();
    store.commit(put("private/ca", "secret 2")).await.unwrap();
    store.commit(put("machines/d", "1")).await.unwrap();
    assert!(matches!(store.watch("private/", 0).await, Err(StoreError::Private(_))));
    let batches: Vec<_> = store.watch("", from).await.unwrap().take(2).collect().await;
    for batch in batches {
        let batch = batch.unwrap();
        assert!(batch.entries.iter().all(|entry| entry.key.starts_with("machines/")), "{batch:?}");
    }
    assert!(store.get("private/ca").await.unwrap().is_some());
}
