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
