//! Routes of netd's two tables: a machine here is `ADDRESS dev TAP`, one elsewhere is
//! `ADDRESS encap ip6 id VNI dst HOST dev OVERLAY` (a lightweight tunnel: `lwtunnel` in the kernel's documentation), and what this host
//! answers itself is `local ADDRESS dev lo`.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use nix::net::if_::{if_indextoname, if_nametoindex};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteIp6Tunnel, RouteIpTunnel, RouteLwEnCapType, RouteLwTunnelEncap,
    RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{EGRESS_TABLE, Kernel, MACHINES_TABLE, absent_is_fine, wrap};
use crate::api::TAP_PREFIX;
use crate::error::Error;
use crate::plan::{RouteKey, Table, Target};

/// Marks netd's routes for people who look at the table: `proto 109`.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);

/// The interface of what this host itself takes.
const LOOPBACK: &str = "lo";

/// The hop limit of the outer header: hosts may be several routers apart.
const OUTER_HOPS: u8 = 64;

impl Table {
    fn id(self) -> u8 {
        match self {
            Self::Machines => MACHINES_TABLE,
            Self::Egress => EGRESS_TABLE,
        }
    }
}

impl Kernel {
    /// Makes the route, or turns the one that is there, in one message.
    pub async fn put_route(&self, key: &RouteKey, target: &Target, overlay: &str) -> Result<(), Error> {
        let describe = || format!("route {} to {target}", key.prefix);
        let device = match target {
            Target::Tap(tap) => Some(tap.as_str()),
            Target::Host { .. } => Some(overlay),
            Target::Unreachable => None,
            Target::Here => Some(LOOPBACK),
        };
        let index = device.map(|device| {
            if_nametoindex(device).map_err(|errno| Error::Kernel {
                operation: "find the interface for",
                object: describe(),
                source: io::Error::from(errno),
            })
        });
        let message = put_message(key, target, index.transpose()?);
        let put = self.handle.route().add(message).replace().execute().await;
        put.map_err(wrap("replace", describe))
    }

    /// Takes the route away; one that is not there is taken away already.
    pub async fn drop_route(&self, key: &RouteKey) -> Result<(), Error> {
        let mut message = message_to(key);
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = RouteProtocol::Unspec;
        message.header.kind = RouteType::Unspec;
        let dropped = self.handle.route().del(message).execute().await;
        absent_is_fine(dropped.map_err(wrap("delete", || format!("route {}", key.prefix))))
    }

    /// What netd's tables hold; a target is none where the route is not of a shape that netd makes.
    pub async fn routes(&self, overlay: &str) -> Result<BTreeMap<RouteKey, Option<Target>>, Error> {
        let mut found = BTreeMap::new();
        for all in
            [RouteMessageBuilder::<Ipv6Addr>::new().build(), RouteMessageBuilder::<Ipv4Addr>::new().build()]
        {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(all)
                .execute()
                .try_collect()
                .await
                .map_err(wrap("list", || "the routes".into()))?;
            found.extend(routes.iter().filter_map(|route| read(route, overlay)));
        }
        Ok(found)
    }
}

fn message_to(key: &RouteKey) -> RouteMessage {
    let length = key.prefix.prefix();
    let table = key.table.id().into();
    match key.prefix.ip() {
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, length).table_id(table).build()
        }
        IpAddr::V4(address) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, length).table_id(table).build()
        }
    }
}

fn put_message(key: &RouteKey, target: &Target, index: Option<u32>) -> RouteMessage {
    let mut message = message_to(key);
    message.header.protocol = PROTOCOL;
    if index.is_some() && key.prefix.is_ipv4() {
        // IPv4 refuses a route without a gateway in any wider scope.
        message.header.scope = RouteScope::Link;
    }
    message.attributes.extend(index.map(RouteAttribute::Oif));
    match target {
        Target::Tap(_) => {}
        Target::Unreachable => message.header.kind = RouteType::Unreachable,
        Target::Here => {
            message.header.kind = RouteType::Local;
            message.header.scope = RouteScope::Host;
        }
        Target::Host { from, via, vni } => {
            let (kind, encap) = encapsulation(*from, *via, *vni);
            message.attributes.push(RouteAttribute::EncapType(kind));
            message.attributes.push(RouteAttribute::Encap(encap));
        }
    }
    message
}

fn encapsulation(from: Option<IpAddr>, via: IpAddr, vni: u32) -> (RouteLwEnCapType, Vec<RouteLwTunnelEncap>) {
    match via {
        IpAddr::V6(dst) => {
            let mut tunnel = vec![
                RouteIp6Tunnel::Id(vni.into()),
                RouteIp6Tunnel::Destination(dst),
                RouteIp6Tunnel::Hoplimit(OUTER_HOPS),
            ];
            if let Some(IpAddr::V6(src)) = from {
                tunnel.push(RouteIp6Tunnel::Source(src));
            }
            (RouteLwEnCapType::Ip6, tunnel.into_iter().map(RouteLwTunnelEncap::Ip6).collect())
        }
        IpAddr::V4(dst) => {
            let mut tunnel = vec![
                RouteIpTunnel::Id(vni.into()),
                RouteIpTunnel::Destination(dst),
                RouteIpTunnel::Ttl(OUTER_HOPS),
            ];
            if let Some(IpAddr::V4(src)) = from {
                tunnel.push(RouteIpTunnel::Source(src));
            }
            (RouteLwEnCapType::Ip, tunnel.into_iter().map(RouteLwTunnelEncap::Ip).collect())
        }
    }
}

fn read(route: &RouteMessage, overlay: &str) -> Option<(RouteKey, Option<Target>)> {
    let table = match route.header.table {
        MACHINES_TABLE => Table::Machines,
        EGRESS_TABLE => Table::Egress,
        _ => return None,
    };
    let mut destination = None;
    let mut device = None;
    let mut tunnel = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => destination = Some(IpAddr::V4(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => destination = Some(IpAddr::V6(*a)),
            RouteAttribute::Oif(index) => {
                device = if_indextoname(*index).ok().and_then(|n| n.into_string().ok())
            }
            RouteAttribute::Encap(encap) => tunnel = read_encap(encap),
            _ => {}
        }
    }
    let any = if route.header.address_family == rtnetlink::packet_route::AddressFamily::Inet {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let length = route.header.destination_prefix_length;
    let prefix = IpNetwork::new(destination.unwrap_or(any), length).ok()?;
    let target = match (route.header.kind, device, tunnel) {
        (RouteType::Unreachable, ..) => Some(Target::Unreachable),
        (RouteType::Local, Some(device), None) if device == LOOPBACK => Some(Target::Here),
        (RouteType::Unicast, Some(device), Some(host)) if device == overlay => Some(host),
        (RouteType::Unicast, Some(device), None) if device.starts_with(TAP_PREFIX) => {
            Some(Target::Tap(device))
        }
        _ => None,
    };
    Some((RouteKey { table, prefix }, target))
}

fn read_encap(encap: &[RouteLwTunnelEncap]) -> Option<Target> {
    let (mut from, mut to, mut id) = (None, None, 0);
    for part in encap {
        match part {
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(a)) => to = Some(IpAddr::V6(*a)),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(a)) => to = Some(IpAddr::V4(*a)),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(a)) => from = Some(IpAddr::V6(*a)),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Source(a)) => from = Some(IpAddr::V4(*a)),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(vni))
            | RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(vni)) => id = *vni,
            _ => {}
        }
    }
    let from = from.filter(|from: &IpAddr| !from.is_unspecified());
    Some(Target::Host { from, via: to?, vni: u32::try_from(id).ok()? })
}
