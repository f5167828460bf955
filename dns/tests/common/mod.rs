//! A small fleet to project.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use mashines_dns::answer::{Asker, Authority, Moment, Transport, answer};
use mashines_dns::cookie::Cookies;
use mashines_dns::signer::OnlineSigner;
use mashines_dns::zone::Projector;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, Change, View};
use serde_json::{Value, json};

pub const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR";

pub fn put(key: String, value: Value) -> Change {
    Change { key, value: Some(value) }
}

pub fn config(prefix: &str) -> Change {
    put(
        "config".into(),
        json!({
            "domain": "mashine.dev",
            "prefix": prefix,
            "name_servers": [
                {"name": "ns1.mashine.dev", "addresses": ["203.0.113.53", "2001:db8::53"]},
                {"name": "a.ns.mashine.dev.", "addresses": ["2001:db8::54"]},
                {"name": "ns.example.net", "addresses": ["192.0.2.99"]},
            ],
            "ssh_ports": [2200, 2299],
            "ssh_ca": null,
        }),
    )
}

pub fn entry() -> Change {
    put(
        "hosts/entry160".into(),
        json!({
            "id": "entry160", "roles": ["entry"], "region": "lab",
            "api": "10.0.0.3:7000", "underlay": "10.0.0.3",
            "wireguard_port": 0, "wireguard_key": null, "mesh": "fd00::3",
            "capacity": {"vcpus": 0, "memory_mib": 0, "disk_mib": 0}, "images": [], "seen_at": 0,
            "public_ipv4": ["198.51.100.160"], "public_ipv6": ["2001:db8:160::fff1"],
        }),
    )
}

pub fn machine(id: u64, slug: &str, ipv6: &str, extra: Value) -> Change {
    let mut value = json!({
        "id": format!("{id:014x}"), "slug": slug, "account": "ann", "app": "web",
        "instance_id": "01J00000000000000000000000",
        "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
        "image_digest": "sha256:00", "desired": "started", "state": "started", "place": null,
        "net": {"ipv6": ipv6, "private6": "fd00::9", "mac": "02:00:00:00:00:01", "ssh_port": null},
        "created_at": 0, "updated_at": 0,
    });
    for (key, change) in extra.as_object().cloned().unwrap_or_default() {
        value[key] = change;
    }
    put(format!("machines/{id:014x}"), value)
}

/// A machine with a shared port and a host key.
pub fn web() -> Change {
    machine(
        1,
        "web",
        "2001:db8:160::1",
        json!({
            "host_key_public": HOST_KEY,
            "net": {"ipv6": "2001:db8:160::1", "private6": "fd00::9", "mac": "02:00:00:00:00:01",
                    "ssh_port": {"entry": "entry160", "port": 2201}},
        }),
    )
}

pub fn view(changes: Vec<Change>) -> Arc<View> {
    let mut view = View::default();
    let skipped = view.apply(&Batch { revision: 4_294_967_296 + 7, changes });
    assert_eq!(skipped, []);
    Arc::new(view)
}

pub fn fleet() -> Arc<View> {
    view(vec![config("2001:db8:160::/48"), entry(), web(), machine(2, "db", "2001:db8:160::2", json!({}))])
}

/// The time at which tests ask, seconds since 1970.
pub const NOW: u64 = 1_800_000_000;

/// What there is to answer from: a view, and what opens its keys.
pub struct World {
    pub moment: Moment,
    pub authority: Authority,
}

impl World {
    pub fn new(view: &Arc<View>, secret: Option<&EntrySecret>) -> Self {
        let mut projector = Projector::default();
        projector.apply(view, secret);
        let cookies = Arc::new(Cookies::new(secret.cloned()));
        Self { moment: Moment { zones: projector.zones(), cookies }, authority: authority(1_000_000) }
    }

    pub fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let asker = Asker { address: "192.0.2.7".parse().unwrap(), transport, now: NOW };
        let mut out = Vec::new();
        answer(packet, asker, &self.moment, &self.authority, &mut out).map(|_| out)
    }
}

pub fn authority(signatures_per_second: u32) -> Authority {
    Authority {
        identity: "entry160".into(),
        version: "mashines".into(),
        idle: Duration::from_secs(10),
        signer: OnlineSigner::new(1000, signatures_per_second),
    }
}

/// A record of the keys of `zone` in these states, sealed with `secret`.
pub fn zone_keys(zone: &str, states: &[&str], secret: &EntrySecret) -> Change {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use base64::Engine as _;
    use mashines_fleet::key::Key;
    let id: mashines_fleet::id::DomainName = zone.parse().unwrap();
    let keys: Vec<Value> = states
        .iter()
        .map(|state| {
            let random = aws_lc_rs::rand::SystemRandom::new();
            let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let sealed = secret.seal(&Key::ZoneKeys(id.clone()), der.as_ref()).unwrap();
            let public = base64::engine::general_purpose::STANDARD.encode([0; 64]);
            json!({"tag": 0, "public": public, "secret": sealed, "state": state, "since": 0})
        })
        .collect();
    put(format!("zone-keys/{zone}"), json!({"id": zone, "keys": keys}))
}

/// All our zones in [`every_shape`].
pub const ZONES: [&str; 4] =
    ["mashine.dev", "lab.mashine.dev", "example.net", "0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa"];

/// A fleet with an answer of every shape: aliases, wildcards, empty non-terminals, delegations, large sets.
pub fn every_shape() -> Vec<Change> {
    let own =
        |name: &str, kind: &str, data: &str| json!({"name": name, "type": kind, "ttl": 300, "data": data});
    let mut records = vec![
        own("txt", "TXT", "\"hello world\""),
        own("", "MX", "10 mail.example.org."),
        own("_https._tcp", "SRV", "1 2 443 web.mashine.dev."),
        own("www", "CNAME", "web.mashine.dev."),
        own("www2", "CNAME", "www.web.mashine.dev."),
        own("away", "CNAME", "www.example.org."),
        own("gone", "CNAME", "nope.mashine.dev."),
        own("loop", "CNAME", "pool.web.mashine.dev."),
        own("pool", "CNAME", "loop.web.mashine.dev."),
        own("*.wild", "TXT", "\"any\""),
        own("deep.below", "TXT", "\"deep\""),
    ];
    records.extend((0..20).map(|n| own("big", "TXT", &format!("\"{n} {}\"", "x".repeat(200)))));
    let mut config = config("2001:db8:160::/48");
    let value = config.value.as_mut().unwrap();
    value["caa_issuers"] = json!(["letsencrypt.org"]);
    value["zones"] = json!([
        {"name": "mashine.dev", "records": [
            own("unsigned", "NS", "ns.unsigned.mashine.dev."), own("ns.unsigned", "A", "192.0.2.53"),
            own("signed", "NS", "ns.example.org."),
            own("signed", "DS", &format!("4711 13 2 {}", "ab".repeat(32))),
        ]},
        {"name": "lab.mashine.dev", "records": [own("host", "A", "192.0.2.9")]},
        {"name": "example.net", "records": [own("", "A", "192.0.2.10"), own("*", "TXT", "\"star\"")]},
    ]);
    let web = machine(
        1,
        "web",
        "2001:db8:160::1",
        json!({
            "host_key_public": HOST_KEY, "records": records,
            "net": {"ipv6": "2001:db8:160::1", "private6": "fd00::9", "mac": "02:00:00:00:00:01",
                    "ssh_port": {"entry": "entry160", "port": 2201}},
        }),
    );
    let challenge = |id: u8, name: &str, value: &str| {
        let value = json!({"name": name, "show": {"type": "dns01", "value": value}, "expires_at": 1});
        put(format!("challenges/{id:026}"), value)
    };
    vec![
        config,
        entry(),
        web,
        machine(2, "db", "2001:db8:160::2", json!({})),
        challenge(1, "mashine.dev", "platform"),
        challenge(2, "web.mashine.dev", "machine"),
        challenge(3, "shop.example.org", "elsewhere"),
    ]
}

/// [`every_shape`] with a key for each zone.
pub fn signed(secret: &EntrySecret) -> Arc<View> {
    let mut changes = every_shape();
    changes.extend(ZONES.iter().map(|zone| zone_keys(zone, &["active"], secret)));
    view(changes)
}
