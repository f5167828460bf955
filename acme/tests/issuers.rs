//! Issuers on good and bad days: windows, profiles, bindings; down, slow, full, unwilling. And entries that die.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use mashines_acme::config::Eab;
use mashines_fleet::api::IssuerAccount;
use mashines_fleet::issuance::LEASE;
use serde_json::json;
use support::fleet::eventually;
use support::issuer::{Mood, TestCa};
use support::{LOCAL, WILDCARD, World, free_port, log, now};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTES: Duration = Duration::from_secs(20 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_and_a_binding_are_asked_for_and_the_window_decides_when_it_is_renewed() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    let day = DAY.as_secs();
    let today = now() / 1000;
    ca.lock().window = Some((today + 40 * day, today + 42 * day));
    let mut issuer = ca.issuer("own");
    issuer.profile = Some("short".to_owned());
    issuer.eab = Some(Eab { kid: "kid-7".to_owned(), key_file: ca.file("eab", "c2VjcmV0\n") });
    let _entry = world.entry("entry1", vec![issuer]).await;
    let first = world.issued(WILDCARD).await;
    assert_eq!(ca.lock().orders[0]["profile"], "short");
    let bound = ca.lock().accounts[0]["externalAccountBinding"].clone();
    assert!(bound["protected"].is_string() && bound["signature"].is_string());
    let renew = first.renew_at.unwrap() / 1000;
    assert!((today + 40 * day..=today + 42 * day).contains(&renew), "{renew}");

    // The issuer wants it sooner: it is asked again, and the moment moves into the new window.
    ca.lock().window = Some((today + 5 * day, today + 6 * day));
    world.travel.by(Duration::from_secs(2 * 3600));
    let moved = world.certificate(WILDCARD, "in the new window", |c| c.renew_at < first.renew_at).await;
    assert!((today + 5 * day..=today + 6 * day).contains(&(moved.renew_at.unwrap() / 1000)));
    assert_eq!(moved.chain_pem, first.chain_pem, "nothing else changes");

    // Its time comes: the new one says what it replaces; the old one served until then.
    world.travel.by(6 * DAY);
    let second = world.certificate(WILDCARD, "renewed", |c| c.chain_pem != first.chain_pem).await;
    assert!(second.chain_pem.is_some() && second.key != first.key);
    let replaced = ca.lock().orders[1]["replaces"].as_str().unwrap().to_owned();
    assert_eq!(replaced.split('.').count(), 2);
    assert!(ca.lock().windows_asked >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_windows_it_is_renewed_after_two_thirds_of_its_life_whoever_issued_it() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    let _entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    let mut last = world.issued(WILDCARD).await;
    for _ in 0..3 {
        let share = (last.renew_at.unwrap() - last.not_before.unwrap()) as f64
            / (last.not_after.unwrap() - last.not_before.unwrap()) as f64;
        assert!((0.59..0.68).contains(&share), "{share}");
        assert_eq!(last.ask_window_at, None);
        // Certificates of the test's CA begin today: the clock goes where the record says.
        world.travel.to(last.renew_at.unwrap());
        let before = last.chain_pem.clone();
        last = world.certificate(WILDCARD, "renewed", |c| c.chain_pem != before).await;
    }
    assert_eq!(ca.lock().accounts.len(), 1, "one account for all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_replica_lags_behind_makes_no_account_twice() {
    log();
    let mut world = World::up().await;
    world.lag = Duration::from_secs(2);
    let ca = TestCa::start().await;
    let _entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    world.issued(WILDCARD).await;
    assert_eq!(ca.lock().accounts.len(), 1, "the first one holds before the replica shows it");
    world.fleet.started("web").await;
    ca.lock().forget_account = true;
    world.add(json!({"hostname": "web.mashine.test"})).await;
    world.issued("web.mashine.test").await;
    assert_eq!(ca.lock().accounts.len(), 2, "and so does the one in its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_down_slow_or_broken_is_told_of_and_after_two_failures_the_next_is_asked() {
    log();
    let world = World::up().await;
    let (slow, good) = (TestCa::start().await, TestCa::start().await);
    let mut dead = slow.issuer("dead");
    dead.directory = format!("https://{LOCAL}:{}/directory", free_port());
    slow.mood(Mood::Slow(Duration::from_secs(30)));
    good.mood(Mood::Broken);
    let _entry = world.entry("entry1", vec![dead, slow.issuer("slow"), good.issuer("good")]).await;
    for (failures, whose, what) in [
        (1, "dead", "cannot be reached"),
        (2, "dead", "Connection refused"),
        (3, "slow", "no answer within 5s"),
        (4, "slow", "no answer within 5s"),
        (5, "good", "502 Bad Gateway"),
    ] {
        let failed = world.certificate(WILDCARD, what, |c| c.failures == failures && c.lease.is_none()).await;
        let problem = failed.problem.unwrap();
        assert!(problem.what.starts_with(whose) && problem.what.contains(what), "{problem:?}");
        assert!(problem.hint.contains("tried again"));
        let pause = failed.next_try_at.unwrap() - world.travel.clock().now();
        assert!(pause > 30_000, "{pause}");
        if failures == 5 {
            good.mood(Mood::Good);
        }
        world.travel.by(2 * MINUTES);
    }
    let certificate = world.issued(WILDCARD).await;
    assert_eq!((certificate.issuer.as_deref(), certificate.failures), (Some("good"), 0));
    assert!(certificate.problem.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_limits_one_name_hears_of_others_and_one_that_is_busy_hears_nothing_until_it_said() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    let entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    world.issued(WILDCARD).await;
    world.fleet.started("web").await;
    ca.mood(Mood::Limits { seconds: 7200, all: false });
    world.add(json!({"hostname": "web.mashine.test"})).await;
    let failed =
        world.certificate("web.mashine.test", "limited", |c| c.failures == 1 && c.lease.is_none()).await;
    assert!(failed.problem.unwrap().what.contains("too many certificates for these names"));
    ca.mood(Mood::Good);
    world.add(json!({"hostname": "*.web.mashine.test"})).await;
    world.issued("*.web.mashine.test").await;
    let account = world.view().acme_accounts[&"own".parse().unwrap()].clone();
    let paused = account.paused[&"web.mashine.test".parse().unwrap()];
    assert!((now() + 7_000_000..now() + 7_300_000).contains(&paused) && account.paused_until.is_none());
    // Its own pause is over long before; the issuer's word is kept.
    let orders = ca.lock().orders.len();
    world.travel.by(MINUTES);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ca.lock().orders.len(), orders);
    world.travel.by(Duration::from_secs(2 * 3600));
    // Control counts by its own clock, which does not travel: it refuses too, and that is told.
    let told = world.certificate("web.mashine.test", "refused by control", |c| c.failures == 2).await;
    assert!(told.problem.unwrap().what.contains("asked for a pause"));

    ca.mood(Mood::Limits { seconds: 3600, all: true });
    world.fleet.started("db").await;
    world.add(json!({"hostname": "db.mashine.test"})).await;
    world.certificate("db.mashine.test", "limited", |c| c.failures == 1 && c.lease.is_none()).await;
    let account = world.view().acme_accounts[&"own".parse().unwrap()].clone();
    assert!(account.paused_until.unwrap() > now() + 3_000_000);
    drop(entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_issuer_refuses_or_cannot_see_is_told_with_its_words_and_what_to_do() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    ca.mood(Mood::Refuses { kind: "rejectedIdentifier" });
    let _entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    let failed = world.certificate(WILDCARD, "refused", |c| c.failures == 1 && c.lease.is_none()).await;
    let problem = failed.problem.unwrap();
    assert!(
        problem.what.contains("refuses: we do not want to") && problem.hint.contains("certs import"),
        "{problem:?}"
    );
    ca.mood(Mood::Blind);
    world.travel.by(MINUTES);
    let failed = world.certificate(WILDCARD, "invalid", |c| c.failures == 2 && c.lease.is_none()).await;
    let problem = failed.problem.unwrap();
    assert!(problem.what.contains("could not validate mashine.test: saw something else"), "{problem:?}");
    let account = world.view().acme_accounts[&"own".parse().unwrap()].clone();
    assert_eq!(
        account.failures[&"mashine.test".parse().unwrap()].len(),
        2,
        "both names are one name's failures"
    );
    // Servers of our own that do not show the challenge are noticed before the issuer is let look.
    ca.mood(Mood::Good);
    world.edge.kill_dns();
    world.travel.by(2 * MINUTES);
    let failed = world.certificate(WILDCARD, "not shown", |c| c.failures == 3 && c.lease.is_none()).await;
    let problem = failed.problem.unwrap();
    assert!(
        problem.what.contains("does not show the challenge") && problem.what.contains("127.0.0.1:"),
        "{problem:?}"
    );
    assert!(problem.hint.contains("name servers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_killed_in_the_middle_of_an_order_is_followed_by_another_once_its_lease_is_over() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    ca.mood(Mood::Stalls);
    let one = world.entry("entry1", vec![ca.issuer("own")]).await;
    eventually("the order waits for the issuer", || async { (ca.lock().orders.len() == 1).then_some(()) })
        .await;
    eventually("challenges are shown", || async { (world.view().challenges.len() == 2).then_some(()) }).await;
    let two = world.entry("entry2", vec![ca.issuer("own")]).await;
    tokio::time::sleep(LEASE / 4).await;
    let holder =
        |world: &World| world.view().certificates[&WILDCARD.parse().unwrap()].lease.clone().unwrap().holder;
    assert_eq!(holder(&world).as_str(), "entry1");
    assert_eq!(ca.lock().orders.len(), 1, "nobody else orders meanwhile");
    one.kill();
    ca.mood(Mood::Good);
    let certificate = world.issued(WILDCARD).await;
    assert!(certificate.chain_pem.is_some());
    assert_eq!(ca.lock().orders.len(), 2);
    assert_eq!(ca.lock().accounts.len(), 1, "the second entry uses the account of the first");
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_over_a_restart_of_control_and_a_lost_account_is_made_anew() {
    log();
    let mut world = World::up().await;
    let ca = TestCa::start().await;
    let _entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    world.issued(WILDCARD).await;
    world.fleet.restart_control().await;
    world.fleet.started("web").await;
    ca.lock().forget_account = true;
    world.add(json!({"hostname": "web.mashine.test"})).await;
    world.issued("web.mashine.test").await;
    assert_eq!(ca.lock().accounts.len(), 2);
    assert!(world.view().acme_accounts.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_changes_no_keys_is_told_of_and_its_account_goes_on() {
    log();
    let world = World::up().await;
    let ca = TestCa::start().await;
    let _entry = world.entry("entry1", vec![ca.issuer("own")]).await;
    world.issued(WILDCARD).await;
    let before = world.view().acme_accounts[&"own".parse().unwrap()].clone();
    let path = "/v1/fleet/issuers/own/rollover";
    world.fleet.post::<serde_json::Value>(path, json!({})).await.unwrap();
    let told = eventually("the refusal is shown", || async {
        let all: Vec<IssuerAccount> = world.fleet.client.get("/v1/fleet/issuers").await.unwrap();
        all[0].refused.clone()
    })
    .await;
    assert!(told.message.contains("a change of an account's key"), "{told:?}");
    let after = world.view().acme_accounts[&"own".parse().unwrap()].clone();
    assert_eq!(after.credentials, before.credentials);
    world.fleet.started("web").await;
    world.add(json!({"hostname": "web.mashine.test"})).await;
    world.issued("web.mashine.test").await;
    let unknown = world.fleet.post::<serde_json::Value>("/v1/fleet/issuers/owm/rollover", json!({})).await;
    assert!(unknown.unwrap_err().message().contains("own"), "a name that is nearly right is helped");
}
