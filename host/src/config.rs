//! What the person who runs the host decides about it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use mashines_fleet::id::HostId;
use serde::Deserialize;

/// The role's part of the configuration file: `[host]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the internal API listens (mTLS; control alone calls it).
    pub listen: SocketAddr,
    /// One directory per image, each with its `manifest.json`.
    pub images_dir: PathBuf,
    /// The monitor's binary; by default `mashines-vmm` beside this one.
    #[serde(default)]
    pub vmm_binary: Option<PathBuf>,
    /// Resolvers of the world. What machines ask their host's resolver and is no name of their account is asked of these, one after the other;
    /// guests are given them behind it.
    #[serde(default)]
    pub guest_dns: Vec<IpAddr>,
    /// What the host offers; what is left out is measured.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// What machines' kernels are told besides what their image says, when they boot here: `mitigations=off`, for one.
    #[serde(default)]
    pub kernel_arguments: String,
    /// Parallel streams of a move, 1 to 8.
    #[serde(default = "default_streams")]
    pub migration_streams: u8,
}

fn default_streams() -> u8 {
    2
}

/// What a host offers to machines.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Virtual CPUs; by default four for each CPU of the host.
    pub vcpus: Option<u32>,
    /// RAM, MiB; by default all but an eighth.
    pub memory_mib: Option<u64>,
    /// Disk, MiB; by default the size of the file system of the state directory. Disks are sparse, so more than that may
    /// be promised.
    pub disk_mib: Option<u64>,
    /// Nothing new comes here while less than this is free on that file system, MiB; by default 512.
    pub disk_reserve_mib: Option<u64>,
}

/// What every role of this box knows of it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The host's id, also the name in its certificate.
    pub id: HostId,
    /// Its address on the network between hosts, where moves arrive.
    pub underlay: IpAddr,
    /// Where the role keeps its state.
    pub state_dir: PathBuf,
    /// The directory of `ca.pem`, `host.pem` and `host.key`.
    pub identity_dir: PathBuf,
    /// The socket of this box's netd.
    pub netd_socket: PathBuf,
}
