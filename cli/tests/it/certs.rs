//! `mashines certs` against a fake fleet: what it asks, what it says, how it ends.

use crate::support::{Fleet, machine};
use serde_json::{Value, json};

fn can(fleet: &Fleet, call: &str, answer: Value) {
    fleet.fake.lock().canned.insert(call.to_owned(), answer);
}

fn last(fleet: &Fleet) -> (String, Value) {
    fleet.fake.lock().asked.last().unwrap().clone()
}

fn certificate(name: &str, state: &str, more: Value) -> Value {
    let mut whole = json!({
        "hostname": name, "names": [name], "app": "default", "machine": "web", "state": state,
        "status": "", "configured": true, "acme_requested": true, "source": "acme",
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
    });
    whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    whole
}

fn issued() -> Value {
    let times = json!({"issuer": "letsencrypt", "issued_at": "2026-01-01T00:00:00Z",
        "expires_at": "2026-03-06T00:00:00Z", "renew_at": "2026-02-09T11:12:13Z"});
    certificate("web.mashine.test", "issued", times)
}

fn unproved() -> Value {
    let more = json!({"configured": false, "dns_requirements": {
        "ownership": {"name": "_mashines.www.example.org", "app_value": "mashines-7"},
        "cname": "web.mashine.test", "a": ["192.0.2.1"], "aaaa": ["2001:db8::1"]},
        "validation_errors": [{"message": "nothing says that www.example.org is to be served here",
        "remediation": "add TXT", "timestamp": "2026-01-01T00:00:00Z"}]});
    certificate("www.example.org", "awaiting-proof", more)
}

fn listed(all: &[Value]) -> Value {
    json!({"certificates": all, "total_count": all.len(), "next_cursor": null})
}

#[tokio::test]
async fn the_list_has_state_issuer_end_renewal_and_what_to_do() {
    let fleet = Fleet::start().await;
    can(&fleet, "GET /v1/certificates", listed(&[]));
    assert!(fleet.lobby("certs").await.1.contains("mashines certs add"));
    let failing = json!({"failures": 3, "next_try_at": "2026-01-01T01:00:00Z",
        "validation_errors": [{"message": "letsencrypt: no\u{1b}[2J way", "remediation": "wait", "timestamp": ""}]});
    let failing = certificate("*.web.mashine.test", "failing", failing);
    can(&fleet, "GET /v1/certificates", listed(&[issued(), failing, unproved()]));
    let (code, out, err) = fleet.lobby("certs").await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "NAME                STATE           MACHINE  ISSUER       ENDS        RENEWS\n\
         web.mashine.test    issued          web      letsencrypt  2026-03-06  2026-02-09\n\
         *.web.mashine.test  failing         web      -            -           -\n\
         www.example.org     awaiting proof  web      -            -           -\n\
         \n*.web.mashine.test: letsencrypt: no [2J way\n  next: wait\n  tried again at 2026-01-01T01:00:00Z (failures: 3)\n\
         \nwww.example.org: nothing says that www.example.org is to be served here\n  next: add TXT\n"
    );
    let json: Value = serde_json::from_str(&fleet.lobby("certs ls --json").await.1).unwrap();
    assert_eq!(json[2]["state"], "awaiting-proof");
    assert_eq!(fleet.lobby("certificates ls").await.0, 0, "the long word");
}

#[tokio::test]
async fn adding_says_what_the_zone_needs_and_checking_looks_again() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines.push(machine("web", mashines_fleet::record::MachineState::Started));
    let id = fleet.fake.lock().machines[0].id.to_string();
    can(&fleet, "POST /v1/apps/default/certificates/acme", unproved());
    let (code, out, _) = fleet.lobby("certs add www.example.org --machine web").await;
    assert_eq!(code, 0, "{out}");
    for needed in [
        "www.example.org.  CNAME  web.mashine.test.",
        "_mashines.www.example.org.  TXT  \"mashines-7\"",
        "www.example.org.  A, AAAA  192.0.2.1 2001:db8::1",
        "mashines certs check www.example.org",
    ] {
        assert!(out.contains(needed), "{needed} in {out}");
    }
    assert_eq!(
        last(&fleet).1,
        json!({"hostname": "www.example.org", "machine": id, "key_in_machine": false})
    );

    can(&fleet, "GET /v1/certificates", listed(&[unproved()]));
    can(&fleet, "POST /v1/apps/default/certificates/www.example.org/check", issued());
    let (code, out, _) = fleet.lobby("certs check WWW.example.org.").await;
    assert_eq!(code, 0);
    assert!(out.contains("renews     2026-02-09T11:12:13Z"), "{out}");
    let (code, _, err) = fleet.lobby("certs check ww.example.org").await;
    assert_eq!(code, 3);
    assert!(err.contains("did you mean `www.example.org`"), "{err}");
}

#[tokio::test]
async fn a_machines_own_name_is_made_from_the_machine_and_removal_asks() {
    let fleet = Fleet::start().await;
    fleet.fake.lock().machines.push(machine("web", mashines_fleet::record::MachineState::Started));
    can(
        &fleet,
        "GET /v1/whoami",
        json!({"me": "alice", "account": "alice", "standing": "owner", "admin": false, "domain": "mashine.test", "acts_for": []}),
    );
    can(&fleet, "POST /v1/apps/default/certificates/acme", issued());
    assert_eq!(fleet.lobby("certs issue web --wildcard --key-in-machine").await.0, 0);
    let asked = last(&fleet).1;
    assert_eq!(
        (asked["hostname"].as_str(), asked["key_in_machine"].as_bool()),
        (Some("*.web.mashine.test"), Some(true))
    );
    can(&fleet, "GET /v1/certificates", listed(&[issued()]));
    assert_eq!(fleet.lobby("certs rm web.mashine.test").await.0, 2, "nobody to ask");
    can(&fleet, "DELETE /v1/apps/default/certificates/web.mashine.test", json!({"ok": true}));
    assert_eq!(fleet.lobby("certs rm web.mashine.test --yes").await.1, "web.mashine.test is removed\n");
    let wild = certificate("*.web.mashine.test", "issued", json!({}));
    can(&fleet, "GET /v1/certificates", listed(&[wild]));
    can(&fleet, "DELETE /v1/apps/default/certificates/*.web.mashine.test", json!({"ok": true}));
    assert_eq!(fleet.lobby("certs rm '*.web.mashine.test' --yes").await.1, "*.web.mashine.test is removed\n");
    let (code, _, err) =
        fleet.lobby("certs import a.example.org --machine web --chain c.pem --key k.pem").await;
    assert_eq!(code, 2);
    assert!(err.contains("lobby cannot read your files"), "{err}");
}
