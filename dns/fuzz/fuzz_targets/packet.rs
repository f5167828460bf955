//! What any packet does: an answer of its size, with its id and its question, marked as a response, that reads back; or none.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mashines_dns::answer::{Asker, Authority, Moment, Transport, answer, truncated};
use mashines_dns::cookie::Cookies;
use mashines_dns::name::Labels;
use mashines_dns::signer::OnlineSigner;
use mashines_dns::zone::Projector;
use mashines_fleet::view::{Batch, Change, View};
use serde_json::json;

static WORLD: LazyLock<(Moment, Authority)> = LazyLock::new(|| {
    let own =
        |name: &str, kind: &str, data: &str| json!({"name": name, "type": kind, "ttl": 60, "data": data});
    let fleet = json!({
        "domain": "m.dev", "prefix": "2001:db8:160::/48", "ssh_ports": [1, 2], "ssh_ca": null,
        "name_servers": [{"name": "ns.m.dev", "addresses": ["192.0.2.1"]}],
        "zones": [{"name": "m.dev", "records": [own("cut", "NS", "ns.cut.m.dev."), own("ns.cut", "A", "192.0.2.2")]}],
    });
    let machine = json!({
        "id": "00000000000001", "slug": "w", "account": "a", "app": "a", "instance_id": "x",
        "config": {"image": "i", "guest": {"cpus": 1, "memory_mb": 256}}, "image_digest": "", "desired": "started",
        "state": "started", "place": null, "created_at": 0, "updated_at": 0,
        "net": {"ipv6": "2001:db8:160::1", "private6": "fd00::9", "mac": "02:00:00:00:00:01", "ssh_port": null},
        "records": [own("c", "CNAME", "x.w.m.dev."), own("l", "CNAME", "l.w.m.dev."), own("t", "TXT", "text")],
    });
    let put = |key: &str, value| Change { key: key.to_owned(), value: Some(value) };
    let mut view = View::default();
    let changes = vec![put("config", fleet), put("machines/00000000000001", machine)];
    assert!(view.apply(&Batch { revision: 1, changes }).is_empty());
    let mut projector = Projector::default();
    projector.apply(&Arc::new(view), None);
    let authority = Authority {
        identity: "me".to_owned(),
        version: "v".to_owned(),
        idle: Duration::from_secs(10),
        signer: OnlineSigner::new(100, 100),
    };
    (Moment { zones: projector.zones(), cookies: Arc::new(Cookies::new(None)) }, authority)
});

fuzz_target!(|packet: &[u8]| {
    let (moment, authority) = &*WORLD;
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tls, 65_535)] {
        let asker = Asker { address: [192, 0, 2, 9].into(), transport, now: 1_800_000_000 };
        let mut reply = Vec::new();
        let Some(told) = answer(packet, asker, moment, authority, &mut reply) else { continue };
        assert!(reply.len() >= 12 && reply.len() <= limit);
        assert_eq!(reply[..2], packet[..2]);
        assert!(reply[2] & 0x80 != 0 && reply[3] & 0x80 == 0);
        if reply[5] == 1 {
            let name: usize = Labels::of(&reply[12..]).map(|label| label.len() + 1).sum();
            let end = 12 + name + 5;
            assert_eq!(reply[12..end], packet[12..end], "the question comes back as it was");
        }
        truncated(&mut reply, &told);
        assert!(reply[2] & 0x02 != 0 && reply.len() < limit);
    }
});
