//! Names over the real API and the real command: owners' records, update keys, the keys of zones and their rollover.

use crate::support::names::Names;
use crate::support::people::{People, ask, launch, refused};
use crate::support::{Fleet, MACHINES, eventually};
use http::Method;
use mashines_fleet::api::{self, Delegation, DnsRecords, UpdateKeyMade, Zone};
use mashines_fleet::dns_update::{self, Change, Outcome, Updated};
use mashines_fleet::record::ZoneKeyState;
use serde_json::{Value, json};

async fn zones(fleet: &Fleet) -> Vec<Zone> {
    fleet.client.get("/v1/fleet/zones").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_zone_has_a_key_from_the_start_and_keeps_it_over_restarts() {
    let mut fleet = Fleet::up(&[]).await;
    let first = eventually("both zones have keys", || async {
        let zones = zones(&fleet).await;
        (zones.len() == 2).then_some(zones)
    })
    .await;
    let names: Vec<&str> = first.iter().map(|zone| zone.zone.as_str()).collect();
    assert_eq!(names, ["0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "mashine.test"]);
    for zone in &first {
        assert_eq!(zone.keys.len(), 1);
        let key = &zone.keys[0];
        assert!(key.state == ZoneKeyState::Active && key.for_parent);
        assert!(key.ds.starts_with(&format!("{} 13 2 ", key.tag)) && key.dnskey.starts_with("257 3 13 "));
    }
    fleet.restart_control().await;
    let again: Vec<Zone> =
        eventually("control is up", || async { fleet.client.get("/v1/fleet/zones").await.ok() }).await;
    let keys = |zones: Vec<Zone>| zones.into_iter().map(|zone| (zone.zone, zone.keys)).collect::<Vec<_>>();
    assert_eq!(keys(first), keys(again));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollover_waits_for_caches_and_for_the_parent() {
    let timing = mashines_control::Timing { dnskey_ttl_s: 1, ds_ttl_s: 1, longest_ttl_s: 1, slack_s: 1 };
    let dns = Names::start().await;
    let fleet = Fleet::up_with(&[], |config| {
        config.zone_keys = timing;
        config.resolvers = vec![dns.address];
    })
    .await;
    let of = |zones: Vec<Zone>| zones.into_iter().find(|zone| zone.zone.as_str() == "mashine.test");
    let old = eventually("the zone has a key", || async { of(zones(&fleet).await) }).await.keys[0].tag;
    let path = "/v1/fleet/zones/mashine.test";
    refused(
        &fleet.client,
        Method::POST,
        &format!("{path}/ds-seen"),
        json!({}),
        409,
        "no key of this zone waits",
    )
    .await;
    refused(
        &fleet.client,
        Method::POST,
        "/v1/fleet/zones/mashine.tset/rollover",
        json!({}),
        404,
        "did you mean",
    )
    .await;
    let begun: Zone = fleet.post(&format!("{path}/rollover"), json!({})).await.unwrap();
    let new = begun.keys[1].tag;
    assert_eq!((begun.keys[1].state, begun.keys[1].for_parent), (ZoneKeyState::Published, false));
    assert!(begun.next.starts_with("wait until"), "{}", begun.next);
    refused(&fleet.client, Method::POST, &format!("{path}/rollover"), json!({}), 409, "is under way").await;
    let early = ask(&fleet.client, Method::POST, &format!("{path}/ds-seen"), json!({})).await.unwrap_err();
    assert!(early.message().contains("may go to the parent from"), "{early}");
    let state = |tag| {
        let fleet = &fleet;
        move || async move {
            let zone = of(zones(fleet).await)?;
            Some(zone.keys.iter().find(|key| key.tag == tag).map(|key| (key.state, key.for_parent)))
        }
    };
    eventually("it is announced", || async {
        (state(new)().await? == Some((ZoneKeyState::Announced, true))).then_some(())
    })
    .await;
    assert_eq!(state(old)().await.unwrap(), Some((ZoneKeyState::Active, false)));
    // The parent has the old DS alone; then it is silent; then somebody knows better.
    let ds = |zones: Vec<Zone>, tag| of(zones)?.keys.into_iter().find(|key| key.tag == tag).map(|key| key.ds);
    dns.ds("mashine.test", &[&ds(zones(&fleet).await, old).unwrap()]);
    let seen = format!("{path}/ds-seen");
    let shows = format!("it shows key {old}.");
    refused(&fleet.client, Method::POST, &seen, json!({}), 409, &shows).await;
    let secure = of(zones(&fleet).await).unwrap().parent;
    assert_eq!(
        (secure.state, secure.says.contains(&format!("key {old}"))),
        (Delegation::Secure, true),
        "{secure:?}"
    );
    dns.silence(true);
    refused(&fleet.client, Method::POST, &seen, json!({}), 409, "could not be seen").await;
    assert_eq!(of(zones(&fleet).await).unwrap().parent.state, Delegation::Unknown);
    dns.silence(false);
    let seen: Zone = fleet.post(&seen, json!({"anyway": true})).await.unwrap();
    assert_eq!(
        seen.keys.iter().map(|k| (k.tag, k.state)).collect::<Vec<_>>(),
        [(old, ZoneKeyState::Retired), (new, ZoneKeyState::Active)]
    );
    eventually("the old key is gone", || async { state(old)().await?.is_none().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollover_goes_on_by_itself_when_the_parent_has_the_new_ds_and_a_person_is_told_what_the_parent_lacks()
 {
    let timing = mashines_control::Timing { dnskey_ttl_s: 1, ds_ttl_s: 1, longest_ttl_s: 1, slack_s: 0 };
    let dns = Names::start().await;
    let fleet = Fleet::up_with(&[], |config| {
        config.zone_keys = timing;
        config.resolvers = vec![dns.address];
        config.parent_look_s = 1;
    })
    .await;
    let zone = async || {
        let zones = zones(&fleet).await;
        zones.into_iter().find(|zone| zone.zone.as_str() == "mashine.test")
    };
    let is = async |wanted: Delegation| zone().await.filter(|zone| zone.parent.state == wanted);
    let insecure = eventually("it is seen that there is no DS", || is(Delegation::Insecure)).await;
    let line = format!("give your registrar this line: mashine.test. IN DS {}", insecure.keys[0].ds);
    assert!(insecure.parent.says.ends_with(&line), "{}", insecure.parent.says);
    dns.ds("mashine.test", &[&format!("4711 13 2 {}", "AB".repeat(32))]);
    let broken = eventually("it is seen that the DS is another's", || is(Delegation::Broken)).await;
    assert!(broken.parent.says.contains("4711"), "{}", broken.parent.says);
    dns.ds("mashine.test", &[&insecure.keys[0].ds]);
    eventually("it is seen that the DS is ours", || is(Delegation::Secure)).await;

    let begun: Zone = fleet.post("/v1/fleet/zones/mashine.test/rollover", json!({})).await.unwrap();
    let new = &begun.keys[1];
    let in_state = async |state| {
        zone().await.filter(|zone| zone.keys.iter().any(|key| key.tag == new.tag && key.state == state))
    };
    let announced = eventually("it is announced", || in_state(ZoneKeyState::Announced)).await;
    assert!(announced.next.contains("control looks for it"), "{}", announced.next);
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert!(in_state(ZoneKeyState::Announced).await.is_some(), "the parent has not got it yet");
    dns.ds("mashine.test", &[&new.ds]);
    eventually("it signs", || in_state(ZoneKeyState::Active)).await;
    eventually("the old one is gone", || async { zone().await.filter(|zone| zone.keys.len() == 1) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_names_what_the_machine_serves_and_is_told_what_is_wrong() {
    let people = People::up(&["hosta"]).await;
    let bob = people.of("bob");
    bob.post::<_, api::Machine>(MACHINES, &launch("web")).await.unwrap();
    let path = format!("{MACHINES}/web/dns/records");
    let none: DnsRecords = bob.get(&path).await.unwrap();
    assert_eq!((none.name.as_str(), none.records.len()), ("web.mashine.test", 0));
    let add = |name: &str, kind: &str, data: &str| json!({"name": name, "type": kind, "data": data});
    let one: DnsRecords = bob.post(&path, &add("WWW", "cname", "www.example.org.")).await.unwrap();
    assert_eq!(
        (one.records[0].name.as_str(), one.records[0].kind.as_str(), one.records[0].ttl),
        ("www", "CNAME", 300)
    );
    let two: DnsRecords = bob.post(&path, &add("@", "MX", "10 mail.example.org.")).await.unwrap();
    assert_eq!(two.records.len(), 2);
    for (body, says) in [
        (add("www", "TXT", "x"), "a CNAME stands alone"),
        (add("", "A", "192.0.2.1"), "the platform's"),
        (add("a", "CNAME", "www.example.org"), "end the name with a dot"),
        (add("a", "NS", "ns.example.org."), "no zone of its own"),
        (json!({"name": "a", "type": "TXT", "data": "x", "ttl": 5}), "30 to 86400"),
    ] {
        refused(&bob, Method::POST, &path, body, 400, says).await;
    }
    people.member("bob", "cem", "viewer").await;
    let cem = people.acting("cem", "bob");
    ask(&cem, Method::GET, &path, Value::Null).await.unwrap();
    refused(
        &cem,
        Method::POST,
        &path,
        add("a", "TXT", "x"),
        403,
        "may not change the DNS records of machine web",
    )
    .await;
    people.member("bob", "cem", "operator").await;
    ask(&cem, Method::POST, &path, add("a", "TXT", "x")).await.unwrap();
    refused(&bob, Method::DELETE, &format!("{path}?name=b"), Value::Null, 404, "has no such record").await;
    let left: DnsRecords = bob.delete(&format!("{path}?name=a&type=TXT&data=%22x%22")).await.unwrap();
    assert_eq!(left.records, two.records);
    refused(&people.of("cem"), Method::GET, &path, Value::Null, 404, "no machine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_brings_updates_for_a_machine_that_has_a_key_and_within_its_scope() {
    let people = People::up(&["hosta"]).await;
    let bob = people.of("bob");
    let web: api::Machine = bob.post(MACHINES, &launch("web")).await.unwrap();
    let update = |name: &str| dns_update::Update {
        machine: web.id.clone(),
        conditions: vec![],
        changes: vec![Change::Add { name: name.into(), ttl: 60, data: "\"token\"".into() }],
    };
    let bring = |name: &str| {
        let body = serde_json::to_value(update(name)).unwrap();
        people.entry_post::<Updated>(dns_update::PATH, body)
    };
    assert_eq!(bring("_acme-challenge").await.unwrap().outcome, Outcome::Refused, "there is no key yet");
    let key_path = format!("{MACHINES}/web/dns/update-key");
    let key: UpdateKeyMade = bob.post(&key_path, &json!({})).await.unwrap();
    assert_eq!((key.name.as_str(), key.zone.as_str()), ("web.mashine.test.", "mashine.test."));
    assert!(!format!("{key:?}").contains(&key.secret));
    assert_eq!(bring("_acme-challenge").await.unwrap().outcome, Outcome::Done);
    assert_eq!(bring("www").await.unwrap().outcome, Outcome::Refused);
    let records: DnsRecords = bob.get(&format!("{MACHINES}/web/dns/records")).await.unwrap();
    assert_eq!(records.records.len(), 1);
    let other: UpdateKeyMade = bob.post(&key_path, &json!({})).await.unwrap();
    assert_ne!(key.secret, other.secret);
    bob.delete::<api::Done>(&key_path).await.unwrap();
    refused(&bob, Method::DELETE, &key_path, Value::Null, 404, "has no update key").await;
    assert_eq!(bring("_acme-challenge").await.unwrap().outcome, Outcome::Refused);
    // Only an entry may.
    let body = serde_json::to_value(update("_acme-challenge")).unwrap();
    let host = mashines_fleet::rpc::Client::to_control(&people.host, &people.fleet.url).unwrap();
    assert_eq!(host.post::<_, Updated>(dns_update::PATH, &body).await.unwrap_err().status().unwrap(), 403);
    assert!(
        bob.post::<_, Updated>(dns_update::PATH, &body).await.is_ok(),
        "the lobby's client is the entry itself"
    );
}
