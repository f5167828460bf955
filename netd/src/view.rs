//! What netd must know of the rest of the fleet.
//!
//! A projection of the fleet's records, handed to [`crate::run`] as a watched value. netd keeps its last routes until a view with
//! a revision above 0 arrives: "nothing known yet" is not "nothing there".

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::Ipv6Network;
use serde::{Deserialize, Serialize};

/// The fleet as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetView {
    /// The revision of the records; 0 when nothing is known yet.
    pub revision: u64,
    /// Every host and entry, this one included, by id.
    pub hosts: BTreeMap<String, HostPeer>,
    /// Every machine that has an address, by id.
    pub machines: BTreeMap<String, MachineRoute>,
}

/// A host or an entry, as its peers reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPeer {
    /// Its id.
    pub host_id: String,
    /// It is an entry: machines' packets to the world leave through it where the ingress is anchored.
    pub entry: bool,
    /// Its address on the underlay and the UDP port of its WireGuard.
    pub underlay: SocketAddr,
    /// Its address on the host mesh, a /128 within the mesh prefix.
    pub mesh_addr: Ipv6Addr,
    /// Its WireGuard public key, base64; none on a plain underlay or before the host published it.
    pub wg_public_key: Option<String>,
}

/// Where a machine is, by the fleet's records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRoute {
    /// The machine.
    pub machine_id: String,
    /// The account's private prefix.
    pub account: Ipv6Network,
    /// The host it runs on; none while it is stopped.
    pub host_id: Option<String>,
    /// The epoch of its place.
    pub epoch: u64,
    /// The public address.
    pub ipv6: Ipv6Addr,
    /// The private address.
    pub private6: Option<Ipv6Addr>,
    /// The private IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The overlay's network identifier, 24 bits.
    pub vni: u32,
}
