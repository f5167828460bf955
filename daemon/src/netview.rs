//! What netd must know of the fleet, as a projection of the records. Pure, but for the task that follows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::Ipv6Network;
use mashines_fleet::record::{Host, HostRole, Machine, MachineState};
use mashines_fleet::view::View;
use mashines_host::network::vni;
use netd::NetView;
use netd::view::{HostPeer, MachineRoute};
use tokio::sync::watch;

/// The length of an account's private prefix.
const ACCOUNT_PREFIX: u8 = 48;

/// The records as netd wants them.
pub fn project(view: &View) -> NetView {
    let machines = view.machines.values().filter_map(|m| route(m)).map(|r| (r.machine_id.clone(), r));
    let hosts = view.hosts.values().map(|h| (h.id.to_string(), peer(h)));
    NetView {
        revision: view.revision,
        hosts: hosts.collect(),
        machines: machines.collect::<BTreeMap<_, _>>(),
    }
}

fn peer(host: &Host) -> HostPeer {
    HostPeer {
        host_id: host.id.to_string(),
        entry: host.roles.contains(&HostRole::Entry),
        underlay: SocketAddr::new(host.underlay, host.wireguard_port),
        mesh_addr: host.mesh,
        wg_public_key: host.wireguard_key.clone(),
    }
}

fn route(machine: &Machine) -> Option<MachineRoute> {
    if machine.state == MachineState::Destroyed {
        return None;
    }
    // The private address is cut from the account's prefix: the account itself need not be looked up.
    let account = Ipv6Network::new(machine.net.private6, ACCOUNT_PREFIX).ok()?;
    let account = Ipv6Network::new(account.network(), ACCOUNT_PREFIX).ok()?;
    let place = machine.place.as_ref();
    Some(MachineRoute {
        machine_id: machine.id.to_string(),
        account,
        host_id: place.filter(|_| has_a_port(machine.state)).map(|p| p.host.to_string()),
        epoch: place.map_or(0, |p| p.epoch.0),
        ipv6: machine.net.ipv6,
        private6: Some(machine.net.private6),
        ipv4: None,
        vni: vni(account.network()),
    })
}

/// Whether packets for the machine lead somewhere.
fn has_a_port(state: MachineState) -> bool {
    match state {
        MachineState::Starting | MachineState::Started | MachineState::Stopping => true,
        MachineState::Created
        | MachineState::Stopped
        | MachineState::Destroying
        | MachineState::Destroyed
        | MachineState::Failed => false,
    }
}

/// Follows the records.
pub fn follow(mut view: watch::Receiver<Arc<View>>) -> watch::Receiver<Arc<NetView>> {
    let (sender, receiver) = watch::channel(Arc::new(project(&view.borrow_and_update())));
    tokio::spawn(async move {
        while view.changed().await.is_ok() {
            let next = project(&view.borrow_and_update());
            // Most revisions touch nothing that a route is made of.
            sender.send_if_modified(|now| {
                let differs = now.hosts != next.hosts || now.machines != next.machines || now.revision == 0;
                if differs {
                    *now = Arc::new(next);
                }
                differs
            });
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(state: &str) -> View {
        let machine = serde_json::json!({
            "id": "0123456789abcd", "slug": "web", "account": "ann", "app": "web", "instance_id": "x",
            "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
            "image_digest": "sha256:00", "desired": "started", "state": state,
            "place": {"host": "a", "epoch": 4}, "created_at": 0, "updated_at": 0,
            "net": {"ipv6": "2001:db8::1", "private6": "fd00:1:2:3::4", "mac": "02:00:00:00:00:01", "ssh_port": null},
        });
        let machine: Machine = serde_json::from_value(machine).unwrap();
        let machines = [(machine.id.clone(), Arc::new(machine))].into_iter().collect();
        View { revision: 9, machines, ..View::default() }
    }

    #[test]
    fn a_running_machine_leads_to_its_host_in_its_epoch() {
        let net = project(&view("started"));
        let route = &net.machines["0123456789abcd"];
        assert_eq!((route.host_id.as_deref(), route.epoch), (Some("a"), 4));
        assert_eq!(route.account.to_string(), "fd00:1:2::/48");
        assert_eq!(route.vni, 0x01_0002);
    }

    #[test]
    fn a_stopped_machine_leads_nowhere_and_a_destroyed_one_is_gone() {
        assert_eq!(project(&view("stopped")).machines["0123456789abcd"].host_id, None);
        assert!(project(&view("destroyed")).machines.is_empty());
    }
}
