//! Names and certificates over the real API: whose a name is, what proves it, what is refused, what entries may write.

use crate::support::names::Names;
use crate::support::people::{People, ask, launch, refused};
use crate::support::{Fleet, MACHINES, founding};
use http::Method;
use mashines_control::Config;
use mashines_fleet::api::{self, CertificateState as State, Certificates};
use mashines_fleet::rpc::{Client, Empty, RpcError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const CERTIFICATES: &str = "/v1/apps/default/certificates";
const ACME: &str = "/v1/apps/default/certificates/acme";
const CUSTOM: &str = "/v1/apps/default/certificates/custom";
const INTERNAL: &str = "/internal/v1/certificates";

/// People, and a DNS that the test writes; each of them has a machine of their name.
async fn up(who: &[&str]) -> (People, Names) {
    let names = Names::start().await;
    let config = Config { resolvers: vec![names.address], ..Config::default() };
    let people = People::of_fleet(Fleet::up_as(&["hosta"], config, founding()).await).await;
    for name in who {
        let machine = format!("{name}-web");
        people.of(name).post::<_, api::Machine>(MACHINES, &launch(&machine)).await.unwrap();
    }
    (people, names)
}

async fn add(client: &Client, name: &str) -> api::Certificate {
    client.post(ACME, &json!({"hostname": name})).await.unwrap()
}

async fn check(client: &Client, name: &str) -> api::Certificate {
    client.post(&format!("{CERTIFICATES}/{name}/check"), &json!({})).await.unwrap()
}

async fn listed(client: &Client) -> Vec<api::Certificate> {
    client.get::<Certificates>("/v1/certificates").await.unwrap().certificates
}

/// Chain and key for a name, until `not_after` (year) from a CA of its own.
fn brought(name: &str, not_after: i32) -> (String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca.pem(), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (format!("{}{}", leaf.pem(), ca.pem()), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_refused_with_a_reason_and_a_role_is_needed() {
    let (people, _names) = up(&["bob", "cem"]).await;
    let bob = people.of("bob");
    let no = async |name: &str, status: u16, says: &str| {
        refused(&bob, Method::POST, ACME, json!({"hostname": name}), status, says).await;
    };
    no("mashine.test", 400, "is the platform's").await;
    no("*.mashine.test", 400, "is the platform's").await;
    no("a.b.mashine.test", 400, "wildcard below it").await;
    no("cem-web.mashine.test", 404, "no machine").await;
    no("192.0.2.1", 400, "is an address").await;
    no("x.internal", 400, "is in the public DNS").await;
    no("*.customer.example", 400, "mashines certs import").await;
    no("no such name", 400, "no domain name").await;
    let body = json!({"hostname": "www.customer.example", "machine": "cem-web"});
    refused(&bob, Method::POST, ACME, body, 404, "no machine").await;
    bob.post::<_, api::Machine>(MACHINES, &launch("bob-db")).await.unwrap();
    no("www.customer.example", 400, "has 2 machines").await;
    let body = json!({"hostname": "bob-db.mashine.test", "machine": "bob-web"});
    refused(&bob, Method::POST, ACME, body, 400, "name of machine bob-db, not of bob-web").await;

    people.member("bob", "cem", "viewer").await;
    let viewer = people.acting("cem", "bob");
    refused(&viewer, Method::POST, ACME, json!({"hostname": "bob-web.mashine.test"}), 403, "operators").await;
    assert!(listed(&viewer).await.is_empty());
    people.member("bob", "cem", "operator").await;
    let operator = people.acting("cem", "bob");
    let made = add(&operator, "bob-web.mashine.test").await;
    assert_eq!((made.state, made.configured), (State::Wanted, true));
    assert_eq!(made.status, "Awaiting certificates");
    let body = json!({"account": "cem", "role": "operator"});
    people.of("bob").post::<_, Value>(&format!("{MACHINES}/bob-web/shares"), &body).await.unwrap();
    let body = json!({"hostname": "www.customer.example", "machine": "bob-web"});
    refused(&people.of("cem"), Method::POST, ACME, body, 400, "added by its own account, bob").await;
    refused(
        &people.of("team"),
        Method::GET,
        &format!("{CERTIFICATES}/bob-web.mashine.test"),
        Value::Null,
        404,
        "no name",
    )
    .await;
    assert_eq!(
        listed(&people.of("ann")).await.len(),
        0,
        "administrators see the platform's, not everybody's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_proved_changes_hands_by_proof_alone_and_goes_with_its_machine() {
    let (people, names) = up(&["bob", "cem"]).await;
    let (bob, cem) = (people.of("bob"), people.of("cem"));
    let name = "www.customer.example";
    // An address of ours is no proof: addresses are given out again.
    names.address(name, "192.0.2.1");
    let added = add(&bob, "WWW.Customer.Example.").await;
    assert_eq!(added.state, State::AwaitingProof);
    assert!(added.validation_errors[0].remediation.contains("TXT _mashines.www.customer.example"));
    // Who is second must prove it too; until then the first has it, proved or not.
    let claimed = add(&cem, name).await;
    assert_eq!(claimed.state, State::AwaitingProof);
    assert!(claimed.validation_errors[0].message.contains("another account's"));
    let proof_of =
        |certificate: &api::Certificate| certificate.dns_requirements.clone().unwrap().ownership.app_value;
    assert_ne!(proof_of(&added), proof_of(&claimed));
    names.text(&format!("_mashines.{name}"), &proof_of(&added));
    let checked = check(&bob, name).await;
    assert_eq!((checked.state, checked.configured), (State::Wanted, true), "{checked:?}");
    assert_eq!(check(&cem, name).await.state, State::AwaitingProof, "another's text is not cem's");

    // The domain is sold: the zone has cem's text now.
    names.forget(&format!("_mashines.{name}"));
    names.text(&format!("_mashines.{name}"), &proof_of(&claimed));
    assert_eq!(check(&cem, name).await.state, State::Wanted);
    assert!(listed(&bob).await.is_empty());
    refused(&bob, Method::POST, &format!("{CERTIFICATES}/{name}/check"), json!({}), 404, "no name").await;

    // With the proof gone it is served on for a while, and says so.
    names.forget(&format!("_mashines.{name}"));
    let checked = check(&cem, name).await;
    assert!(!checked.configured && checked.validation_errors[0].message.contains("nothing says"));
    // Unknown is not absent.
    names.silence(true);
    assert!(check(&cem, name).await.validation_errors[0].message.contains("could not be seen"));
    names.silence(false);

    // An alias to the account's own machine is a proof; to another's it is none.
    names.alias("shop.customer.example", "bob-web.mashine.test");
    names.address_of_machine("bob-web", "192.0.2.1");
    assert_eq!(add(&cem, "shop.customer.example").await.state, State::AwaitingProof);
    let taken = add(&bob, "shop.customer.example").await;
    assert_eq!((taken.state, taken.configured), (State::Wanted, true), "taken over by the alias: {taken:?}");

    ask(&cem, Method::DELETE, &format!("{CERTIFICATES}/{name}"), Value::Null).await.unwrap();
    assert!(listed(&cem).await.is_empty());
    ask(&bob, Method::DELETE, &format!("{MACHINES}/bob-web?force=true"), Value::Null).await.unwrap();
    crate::support::eventually("names go with their machine", || async {
        listed(&bob).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_brought_is_looked_at_and_its_key_is_shown_to_nobody() {
    let (people, _names) = up(&["bob"]).await;
    let bob = people.of("bob");
    let name = "bob-web.mashine.test";
    let (chain, key) = brought(name, 2040);
    let body = |chain: &str, key: &str| json!({"hostname": name, "fullchain": chain, "private_key": key});
    let (_, other) = brought(name, 2040);
    refused(&bob, Method::POST, CUSTOM, body(&chain, &other), 400, "not the one of the certificate").await;
    refused(&bob, Method::POST, CUSTOM, body("x", &key), 400, "chain is not understood").await;
    refused(&bob, Method::POST, CUSTOM, body(&chain, "x"), 400, "private key is not understood").await;
    let (wrong, wrong_key) = brought("a.mashine.test", 2040);
    refused(&bob, Method::POST, CUSTOM, body(&wrong, &wrong_key), 400, "it is for a.mashine.test").await;
    let (old, old_key) = brought(name, 2021);
    refused(&bob, Method::POST, CUSTOM, body(&old, &old_key), 400, "has expired").await;

    let kept: Value = bob.post(CUSTOM, &body(&chain, &key)).await.unwrap();
    assert_eq!((kept["state"].as_str(), kept["source"].as_str()), (Some("issued"), Some("imported")));
    assert!(kept.get("renew_at").is_none() && !kept.to_string().contains("PRIVATE"));
    assert!(!format!("{:?}", api::PrivateKeyPem(key.clone())).contains("PRIVATE"));
    // Replicas of hosts hold it sealed.
    let store = std::fs::read(people.fleet.state.path().join("control.sqlite")).unwrap();
    let secret = key.lines().nth(1).unwrap().as_bytes();
    assert!(!store.windows(secret.len()).any(|window| window == secret), "the key is in the store in plain");
    // The wildcard of a domain can be brought; it serves once the domain is proved.
    let (chain, key) = brought("*.customer.example", 2040);
    let body = json!({"hostname": "*.customer.example", "fullchain": chain, "private_key": key});
    let kept: api::Certificate = bob.post(CUSTOM, &body).await.unwrap();
    assert_eq!(kept.state, State::AwaitingProof);
    assert_eq!(kept.dns_requirements.unwrap().ownership.name, "_mashines.customer.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_no_more_than_a_hundred_names() {
    let (people, _names) = up(&["bob"]).await;
    let bob = people.of("bob");
    for tens in 0..10 {
        let names = (0..10).map(|n| format!("n{}.customer.example", 10 * tens + n));
        futures_util::future::join_all(names.map(|name| {
            let bob = bob.clone();
            async move { add(&bob, &name).await }
        }))
        .await;
    }
    refused(&bob, Method::POST, ACME, json!({"hostname": "one.too.many.example"}), 409, "100 names").await;
    add(&bob, "n7.customer.example").await;
    assert_eq!(listed(&bob).await.len(), 100);
}

/// Two entries.
struct Entries(Client, Client);

impl Entries {
    async fn of(people: &mut People) -> Self {
        let other = people.fleet.join("entry161", vec![mashines_fleet::record::HostRole::Entry]).await;
        let to = |identity| Client::to_control(identity, &people.fleet.url).unwrap();
        Self(to(&people.entry), to(&other))
    }
}

async fn call(client: &Client, what: &str, body: Value) -> Result<Value, RpcError> {
    client.post(&format!("{INTERNAL}/bob-web.mashine.test/{what}"), &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_entry_works_at_a_time_and_writes_only_what_fits() {
    let (mut people, _names) = up(&["bob"]).await;
    let Entries(one, two) = Entries::of(&mut people).await;
    let bob = people.of("bob");
    add(&bob, "bob-web.mashine.test").await;
    call(&one, "lease", json!({})).await.unwrap();
    let held = call(&two, "lease", json!({})).await.unwrap_err();
    assert!(held.message().contains("entry160 works on it"), "{held}");
    call(&one, "lease", json!({})).await.unwrap();
    for (what, body) in [
        ("order", json!({"issuer": "ca"})),
        ("window", json!({"ask_window_at": 5})),
        ("failed", json!({"issuer": "ca", "what": "", "hint": "", "next_try_at": 0})),
        ("request", json!({})),
    ] {
        let error = call(&two, what, body).await.unwrap_err();
        assert!(error.message().contains("does not hold the lease"), "{what}: {error}");
    }
    // Entries only: neither hosts nor people.
    let host = Client::to_control(&people.host, &people.fleet.url).unwrap();
    assert!(call(&host, "lease", json!({})).await.unwrap_err().message().contains("no entry"));
    refused(
        &bob,
        Method::POST,
        INTERNAL,
        json!({"names": ["*.evil.example", "evil.example"]}),
        400,
        "*.APEX",
    )
    .await;

    // Challenges: of the certificate's names, well-formed, and by who has the lease.
    let show = async |client: &Client, name: &str, show: Value| {
        let body = json!({"certificate": "bob-web.mashine.test", "name": name, "show": show});
        client.post::<_, Value>("/internal/v1/challenges", &body).await
    };
    let good = json!({"type": "dns01", "value": "abc"});
    assert!(show(&two, "bob-web.mashine.test", good.clone()).await.is_err());
    assert!(show(&one, "mashine.test", good.clone()).await.unwrap_err().message().contains("no name of"));
    let bad = json!({"type": "http01", "token": "../etc", "authorization": "../etc.x"});
    assert!(show(&one, "bob-web.mashine.test", bad).await.unwrap_err().message().contains("RFC 8555"));
    let shown = show(&one, "bob-web.mashine.test", good).await.unwrap();
    one.delete::<Empty>(&format!("/internal/v1/challenges/{}", shown["id"].as_str().unwrap())).await.unwrap();

    // A chain for another name, or with another key, is not taken.
    let (chain, _) = brought("other.mashine.test", 2040);
    let body = json!({"issuer": "ca", "chain_pem": chain, "renew_at": 1});
    assert!(call(&one, "issued", body).await.unwrap_err().message().contains("it is for other.mashine.test"));
    let (chain, _) = brought("bob-web.mashine.test", 2040);
    let body = json!({"issuer": "ca", "chain_pem": chain, "renew_at": 1, "key": "AAAA"});
    assert!(call(&one, "issued", body).await.unwrap_err().message().contains("does not open"));
    let body = json!({"issuer": "ca", "chain_pem": chain, "renew_at": 1});
    assert!(call(&one, "issued", body).await.unwrap_err().message().contains("who holds its key"));

    // A failure is shown with what to do, and pauses no longer than a week and a day whatever the entry's clock says.
    let body = json!({"issuer": "ca", "what": "no way", "hint": "wait", "next_try_at": u64::MAX});
    call(&one, "failed", body).await.unwrap();
    let shown = &listed(&bob).await[0];
    assert_eq!((shown.state, shown.failures), (State::Failing, 1));
    assert_eq!(shown.validation_errors[0].remediation, "wait");
    let again = shown.next_try_at.as_ref().unwrap();
    assert!(again.starts_with("20"), "{again}");
    call(&two, "lease", json!({})).await.unwrap();
    // What is removed in the middle of an order is gone, whatever the entry brings then.
    ask(&bob, Method::DELETE, &format!("{CERTIFICATES}/bob-web.mashine.test"), Value::Null).await.unwrap();
    let error = call(&two, "window", json!({"ask_window_at": 5})).await.unwrap_err();
    assert_eq!(error.status().map(|s| s.as_u16()), Some(404));
}
