//! Certificates of a real ACME server, by all three challenges.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mashines_fleet::api::CertificateState;
use mashines_fleet::chain::Chain;
use serde_json::json;
use support::pebble::{Pebble, With};
use support::{World, log};

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_wildcard_is_there_before_the_first_machine_though_every_other_nonce_is_refused() {
    log();
    let world = World::up().await;
    let pebble = Pebble::start(&world, With { bad_nonces: 50, ..With::default() }).await;
    let _entry = world.entry("entry1", vec![pebble.issuer("pebble")]).await;
    let certificate = world.issued(support::WILDCARD).await;
    let chain = Chain::parse(certificate.chain_pem.as_ref().unwrap()).unwrap();
    chain
        .serves(&[support::WILDCARD.parse().unwrap(), support::APEX.parse().unwrap()], support::now())
        .unwrap();
    chain.with_key(world.key(&certificate).as_bytes()).unwrap();
    assert_eq!(certificate.issuer.as_deref(), Some("pebble"));
    assert!(pebble.log().contains("JWS has an invalid anti-replay nonce") || pebble.log().contains("nonce"));
    support::fleet::eventually("challenges are gone", || async {
        world.view().challenges.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_and_a_domain_have_certificates_of_their_own_and_the_domain_only_once_it_is_proved() {
    log();
    let world = World::up().await;
    let pebble = Pebble::start(&world, With { bad_nonces: 15, ..With::default() }).await;
    let _entry = world.entry("entry1", vec![pebble.issuer("pebble")]).await;
    world.fleet.started("web").await;
    world.add(json!({"hostname": "web.mashine.test"})).await;
    world.add(json!({"hostname": "*.web.mashine.test"})).await;
    let added = world.add(json!({"hostname": "WWW.Customer.Example.", "machine": "web"})).await;
    assert_eq!(
        (added.hostname.as_str(), added.state),
        ("www.customer.example", CertificateState::AwaitingProof)
    );
    let needs = added.dns_requirements.unwrap();
    assert_eq!(needs.ownership.name, "_mashines.www.customer.example");
    world.issued("web.mashine.test").await;
    world.issued("*.web.mashine.test").await;
    assert!(world.view().certificates[&"www.customer.example".parse().unwrap()].chain_pem.is_none());

    world.names.address("www.customer.example", "127.0.0.1");
    world.names.text("_mashines.www.customer.example", &needs.ownership.app_value);
    let checked = world.check("www.customer.example").await;
    assert!(checked.configured, "{checked:?}");
    world.issued("www.customer.example").await;
    let shown = world.shown("www.customer.example").await;
    assert_eq!(shown.state, CertificateState::Issued);
    assert!(shown.expires_at.is_some() && shown.renew_at.is_some() && shown.validation_errors.is_empty());

    // By an alias, without a text.
    world.names.alias("shop.customer.example", "web.mashine.test");
    let added = world.add(json!({"hostname": "shop.customer.example", "machine": "web"})).await;
    assert!(added.configured, "{added:?}");
    world.issued("shop.customer.example").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pebble_cannot_validate_by_one_challenge_is_tried_by_the_other() {
    log();
    let world = World::up().await;
    // Pebble looks for tls-alpn-01 at a port where nobody is: our own look at the edge finds all in order.
    let pebble = Pebble::start(&world, With { tls: Some(support::free_port()), ..With::default() }).await;
    let _entry = world.entry("entry1", vec![pebble.issuer("pebble")]).await;
    world.issued(support::WILDCARD).await;
    world.fleet.started("web").await;
    world.names.alias("www.customer.example", "web.mashine.test");
    world.add(json!({"hostname": "www.customer.example", "machine": "web"})).await;
    let failed =
        world.certificate("www.customer.example", "invalid", |c| c.failures == 1 && c.lease.is_none()).await;
    let problem = failed.problem.unwrap();
    assert!(problem.what.contains("could not validate www.customer.example"), "{problem:?}");
    assert!(problem.hint.contains("CAA"));
    let shown = world.shown("www.customer.example").await;
    assert_eq!((shown.state, shown.failures), (CertificateState::Failing, 1));
    let account = world.view().acme_accounts[&"pebble".parse().unwrap()].clone();
    assert_eq!(account.failures[&"www.customer.example".parse().unwrap()].len(), 1);
    world.travel.by(std::time::Duration::from_secs(900));
    let certificate = world.issued("www.customer.example").await;
    assert!(pebble.log().contains("/.well-known/acme-challenge/"), "by http-01");
    assert_eq!((certificate.failures, certificate.problem), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn pebble_takes_a_binding_to_an_external_account() {
    log();
    let world = World::up().await;
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let mut pebble = Pebble::start(&world, With { eab: Some(("kid-1", key)), ..With::default() }).await;
    let unbound = pebble.issuer("pebble");
    let bound = mashines_acme::config::Issuer {
        name: "bound".parse().unwrap(),
        eab: Some(mashines_acme::config::Eab { kid: "kid-1".to_owned(), key_file: pebble.file("eab", key) }),
        ..unbound.clone()
    };
    let entry = world.entry("entry1", vec![unbound]).await;
    let failed =
        world.certificate(support::WILDCARD, "refused", |c| c.failures == 1 && c.lease.is_none()).await;
    assert!(failed.problem.as_ref().unwrap().hint.contains("`eab`"), "{:?}", failed.problem);
    drop(entry);
    world.travel.by(std::time::Duration::from_secs(3600));
    let identity = world.joined("entry2").await;
    let _entry = world.run(identity, vec![bound]);
    assert_eq!(world.issued(support::WILDCARD).await.issuer.as_deref(), Some("bound"));
    pebble.stop().await;
}
