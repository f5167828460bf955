//! Records for tests.

use std::net::Ipv6Addr;

use mashines_fleet::id::{Epoch, HostId};
use mashines_fleet::record::*;

/// A host with one image, 8 vCPUs and 4 GiB.
pub fn host(id: &str) -> Host {
    Host {
        id: id.parse().unwrap(),
        roles: vec![HostRole::Host],
        region: "here".to_owned(),
        api: "127.0.0.1:1".parse().unwrap(),
        underlay: "127.0.0.1".parse().unwrap(),
        wireguard_port: 0,
        wireguard_key: None,
        mesh: Ipv6Addr::LOCALHOST,
        capacity: Capacity { vcpus: 8, memory_mib: 4096, disk_mib: 65536 },
        images: vec![Image {
            name: "container-os".parse().unwrap(),
            digest: "sha256:01".to_owned(),
            rootfs_bytes: 1 << 30,
        }],
        cordoned: false,
        seen_at: 0,
        public_ipv4: vec![],
        public_ipv6: vec![],
    }
}

/// A machine that should run at a place.
pub fn machine(place: Option<(&str, u64)>) -> Machine {
    let host = |(id, epoch): (&str, u64)| Place { host: id.parse::<HostId>().unwrap(), epoch: Epoch(epoch) };
    Machine {
        id: "0123456789abcd".parse().unwrap(),
        slug: "quiet-otter".parse().unwrap(),
        account: "ann".parse().unwrap(),
        app: "default".parse().unwrap(),
        instance_id: String::new(),
        config: serde_json::from_value(serde_json::json!({
            "image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}
        }))
        .unwrap(),
        image_digest: "sha256:01".to_owned(),
        desired: Desired::Started,
        state: MachineState::Starting,
        reason: None,
        place: place.map(host),
        net: MachineNet {
            ipv6: "2001:db8::5".parse().unwrap(),
            private6: "fd00::5".parse().unwrap(),
            mac: "02:01:23:45:67:89".to_owned(),
            ssh_port: None,
            entry_ipv4: None,
        },
        host_key_public: None,
        shares: vec![],
        records: vec![],
        update_key: None,
        created_at: 0,
        updated_at: 0,
        events: vec![],
    }
}
