//! `mashines dns` against a fake fleet: what it asks, what it says, how it ends.

use crate::support::{Fleet, machine};
use mashines_fleet::record::MachineState;
use serde_json::{Value, json};

fn can(fleet: &Fleet, call: &str, answer: Value) {
    fleet.fake.lock().canned.insert(call.to_owned(), answer);
}

fn last(fleet: &Fleet) -> (String, Value) {
    fleet.fake.lock().asked.last().unwrap().clone()
}

async fn fleet() -> (Fleet, String) {
    let fleet = Fleet::start().await;
    let web = machine("web", MachineState::Started);
    fleet.fake.lock().machines = vec![web.clone()];
    let path = format!("/v1/apps/default/machines/{}/dns", web.id);
    (fleet, path)
}

#[tokio::test]
async fn records_are_listed_added_and_removed() {
    let (fleet, path) = fleet().await;
    let records = |list: Value| json!({"name": "web.mashine.test", "records": list});
    can(&fleet, &format!("GET {path}/records"), records(json!([])));
    assert!(fleet.lobby("dns ls web").await.1.contains("add one with: mashines dns add web NAME TYPE DATA"));
    let one = json!([{"name": "", "type": "MX", "ttl": 300, "data": "10 mail.example.org."}]);
    can(&fleet, &format!("GET {path}/records"), records(one.clone()));
    assert_eq!(
        fleet.lobby("dns ls web").await.1,
        "NAME  TTL  TYPE  DATA\n@     300  MX    10 mail.example.org.\n"
    );
    can(&fleet, &format!("POST {path}/records"), records(one));
    assert_eq!(fleet.lobby("dns add web @ MX 10 mail.example.org.").await.1, "web.mashine.test: 1 record\n");
    assert_eq!(
        last(&fleet).1,
        json!({"name": "@", "type": "MX", "ttl": 300, "data": "10 mail.example.org."})
    );
    fleet.lobby("dns add --ttl 60 web _dmarc TXT 'v=DMARC1; p=reject'").await;
    assert_eq!(
        last(&fleet).1,
        json!({"name": "_dmarc", "type": "TXT", "ttl": 60, "data": "\"v=DMARC1; p=reject\""})
    );
    let gone = format!("DELETE {path}/records?name=%40&type=TXT&data=%22v%3Dspf1%20-all%22");
    can(&fleet, &gone, records(json!([])));
    let (code, out, err) = fleet.lobby("dns rm web @ TXT 'v=spf1 -all'").await;
    assert_eq!((code, out.as_str()), (0, "web.mashine.test: 0 records left\n"), "{err}");
    assert_eq!(fleet.lobby("dns add web www CNAME").await.0, 2, "there is no data");
    // As `ssh mashine.dev dns add web @ TXT v=spf1 -all` arrives.
    assert_eq!(fleet.lobby("dns add web @ TXT v=spf1 -all").await.0, 0);
    assert_eq!(last(&fleet).1["data"], "\"v=spf1 -all\"");
    let (code, _, err) = fleet.lobby("dns add web @ TXT x --ttl 60").await;
    assert!(code == 2 && err.contains("--ttl stands behind the data"), "{err}");
}

#[tokio::test]
async fn an_update_key_is_shown_once_with_what_it_is_for() {
    let (fleet, path) = fleet().await;
    let key = json!({"name": "web.mashine.test.", "algorithm": "hmac-sha256", "secret": "c2VjcmV0", "zone": "mashine.test."});
    can(&fleet, &format!("POST {path}/update-key"), key.clone());
    let (code, out, _) = fleet.lobby("dns update-key web").await;
    assert_eq!(code, 0);
    for part in [
        "zone       mashine.test.",
        "nsupdate -y hmac-sha256:web.mashine.test.:c2VjcmV0",
        "is not shown again",
    ] {
        assert!(out.contains(part), "{out}");
    }
    let out = fleet.lobby("dns update-key web --json").await.1;
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), key);
    can(&fleet, &format!("DELETE {path}/update-key"), json!({"ok": true}));
    assert_eq!(fleet.lobby("dns update-key web --revoke").await.1, "web: the update key is good no more\n");
}

#[tokio::test]
async fn keys_ds_and_rollover_say_what_to_do_next() {
    let (fleet, _) = fleet().await;
    let key = |tag: u16, state: &str, for_parent: bool| {
        json!({"tag": tag, "state": state, "since": "2026-11-22T00:00:00Z", "for_parent": for_parent,
               "ds": format!("{tag} 13 2 AB"), "dnskey": "257 3 13 QQ=="})
    };
    let zone = json!({"zone": "mashine.test", "next": "wait", "keys": [key(1, "active", true), key(2, "published", false)]});
    can(&fleet, "GET /v1/fleet/zones", json!([zone]));
    assert_eq!(
        fleet.lobby("dns keys").await.1,
        "ZONE          KEY  STATE      SINCE                 AT THE PARENT  NEXT\n\
         mashine.test  1    active     2026-11-22T00:00:00Z  should be      wait\n\
         mashine.test  2    published  2026-11-22T00:00:00Z  -\n"
    );
    let mut told = zone.clone();
    told["parent"] = json!({"state": "broken", "says": "the parent's DS (key 7) matches none of our keys"});
    can(&fleet, "GET /v1/fleet/zones", json!([told]));
    let (_, out, _) = fleet.lobby("dns keys").await;
    assert!(
        out.ends_with("\nmashine.test: broken: the parent's DS (key 7) matches none of our keys\n"),
        "{out}"
    );
    assert_eq!(
        fleet.lobby("dns ds mashine.test.").await.1,
        "mashine.test. IN DS 1 13 2 AB\nmashine.test. IN CDS 1 13 2 AB\nmashine.test. IN CDNSKEY 257 3 13 QQ==\n"
    );
    let (code, _, err) = fleet.lobby("dns ds mashine.tset").await;
    assert!(code == 3 && err.contains("did you mean `mashine.test`?"), "{code} {err}");
    can(&fleet, "POST /v1/fleet/zones/mashine.test/rollover", zone.clone());
    assert!(fleet.lobby("dns rollover mashine.test").await.1.ends_with("next: wait\n"));
    can(&fleet, "POST /v1/fleet/zones/mashine.test/ds-seen", zone);
    assert_eq!(fleet.lobby("dns rollover mashine.test --ds-seen").await.0, 0);
    assert_eq!(fleet.lobby("dns rollover mashine.test --ds-seen --anyway").await.0, 0);
    assert_eq!(fleet.lobby("dns rollover mashine.test --anyway").await.0, 2);
    assert_eq!(fleet.lobby("dns rollover 'a/b'").await.0, 2);
}
