//! The records: what is true about the fleet. Every other daemon's state is a projection of them.
//!
//! Records are JSON in the store under the keys of `Key`. Fields are only ever added, with a default:
//! an older daemon keeps reading a newer store.

mod names;
pub mod services;
mod states;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use self::names::{
    AcmeAccount, Certificate, CertificateLease, CertificateSource, Challenge, Domain, KeyRollover, OwnRecord,
    Problem, Show, UpdateKey, ZoneKey, ZoneKeyState, ZoneKeys,
};
pub use self::services::Service;
pub use self::states::{MachineState, MigrationStep};
use crate::id::{
    AccountId, AppName, DomainName, Epoch, HostId, ImageName, MachineId, MigrationId, Slug, VolumeId,
};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = u64;

/// Who owns machines and volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The id.
    pub id: AccountId,
    /// Public keys that enter this account's machines and the lobby, in OpenSSH's one-line form, without comment.
    pub ssh_keys: Vec<String>,
    /// The account's ULA /48 (first address): machines' private addresses are cut from it.
    pub private_prefix: Ipv6Addr,
    /// May administer the fleet: hosts, drains, other accounts.
    #[serde(default)]
    pub admin: bool,
    /// Other accounts whose people act for this one, and as what.
    #[serde(default)]
    pub members: BTreeMap<AccountId, Role>,
    /// Certificate authorities whose user certificates enter this account.
    #[serde(default)]
    pub ssh_cas: Vec<TrustedCa>,
}

/// What somebody may do in an account that is not their own. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything, enters and changes nothing.
    Viewer,
    /// Enters machines, starts, stops, moves and deploys them.
    Operator,
    /// Creates and removes, has the say over members and shares.
    Admin,
}

/// A certificate authority of an account (`ssh-keygen -s`): it vouches for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedCa {
    /// Its public key, OpenSSH's one-line form.
    pub public_key: String,
    /// Principals that enter all of the account's machines; the account's id when there is none. A certificate whose principal is a
    /// machine's name enters that machine.
    #[serde(default)]
    pub principals: Vec<String>,
    /// As what its people come.
    pub role: Role,
}

/// One machine shared with another account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// With whom.
    pub account: AccountId,
    /// As what: viewer or operator.
    pub role: Role,
    /// Until when; for good when there is none.
    #[serde(default)]
    pub expires_at: Option<UnixMs>,
}

/// A machine that runs machines, or an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The id, also the name in its certificate: `<id>.host.mashines.internal`.
    pub id: HostId,
    /// Runs machines (`host`) or holds the public doors (`entry`); one box may be both.
    pub roles: Vec<HostRole>,
    /// The region, for the scheduler.
    pub region: String,
    /// Where the host daemon's internal API listens (mTLS).
    pub api: SocketAddr,
    /// The address of this host on the network between hosts: migrations and the mesh's outer packets.
    pub underlay: IpAddr,
    /// UDP port of its WireGuard, when the mesh runs over it.
    pub wireguard_port: u16,
    /// Its WireGuard public key, base64; none when the fleet's underlay is plain.
    pub wireguard_key: Option<String>,
    /// Its address inside the mesh: the static address that overlay packets go to.
    pub mesh: Ipv6Addr,
    /// What it has.
    pub capacity: Capacity,
    /// Images whose files it holds.
    pub images: Vec<Image>,
    /// Takes no new machines: an operator said so, or a drain.
    #[serde(default)]
    pub cordoned: bool,
    /// When it last reported.
    pub seen_at: UnixMs,
    /// Public IPv4 addresses of an entry: its own, whose ports are shared among machines, and then those that are shared themselves.
    #[serde(default)]
    pub public_ipv4: Vec<Ipv4Addr>,
    /// Public IPv6 addresses of an entry (gateway, name server).
    #[serde(default)]
    pub public_ipv6: Vec<Ipv6Addr>,
}

impl Host {
    /// The address that an entry's own names have, and that shared ports are at.
    pub fn own_ipv4(&self) -> Option<Ipv4Addr> {
        self.public_ipv4.first().copied()
    }

    /// The addresses that accounts' machines share: each names one machine to each account.
    pub fn shared_ipv4(&self) -> &[Ipv4Addr] {
        self.public_ipv4.get(1..).unwrap_or_default()
    }
}

/// What a host is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRole {
    /// Runs machines.
    Host,
    /// Gateway and name server.
    Entry,
}

/// What a host offers to machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Virtual CPUs that may be promised (over-commitment included).
    pub vcpus: u32,
    /// RAM that may be promised, MiB.
    pub memory_mib: u64,
    /// Disk that may be promised, MiB.
    pub disk_mib: u64,
}

/// A bootable image, as a host holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name people use.
    pub name: ImageName,
    /// `sha256:` and the hex digest of the root file system. The same digest is the same bytes on every host.
    pub digest: String,
    /// Size of the root disk in bytes; 0 when it boots from its initrd alone.
    pub rootfs_bytes: u64,
}

/// A workload with its own kernel, address and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The id.
    pub id: MachineId,
    /// Its name in DNS, unique in the fleet.
    pub slug: Slug,
    /// The owner.
    pub account: AccountId,
    /// The app it belongs to.
    pub app: AppName,
    /// Changes at each update of the configuration: a ULID.
    pub instance_id: String,
    /// What was asked for.
    pub config: MachineConfig,
    /// Digest of the image it was created from; it keeps it until it is updated.
    pub image_digest: String,
    /// What its owner wants of it. Control moves `state` towards it.
    pub desired: Desired,
    /// What is known of it.
    pub state: MachineState,
    /// Why it is in this state, where a person should know: the reason of a failure, of a stop that nobody asked for.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where it is. None until it is scheduled.
    pub place: Option<Place>,
    /// Addresses and ports. Fixed for life.
    pub net: MachineNet,
    /// The machine's SSH host key, sealed by the platform; the host injects it at boot, so that it outlives its root disk.
    #[serde(default)]
    pub host_key_public: Option<String>,
    /// Other accounts that may enter it.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// What its owner put into DNS at its name and below it.
    #[serde(default)]
    pub records: Vec<OwnRecord>,
    /// With what its owner changes `_acme-challenge` below its name.
    #[serde(default)]
    pub update_key: Option<UpdateKey>,
    /// Creation.
    pub created_at: UnixMs,
    /// Last change.
    pub updated_at: UnixMs,
    /// The newest 32 events.
    #[serde(default)]
    pub events: Vec<MachineEvent>,
}

/// Where a machine is, and which move brought it there. A machine runs on exactly one host, or on none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The host that holds its disks and may run it.
    pub host: HostId,
    /// Rises by compare-and-swap, once a move and once a start.
    pub epoch: Epoch,
}

/// The addresses of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNet {
    /// The public /128, never tied to a host.
    pub ipv6: Ipv6Addr,
    /// The private /128 of the account's mesh.
    pub private6: Ipv6Addr,
    /// The MAC of `eth0`: `02:` and five bytes of the id.
    pub mac: String,
    /// The shared IPv4 port spliced to port 22.
    pub ssh_port: Option<SharedPort>,
    /// An IPv4 address of its entry that no other machine of the account has: together with the person's key it names the machine.
    #[serde(default)]
    pub entry_ipv4: Option<Ipv4Addr>,
}

/// A port of an entry's public IPv4 address that belongs to one machine for life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SharedPort {
    /// The entry's name: `entry160`.
    pub entry: HostId,
    /// The port.
    pub port: u16,
}

/// What is asked of a machine: the Fly Machines API's `config`, as far as it is acted on; unknown keys are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The image's name.
    pub image: ImageName,
    /// CPU and memory.
    pub guest: Guest,
    /// Environment of the workload.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Free labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Volumes and where they are mounted.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Files written before the workload starts.
    #[serde(default)]
    pub files: Vec<ConfigFile>,
    /// How the workload is started, for images without an init.
    #[serde(default)]
    pub init: Init,
    /// What happens when the machine exits on its own.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Removed once it has stopped.
    #[serde(default)]
    pub auto_destroy: bool,
    /// Started by whoever comes to a door of it while it is stopped.
    #[serde(default)]
    pub autostart: bool,
    /// What is shown at terminals is recorded by the gateway.
    #[serde(default)]
    pub record_sessions: bool,
    /// What the public reaches of it; [`services::standard`] when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// CPU and memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// `shared` or `performance`.
    #[serde(default = "shared")]
    pub cpu_kind: String,
    /// 1 to 8.
    pub cpus: u8,
    /// MiB; at least 128.
    pub memory_mb: u64,
}

fn shared() -> String {
    "shared".to_owned()
}

/// One volume of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume.
    pub volume: VolumeId,
    /// Where the guest mounts it.
    pub path: String,
}

/// A file put into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Absolute path in the guest.
    pub guest_path: String,
    /// Contents, base64.
    pub raw_value: String,
}

/// How a workload is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Replaces the image's init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
}

/// What happens when a machine exits on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    #[serde(default)]
    pub policy: RestartWhen,
    /// How often within ten minutes.
    #[serde(default = "ten")]
    pub max_retries: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { policy: RestartWhen::default(), max_retries: ten() }
    }
}

fn ten() -> u32 {
    10
}

/// When a machine that exited is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// Never.
    No,
    /// When it crashed or its monitor did. A guest that powers itself off stays off; a guest's reboot is always honoured.
    #[default]
    OnFailure,
    /// Always.
    Always,
}

/// What the owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// Running.
    Started,
    /// Not running, disks kept.
    Stopped,
    /// Gone.
    Destroyed,
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// What: `launch`, `start`, `stop`, `migrate`, `exit`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// How it went: `started`, `completed`, `failed`, ….
    pub status: String,
    /// Who caused it: `user`, `control`, `host`, `guest`.
    pub source: String,
    /// When.
    pub timestamp: UnixMs,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// Disk that outlives a machine. It belongs to an account, not to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The id.
    pub id: VolumeId,
    /// The name people use, unique in the app.
    pub name: String,
    /// The owner.
    pub account: AccountId,
    /// The app.
    pub app: AppName,
    /// Size in MiB.
    pub size_mib: u64,
    /// How it is kept.
    pub driver: VolumeDriver,
    /// The host that holds the bytes (driver `local`), once it was placed.
    pub host: Option<HostId>,
    /// The machine it is attached to. One at a time.
    pub attached_machine: Option<MachineId>,
    /// Creation.
    pub created_at: UnixMs,
}

/// How a volume is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeDriver {
    /// A file on the host; follows its machine by block pre-copy.
    #[default]
    Local,
}

/// A move of a machine, and how far its saga has come. Each step is in the store before it is begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// The id.
    pub id: MigrationId,
    /// The machine.
    pub machine: MachineId,
    /// From where.
    pub source: HostId,
    /// To where.
    pub destination: HostId,
    /// The machine's epoch when it began; it ends with the next.
    pub epoch: Epoch,
    /// How far it has come.
    pub step: MigrationStep,
    /// What went wrong, for people: set in `failed`.
    #[serde(default)]
    pub error: Option<String>,
    /// The monitor's phase, as last heard: `pre-copy`, ….
    #[serde(default)]
    pub phase: Option<String>,
    /// The monitor's figures, as the source reported them (the JSON of the monitor's `Figures`).
    #[serde(default)]
    pub figures: Option<serde_json::Value>,
    /// Who asked: an account, or `drain`.
    pub requested_by: String,
    /// When it began.
    pub created_at: UnixMs,
    /// When it last changed.
    pub updated_at: UnixMs,
}

/// What the whole fleet shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetConfig {
    /// The apex: `mashine.dev`.
    pub domain: String,
    /// The region's public prefix that machines' addresses are cut from.
    pub prefix: ipnetwork::Ipv6Network,
    /// Names of the name servers, each with its addresses (glue).
    pub name_servers: Vec<NameServer>,
    /// Range of shared IPv4 ports for SSH.
    pub ssh_ports: (u16, u16),
    /// The platform's SSH CA for machines' and the gateway's certificates: public key, one line.
    pub ssh_ca: Option<String>,
    /// What becomes of a key that nobody knows.
    #[serde(default)]
    pub sign_up: SignUp,
    /// Further zones that the name servers answer for, and records of the operator in the fleet's own.
    #[serde(default)]
    pub zones: Vec<StaticZone>,
    /// Which issuers may give certificates for names below the apex: their domains as in CAA records. Any may where there is none.
    #[serde(default)]
    pub caa_issuers: Vec<String>,
}

/// Records that the operator wrote: a zone of its own or, where the name is the fleet's domain, more of that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticZone {
    /// Its apex. SOA and NS are made.
    pub name: DomainName,
    /// Its records, their names relative to the apex. NS below the apex delegate; addresses below them are glue, DS may stand beside them.
    #[serde(default)]
    pub records: Vec<OwnRecord>,
}

/// What becomes of a person whose key is in no account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignUp {
    /// Refused.
    #[default]
    Closed,
    /// Let in with an invite.
    Invite,
    /// May make an account.
    Open,
}

/// A name server of the apex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServer {
    /// Its name: `ns1.mashine.dev`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}
