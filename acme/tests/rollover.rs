//! A new key for the account at a real ACME server, whoever dies in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use mashines_acme::config::Issuer;
use mashines_acme::http::Http;
use mashines_acme::rollover::{Credentials, change, is_known};
use mashines_fleet::api::IssuerAccount;
use mashines_fleet::entry_api::{ACME_ACCOUNTS, Roll, RollStep};
use mashines_fleet::key::Key;
use mashines_fleet::pki::Identity;
use mashines_fleet::record::AcmeAccount;
use mashines_fleet::rpc::Client;
use mashines_fleet::sealed::{EntrySecret, Sealed};
use serde_json::json;
use support::fleet::eventually;
use support::pebble::{Pebble, With};
use support::{World, log};

const ISSUERS: &str = "/v1/fleet/issuers";

/// What an entry can do with the account at `pebble`, step by step.
struct ByHand<'a> {
    world: &'a World,
    issuer: Issuer,
    http: Http,
    secret: EntrySecret,
}

impl<'a> ByHand<'a> {
    fn new(world: &'a World, pebble: &Pebble) -> Self {
        let issuer = pebble.issuer("pebble");
        let http = Http::new(issuer.ca_file.as_deref(), Duration::from_secs(10)).unwrap();
        let secret = EntrySecret::load(&world.fleet.state.path().join("entries.key")).unwrap().unwrap();
        Self { world, issuer, http, secret }
    }

    fn record(&self) -> Arc<AcmeAccount> {
        Arc::clone(&self.world.view().acme_accounts[&self.issuer.name])
    }

    fn open(&self, sealed: &Sealed) -> Credentials {
        let json = self.secret.open(&Key::AcmeAccount(self.issuer.name.clone()), sealed).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    async fn is_known(&self, sealed: &Sealed) -> bool {
        is_known(&self.http, &self.issuer.directory, &self.open(sealed)).await.unwrap()
    }

    async fn ask(&self) {
        let asked: IssuerAccount =
            self.world.fleet.post(&format!("{ISSUERS}/pebble/rollover"), json!({})).await.unwrap();
        assert!(asked.rolling_since.is_some() && asked.refused.is_none(), "{asked:?}");
    }

    /// The first step of an entry that then dies.
    async fn store_next(&self, entry: &Identity) -> Sealed {
        let credentials = self.record().credentials.clone();
        let next = serde_json::to_vec(&self.open(&credentials).with_new_key().unwrap()).unwrap();
        let next = self.secret.seal(&Key::AcmeAccount(self.issuer.name.clone()), &next).unwrap();
        let roll = Roll { credentials, step: RollStep::Next(next.clone()) };
        let control = Client::to_control(entry, &self.world.fleet.url).unwrap();
        let kept: AcmeAccount =
            control.post(&format!("{ACME_ACCOUNTS}/pebble/rollover"), &roll).await.unwrap();
        assert_eq!(kept.rollover.unwrap().next.as_ref(), Some(&next));
        next
    }

    /// The record, once its key is another than `old` and nothing is to be done.
    async fn rolled(&self, old: &Sealed) -> Arc<AcmeAccount> {
        eventually("the key is changed", || async {
            let record = self.record();
            (record.credentials != *old && record.rollover.is_none()).then_some(record)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_has_the_key_changed_and_orders_go_on_with_the_new_one() {
    log();
    let world = World::up().await;
    let pebble = Pebble::start(&world, With { bad_nonces: 30, ..With::default() }).await;
    // Two entries at once: the issuer changes to one key.
    let _one = world.entry("entry1", vec![pebble.issuer("pebble")]).await;
    let _two = world.entry("entry2", vec![pebble.issuer("pebble")]).await;
    world.issued(support::WILDCARD).await;
    let by_hand = ByHand::new(&world, &pebble);
    let before = by_hand.record();
    by_hand.ask().await;
    let after = by_hand.rolled(&before.credentials).await;
    assert!(after.key_since.is_some() && after.orders == before.orders, "its limits are the same");
    assert!(by_hand.is_known(&after.credentials).await);
    assert!(!by_hand.is_known(&before.credentials).await, "the old key opens nothing");
    world.fleet.started("web").await;
    world.add(json!({"hostname": "web.mashine.test"})).await;
    world.issued("web.mashine.test").await;
    let shown: Vec<IssuerAccount> = world.fleet.client.get(ISSUERS).await.unwrap();
    assert_eq!((shown.len(), shown[0].issuer.as_str(), &shown[0].rolling_since), (1, "pebble", &None));
    assert!(shown[0].key_since > shown[0].created_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_before_or_after_the_issuer_changed_the_key_leaves_both_and_the_next_entry_finds_the_right_one()
 {
    log();
    let world = World::up().await;
    let pebble = Pebble::start(&world, With::default()).await;
    let entry = world.entry("entry1", vec![pebble.issuer("pebble")]).await;
    world.issued(support::WILDCARD).await;
    entry.kill();
    let by_hand = ByHand::new(&world, &pebble);
    let dead = world.joined("entry2").await;
    for (n, changed) in [true, false].into_iter().enumerate() {
        let before = by_hand.record();
        by_hand.ask().await;
        let next = by_hand.store_next(&dead).await;
        if changed {
            let (old, new) = (by_hand.open(&before.credentials), by_hand.open(&next));
            change(&by_hand.http, &by_hand.issuer.directory, &old, &new).await.unwrap();
        }
        let entry = world.entry(&format!("after{n}"), vec![pebble.issuer("pebble")]).await;
        let after = by_hand.rolled(&before.credentials).await;
        assert_eq!(after.credentials, next, "changed: {changed}");
        assert!(by_hand.is_known(&next).await && !by_hand.is_known(&before.credentials).await);
        let name = format!("web{n}");
        world.fleet.started(&name).await;
        world.add(json!({"hostname": format!("{name}.mashine.test"), "machine": name})).await;
        world.issued(&format!("{name}.mashine.test")).await;
        entry.kill();
    }
}
