//! Properties of the pure parts together: ledger, plan and reconcile, against a model of the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::api::{Instance, Mac, Phase, Port, tap_name};
use crate::config::{Ingress, NetdConfig, Role, Underlay};
use crate::ledger::{Change, Ledger, Verdict};
use crate::plan::{Known, RouteKey, Target};
use crate::reconcile::{Action, Owner, Routes};
use crate::view::{HostPeer, MachineRoute, NetView};

const HERE: &str = "a";
const HOSTS: [&str; 3] = ["a", "b", "c"];

fn config() -> NetdConfig {
    NetdConfig {
        state_dir: "/nowhere".into(),
        socket: "/nowhere/netd.sock".into(),
        host_id: HERE.into(),
        role: Role::Host,
        underlay: Underlay::Wireguard,
        underlay_mtu: 1500,
        wireguard_port: 51820,
        wireguard_interface: "wg0".into(),
        overlay_interface: "gx".into(),
        mesh_addr: "fd6d::a".parse().unwrap(),
        mesh_prefix: "fd6d::/64".parse().unwrap(),
        region_prefixes: vec!["2001:db8:1::/48".parse().unwrap()],
        ingress: Ingress::Anchored,
        web_ports: vec![],
        resolver: Some("fdaa::3".parse().unwrap()),
    }
}

fn view() -> NetView {
    let hosts = HOSTS.iter().enumerate().map(|(i, id)| {
        let number = u16::try_from(i).unwrap() + 0xa;
        let mesh_addr = std::net::Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0, number);
        let peer = HostPeer {
            host_id: (*id).into(),
            entry: *id == "c",
            underlay: std::net::SocketAddr::new(mesh_addr.into(), 51820),
            mesh_addr,
            wg_public_key: None,
        };
        ((*id).to_owned(), peer)
    });
    NetView { revision: 1, hosts: hosts.collect(), machines: BTreeMap::new() }
}

fn port(machine: u8, epoch: u64) -> Port {
    let id = format!("m{machine}");
    Port {
        tap: tap_name(&id),
        machine_id: id,
        epoch,
        mac: Mac([2, 0, 0, 0, 0, machine]),
        mtu: 1360,
        ipv6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, machine.into()),
        private6: None,
        ipv4: None,
        account: "fd12:3456:789a::/48".parse().unwrap(),
        vni: 7,
    }
}

#[derive(Clone, Debug)]
enum Event {
    Order(Change),
    Records { machine: u8, host: Option<usize>, epoch: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let at = || (0_u8..2, 1_u64..6).prop_map(|(m, epoch)| Instance { machine: format!("m{m}"), epoch });
    prop_oneof![
        (0_u8..2, 1_u64..6).prop_map(|(m, e)| Event::Order(Change::Prepare(Box::new(port(m, e))))),
        at().prop_map(|at| Event::Order(Change::Phase(at, Phase::Active))),
        at().prop_map(|at| Event::Order(Change::Phase(at, Phase::Announced))),
        at().prop_map(|at| Event::Order(Change::Phase(at, Phase::Suppressed))),
        at().prop_map(|at| Event::Order(Change::Remove(at))),
        (at(), 0_usize..3).prop_map(|(at, host)| Event::Order(Change::Redirect {
            machine: at.machine,
            epoch: at.epoch,
            to_host: HOSTS[host].into(),
        })),
        (0_u8..2, proptest::option::of(0_usize..3), 1_u64..6)
            .prop_map(|(machine, host, epoch)| Event::Records { machine, host, epoch }),
    ]
}

/// A host as the shell runs it, with a map for a kernel.
struct Model {
    config: NetdConfig,
    view: NetView,
    ledger: Ledger,
    routes: Routes,
    kernel: BTreeMap<RouteKey, Target>,
}

impl Model {
    fn new() -> Self {
        let (ledger, routes) = (Ledger::default(), Routes::default());
        Self { config: config(), view: view(), ledger, routes, kernel: BTreeMap::new() }
    }

    fn epoch(&self, machine: &str) -> Option<u64> {
        let known = Known { config: &self.config, view: &self.view };
        known.place(machine, self.ledger.get(machine)).map(|place| place.epoch)
    }

    /// Follows an event; answers whether it was obeyed.
    fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Order(change) => {
                let known = Known { config: &self.config, view: &self.view };
                let Ok(verdict) = self.ledger.check(change, known) else { return false };
                let machine = match change {
                    Change::Prepare(port) => &port.machine_id,
                    Change::Phase(at, _) | Change::Remove(at) => &at.machine,
                    Change::Redirect { machine, .. } => machine,
                };
                if let Verdict::Becomes(entry) = verdict {
                    self.ledger.set(machine, *entry);
                }
                true
            }
            Event::Records { machine, host, epoch } => {
                let id = format!("m{machine}");
                // Control raises the epoch with each change of place, by compare-and-swap.
                if self.view.machines.get(&id).is_some_and(|m| m.epoch >= *epoch) {
                    return false;
                }
                let port = port(*machine, *epoch);
                let record = MachineRoute {
                    machine_id: id.clone(),
                    account: port.account,
                    host_id: host.map(|h| HOSTS[h].to_owned()),
                    epoch: *epoch,
                    ipv6: port.ipv6,
                    private6: None,
                    ipv4: None,
                    vni: 7,
                };
                self.view.revision += 1;
                self.view.machines.insert(id, record);
                self.ledger.follow(&self.view);
                true
            }
        }
    }

    /// Brings the kernel along; answers the messages of each prefix.
    fn settle(&mut self) -> Vec<Action> {
        let mut sent = Vec::new();
        for machine in ["m0", "m1"] {
            let known = Known { config: &self.config, view: &self.view };
            let desired = known.machine_routes(machine, self.ledger.get(machine));
            let owner = Owner::Machine(Arc::from(machine));
            self.routes.claim(&owner, &desired);
            for action in self.routes.diff(&owner, &desired) {
                match &action {
                    Action::Put(key, target) => self.kernel.insert(*key, target.clone()),
                    Action::Drop(key) => self.kernel.remove(key),
                };
                self.routes.done(&owner, action.clone());
                sent.push(action);
            }
            let held = self.kernel.iter().filter(|(key, _)| desired.contains_key(key));
            assert_eq!(held.map(|(k, t)| (*k, t.clone())).collect::<BTreeMap<_, _>>(), desired);
        }
        sent
    }
}

proptest! {
    #[test]
    fn a_route_never_points_to_an_older_epoch(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        let mut highest = BTreeMap::<String, u64>::new();
        for event in &events {
            let obeyed = model.take(event);
            model.settle();
            for machine in ["m0", "m1"] {
                let now = model.epoch(machine).unwrap_or(0);
                let before = highest.get(machine).copied().unwrap_or(0);
                // Only taking an activation back, or its port away, gives the word to a lower epoch; and then to what the
                // records say.
                let undone = obeyed && matches!(event, Event::Order(
                    Change::Phase(Instance { machine: m, .. }, Phase::Suppressed)
                    | Change::Remove(Instance { machine: m, .. })) if m == machine)
                    || matches!(event, Event::Order(Change::Prepare(port)) if port.machine_id == machine);
                let recorded = model.view.machines.get(machine).map_or(0, |m| m.epoch);
                prop_assert!(now >= before || undone, "{machine}: from epoch {before} to {now} by {event:?}");
                prop_assert!(now >= recorded, "{machine}: epoch {now} below the records' {recorded}");
                highest.insert(machine.to_owned(), now);
            }
        }
    }

    #[test]
    fn a_change_is_one_message_and_no_change_is_none(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        for event in &events {
            let before = model.kernel.clone();
            model.take(event);
            let sent = model.settle();
            let differ = before.keys().chain(model.kernel.keys()).collect::<std::collections::BTreeSet<_>>();
            let differ = differ.into_iter().filter(|key| before.get(key) != model.kernel.get(key)).count();
            prop_assert_eq!(sent.len(), differ, "{:?}", sent);
            prop_assert!(model.settle().is_empty());
        }
    }

    #[test]
    fn a_refused_or_repeated_order_changes_nothing(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        for event in &events {
            let before: Vec<_> = model.ledger.iter().map(|(m, e)| (m.clone(), e.clone())).collect();
            let obeyed = model.take(event);
            let after: Vec<_> = model.ledger.iter().map(|(m, e)| (m.clone(), e.clone())).collect();
            if let Event::Order(_) = event {
                prop_assert!(obeyed || before == after);
                if obeyed {
                    prop_assert!(model.take(event), "a repetition was refused: {event:?}");
                    let again: Vec<_> = model.ledger.iter().map(|(m, e)| (m.clone(), e.clone())).collect();
                    prop_assert_eq!(after, again);
                }
            }
        }
    }

    #[test]
    fn a_restart_adopts_what_it_finds(events in proptest::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        for event in &events {
            model.take(event);
            model.settle();
        }
        let before = model.kernel.clone();
        model.routes = Routes::default();
        model.routes.found(before.iter().map(|(key, target)| (*key, Some(target.clone()))).collect());
        prop_assert!(model.settle().is_empty());
        prop_assert_eq!(model.routes.leftovers(), vec![]);
    }
}

#[test]
fn a_redirect_is_held_until_the_records_follow() {
    let mut model = Model::new();
    let at = |epoch| Instance { machine: "m0".into(), epoch };
    let key = RouteKey { table: crate::plan::Table::Machines, prefix: "2001:db8:1::/128".parse().unwrap() };
    let to_b =
        Target::Host { from: Some("fd6d::a".parse().unwrap()), via: "fd6d::b".parse().unwrap(), vni: 7 };
    assert!(model.take(&Event::Records { machine: 0, host: Some(0), epoch: 1 }));
    assert!(model.take(&Event::Order(Change::Prepare(Box::new(port(0, 1))))));
    assert!(model.settle().is_empty(), "a tap alone leads nowhere");
    assert!(model.take(&Event::Order(Change::Phase(at(1), Phase::Active))));
    assert_eq!(model.settle(), [Action::Put(key, Target::Tap(tap_name("m0")))]);
    let redirect = Event::Order(Change::Redirect { machine: "m0".into(), epoch: 2, to_host: "b".into() });
    assert!(model.take(&redirect));
    assert_eq!(model.settle(), [Action::Put(key, to_b.clone())]);
    assert!(model.take(&Event::Order(Change::Remove(at(1)))));
    assert!(model.settle().is_empty(), "the redirect outlives the port");
    assert!(model.take(&Event::Records { machine: 0, host: Some(1), epoch: 2 }));
    assert!(model.settle().is_empty(), "the records say what the redirect said");
    assert!(model.ledger.get("m0").is_none());
    assert_eq!(model.kernel[&key], to_b);
}

#[test]
fn hostile_ports_are_refused_before_anything_is_written() {
    let model = Model::new();
    let known = Known { config: &model.config, view: &model.view };
    let good = port(1, 1);
    let bad = [
        Port { machine_id: "../../etc/passwd".into(), ..good.clone() },
        Port { machine_id: String::new(), ..good.clone() },
        Port { tap: "eth0".into(), ..good.clone() },
        Port { tap: "mt-\" }; flush".into(), ..good.clone() },
        Port { tap: "mt-".into(), ..good.clone() },
        Port { mac: Mac([0xff; 6]), ..good.clone() },
        Port { mac: crate::api::GATEWAY_MAC, ..good.clone() },
        Port { mtu: 100, ..good.clone() },
        Port { vni: 1 << 24, ..good.clone() },
        Port { ipv6: "::".parse().unwrap(), ..good.clone() },
        Port { ipv6: "fe80::1".parse().unwrap(), ..good.clone() },
        Port { account: "2001:db8::/48".parse().unwrap(), ..good.clone() },
        Port { account: "fd00::/16".parse().unwrap(), ..good.clone() },
        Port { private6: Some("fd00::1".parse().unwrap()), ..good.clone() },
    ];
    for port in bad {
        let refused = model.ledger.check(&Change::Prepare(Box::new(port.clone())), known);
        assert!(refused.is_err(), "{port:?}");
    }
    assert!(model.ledger.check(&Change::Prepare(Box::new(good)), known).is_ok());
}

#[test]
fn two_machines_never_share_a_tap_or_an_address() {
    let mut model = Model::new();
    assert!(model.take(&Event::Order(Change::Prepare(Box::new(port(0, 1))))));
    let thief = Port { ipv6: port(0, 1).ipv6, ..port(1, 1) };
    assert!(!model.take(&Event::Order(Change::Prepare(Box::new(thief)))));
    let thief = Port { tap: port(0, 1).tap, ..port(1, 1) };
    assert!(!model.take(&Event::Order(Change::Prepare(Box::new(thief)))));
}
