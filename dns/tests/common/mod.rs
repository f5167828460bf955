//! A small fleet to project.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mashines_dns::answer::{Asker, Authority, Moment, Transport, answer};
use mashines_dns::cookie::Cookies;
use mashines_dns::signer::OnlineSigner;
use mashines_dns::zone::Projector;
use mashines_fleet::id::DomainName;
use mashines_fleet::key::Key;
use mashines_fleet::record::{ZoneKey, ZoneKeyState, ZoneKeys};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, Change, View};
use mashines_fleet::zone_key::{dnskey_rdata, key_tag};
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

/// A zone's keys, one in each state, sealed with `secret`.
pub fn zone_keys(zone: &str, secret: &EntrySecret, states: &[ZoneKeyState]) -> Change {
    let id: DomainName = zone.parse().unwrap();
    let keys = states.iter().map(|state| {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let public = &pair.public_key().as_ref()[1..];
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let sealed = secret.seal(&Key::ZoneKeys(id.clone()), pkcs8.as_ref()).unwrap();
        let tag = key_tag(&dnskey_rdata(public));
        ZoneKey { tag, public: STANDARD.encode(public), secret: sealed, state: *state, since: 0 }
    });
    let record = ZoneKeys { id: id.clone(), keys: keys.collect() };
    put(Key::ZoneKeys(id).to_string(), serde_json::to_value(record).unwrap())
}
