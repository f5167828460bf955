//! What the person who runs this host decides about its network.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use ipnetwork::{IpNetwork, Ipv6Network};
use serde::{Deserialize, Serialize};

/// The bytes that VXLAN-GPE over IPv6 adds: IPv6 40, UDP 8, VXLAN 8.
pub(crate) const GPE_OVERHEAD: u16 = 56;

/// The bytes that WireGuard over IPv6 adds: IPv6 40, UDP 8, WireGuard 32.
const WIREGUARD_OVERHEAD: u16 = 80;

/// The configuration of [`crate::run`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetdConfig {
    /// Where ports, redirects and the WireGuard key are kept. netd alone writes here.
    pub state_dir: PathBuf,
    /// The unix socket to serve; see [`crate::api`].
    pub socket: PathBuf,
    /// This host's id in the fleet's records.
    pub host_id: String,
    /// What this host is.
    pub role: Role,
    /// What carries the overlay between hosts.
    #[serde(default)]
    pub underlay: Underlay,
    /// The MTU of the underlay, in bytes.
    #[serde(default = "default_underlay_mtu")]
    pub underlay_mtu: u16,
    /// The UDP port of this host's WireGuard.
    #[serde(default = "default_wireguard_port")]
    pub wireguard_port: u16,
    /// The WireGuard device that netd makes and owns.
    #[serde(default = "default_wireguard_interface")]
    pub wireguard_interface: String,
    /// The VXLAN-GPE device that netd makes and owns.
    #[serde(default = "default_overlay_interface")]
    pub overlay_interface: String,
    /// This host's address on the host mesh.
    pub mesh_addr: Ipv6Addr,
    /// The host mesh: every host's `mesh_addr` lies in it.
    pub mesh_prefix: Ipv6Network,
    /// The prefixes that machines' addresses are taken from. An address of these that belongs to no running machine is
    /// unreachable, instead of going back to where the packet came from.
    #[serde(default)]
    pub region_prefixes: Vec<IpNetwork>,
    /// How the world reaches the machines.
    #[serde(default)]
    pub ingress: Ingress,
    /// TCP ports of machines' public addresses that the entries' web door answers in their place: an entry takes them itself, a
    /// host sends what its machines say to them to the entry.
    #[serde(default)]
    pub web_ports: Vec<u16>,
    /// Where this host's machines, and nobody else, reach its resolver: port 53 over UDP and TCP. The same on every host, so that a
    /// machine keeps its resolver when it moves. None where no machines run.
    #[serde(default)]
    pub resolver: Option<Ipv6Addr>,
}

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs machines.
    Host,
    /// It carries machines' traffic from and to the world.
    Entry,
    /// Both, on one box.
    Both,
}

/// What carries the overlay between hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Underlay {
    /// VXLAN-GPE inside a mesh of kernel WireGuard.
    #[default]
    Wireguard,
    /// VXLAN-GPE between the hosts' underlay addresses, unencrypted: only on a network that nobody else is on.
    Plain,
}

/// How the world reaches the machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ingress {
    /// The region's prefixes are routed to the entries, and machines' packets leave through one: works at any provider.
    #[default]
    Anchored,
    /// The hosts stand on one L2 with the prefix and answer for their machines' addresses on this interface.
    Ndp {
        /// The interface on that L2.
        interface: String,
    },
}

impl NetdConfig {
    /// The MTU that is left for a machine's packets on the overlay.
    pub fn overlay_mtu(&self) -> u16 {
        let below = match self.underlay {
            Underlay::Wireguard => WIREGUARD_OVERHEAD,
            Underlay::Plain => 0,
        };
        self.underlay_mtu.saturating_sub(below).saturating_sub(GPE_OVERHEAD)
    }
}

fn default_underlay_mtu() -> u16 {
    1500
}

fn default_wireguard_port() -> u16 {
    51820
}

fn default_wireguard_interface() -> String {
    "wg0".to_owned()
}

fn default_overlay_interface() -> String {
    "gx".to_owned()
}
