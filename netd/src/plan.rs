//! What this host's routing tables, neighbour proxies and filters should be, as a pure function of the ledger, the fleet's
//! records and the configuration.
//!
//! Where a machine's packets go, by the highest epoch among three voices; at equal epochs the upper one wins:
//!
//! ```text
//! local port, active      ──▶ its tap
//! the fleet's records     ──▶ the host they name (nowhere, when that is this host and no port is active)
//! a redirect still held   ──▶ the host it names
//! ```
//!
//! Invariant: as records and redirects advance, a machine's packets never go where an older epoch sent them. Only `suppress`,
//! which takes back an `activate`, gives the word back to a lower one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::api::Phase;
use crate::config::{Ingress, NetdConfig, Role, Underlay};
use crate::ledger::{Addresses, Entry, Ledger};
use crate::view::{HostPeer, MachineRoute, NetView};

/// One of netd's two routing tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Where machines are. Every packet of the host is looked up here first.
    Machines,
    /// Where machines' packets leave for the world.
    Egress,
}

/// What one route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The table.
    pub table: Table,
    /// The destinations.
    pub prefix: IpNetwork,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Into a machine of this host.
    Tap(String),
    /// Through the overlay to another host.
    Host {
        /// This host's address of the same kind as `via`: the peer takes overlay packets from its peers' addresses alone, and the
        /// kernel's own choice on a host with several is any of them.
        from: Option<IpAddr>,
        /// Its mesh address, or its underlay address on a plain underlay.
        via: IpAddr,
        /// The overlay's network identifier.
        vni: u32,
    },
    /// Nowhere: the sender is told so.
    Unreachable,
    /// To whatever listens on this host itself, without an interface that has the address (AnyIP).
    Here,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tap(tap) => write!(f, "tap {tap}"),
            Self::Host { from: _, via, vni } => write!(f, "host {via} vni {vni}"),
            Self::Unreachable => write!(f, "unreachable"),
            Self::Here => write!(f, "this host"),
        }
    }
}

/// Where a machine's packets go, and in which epoch it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The epoch behind the decision.
    pub epoch: u64,
    /// Where to; none when it runs nowhere.
    pub target: Option<Target>,
    /// What leads there.
    pub addresses: Addresses,
}

/// Everything that the plan depends on besides the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The configuration.
    pub config: &'a NetdConfig,
    /// The fleet's records.
    pub view: &'a NetView,
}

impl Known<'_> {
    /// How the overlay reaches a host.
    pub fn via(&self, host: &HostPeer) -> IpAddr {
        match self.config.underlay {
            Underlay::Wireguard => host.mesh_addr.into(),
            Underlay::Plain => host.underlay.ip(),
        }
    }

    /// What carries overlay packets to a host.
    fn overlay(&self, via: IpAddr, vni: u32) -> Target {
        let from = match self.config.underlay {
            Underlay::Wireguard => Some(self.config.mesh_addr.into()),
            Underlay::Plain => self.view.hosts.get(&self.config.host_id).map(|host| host.underlay.ip()),
        };
        Target::Host { from: from.filter(|from: &IpAddr| from.is_ipv6() == via.is_ipv6()), via, vni }
    }

    fn host_target(&self, host_id: &str, vni: u32) -> Option<Target> {
        self.view.hosts.get(host_id).map(|host| self.overlay(self.via(host), vni))
    }

    /// Where one machine's packets go; none when nothing is known of it.
    pub fn place(&self, machine: &str, entry: Option<&Entry>) -> Option<Place> {
        let port = entry.and_then(Entry::active_port).map(|port| Place {
            epoch: port.epoch,
            target: Some(Target::Tap(port.tap.clone())),
            addresses: Addresses::from(port),
        });
        let recorded = self.view.machines.get(machine).map(|record| self.recorded_place(record));
        let redirect = entry.and_then(|entry| entry.redirect.as_ref()).map(|redirect| Place {
            epoch: redirect.epoch,
            target: Some(
                self.host_target(&redirect.to_host, redirect.addresses.vni)
                    .unwrap_or_else(|| self.overlay(redirect.via, redirect.addresses.vni)),
            ),
            addresses: redirect.addresses.clone(),
        });
        // `max_by_key` takes the last of equals, so the strongest voice comes last.
        [redirect, recorded, port].into_iter().flatten().max_by_key(|place| place.epoch)
    }

    fn recorded_place(&self, record: &MachineRoute) -> Place {
        let elsewhere = record.host_id.as_deref().filter(|host| *host != self.config.host_id);
        Place {
            epoch: record.epoch,
            target: elsewhere.and_then(|host| self.host_target(host, record.vni)),
            addresses: Addresses::from(record),
        }
    }

    /// The routes of one machine.
    pub fn machine_routes(&self, machine: &str, entry: Option<&Entry>) -> BTreeMap<RouteKey, Target> {
        let Some(Place { target: Some(target), addresses, .. }) = self.place(machine, entry) else {
            return BTreeMap::new();
        };
        let prefixes = prefixes(&addresses).into_iter();
        prefixes.map(|prefix| (RouteKey { table: Table::Machines, prefix }, target.clone())).collect()
    }

    /// The routes that belong to no machine: what no machine has taken, the resolver, and the way out.
    pub fn host_routes(&self) -> BTreeMap<RouteKey, Target> {
        let mut routes: BTreeMap<_, _> = self
            .config
            .region_prefixes
            .iter()
            .map(|prefix| {
                (RouteKey { table: Table::Machines, prefix: network(*prefix) }, Target::Unreachable)
            })
            .collect();
        if let Some(resolver) = self.config.resolver {
            let prefix = IpNetwork::V6(resolver.into());
            routes.insert(RouteKey { table: Table::Machines, prefix }, Target::Here);
        }
        // Before any record was seen, "no entry" is not known: whatever way out is in the kernel stays.
        if self.leaves_through_entry() && self.view.revision > 0 {
            // The lowest id of the entries, so that a host's machines keep one way out as entries come and go.
            let entry =
                self.view.hosts.values().find(|host| host.entry && host.host_id != self.config.host_id);
            let target = entry.map_or(Target::Unreachable, |host| self.overlay(self.via(host), 0));
            for prefix in [everything_v6(), everything_v4()] {
                routes.insert(RouteKey { table: Table::Egress, prefix }, target.clone());
            }
        }
        routes
    }

    /// Machines' packets to the world leave through an entry, not through this host's own uplink.
    pub fn leaves_through_entry(&self) -> bool {
        self.config.role == Role::Host && self.config.ingress == Ingress::Anchored
    }

    /// The addresses of one machine that this host answers neighbour solicitations for, where hosts share an L2 with the
    /// ingress. A host that redirects goes on answering until the records follow: a packet that it attracts is
    /// forwarded, one that nobody attracts is lost.
    pub fn proxies(&self, machine: &str, entry: Option<&Entry>) -> BTreeSet<Ipv6Addr> {
        if self.config.ingress == Ingress::Anchored || self.config.role == Role::Entry {
            return BTreeSet::new();
        }
        let recorded = self.view.machines.get(machine);
        let here = recorded.is_some_and(|record| record.host_id.as_deref() == Some(&self.config.host_id));
        let speaks = entry.is_some_and(|entry| {
            let phase = entry.port.as_ref().map(|local| local.phase);
            entry.redirect.is_some()
                || phase == Some(Phase::Announced)
                || (here && phase == Some(Phase::Active))
        });
        let place = self.place(machine, entry).filter(|place| speaks && place.target.is_some());
        place.map(|place| place.addresses.ipv6).into_iter().collect()
    }

    /// What the packet filters must hold.
    pub fn filters(&self, ledger: &Ledger) -> Filters {
        let ports = ledger.iter().filter_map(|(_, entry)| entry.port.as_ref()).map(|local| &local.port);
        let others = || self.view.hosts.values().filter(|host| host.host_id != self.config.host_id);
        Filters {
            ports: ports.map(|port| (port.machine_id.clone(), port.clone())).collect(),
            overlay_peers: others().map(|host| self.via(host)).collect(),
            // An entry's underlay address is also the public door that machines may knock at.
            infrastructure: others().filter(|host| !host.entry).map(|host| host.underlay.ip()).collect(),
        }
    }
}

/// What the packet filters hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// The ports, by machine: who may send what from which tap.
    pub ports: BTreeMap<String, crate::api::Port>,
    /// Who may send overlay packets to this host.
    pub overlay_peers: BTreeSet<IpAddr>,
    /// Where machines may not send to.
    pub infrastructure: BTreeSet<IpAddr>,
}

/// The host prefixes of a machine's addresses.
pub fn prefixes(addresses: &Addresses) -> Vec<IpNetwork> {
    let v6 = [Some(addresses.ipv6), addresses.private6].into_iter().flatten();
    let v4 = addresses.ipv4.into_iter();
    v6.map(|a| IpNetwork::V6(a.into())).chain(v4.map(|a| IpNetwork::V4(a.into()))).collect()
}

fn everything_v6() -> IpNetwork {
    IpNetwork::V6(Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).unwrap_or(Ipv6Addr::UNSPECIFIED.into()))
}

fn everything_v4() -> IpNetwork {
    IpNetwork::V4(Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap_or(Ipv4Addr::UNSPECIFIED.into()))
}

/// The prefix with its host bits cleared, as the kernel shows it.
fn network(prefix: IpNetwork) -> IpNetwork {
    match prefix {
        IpNetwork::V4(p) => Ipv4Network::new(p.network(), p.prefix()).map_or(prefix, IpNetwork::V4),
        IpNetwork::V6(p) => Ipv6Network::new(p.network(), p.prefix()).map_or(prefix, IpNetwork::V6),
    }
}
