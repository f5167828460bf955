//! What control asks of a host daemon: HTTP/JSON over mTLS. Every call is idempotent: control repeats it until it hears an answer.
//!
//! | call | body → answer |
//! | --- | --- |
//! | `GET /v1/state` | → [`HostState`] |
//! | `PUT /v1/machines/{id}` | [`RunMachine`] → [`LocalMachine`]; boots it |
//! | `POST /v1/machines/{id}/stop` | [`StopMachine`] → [`LocalMachine`] |
//! | `DELETE /v1/machines/{id}?epoch=N` | removes the instance, its port and its root overlay; volumes stay |
//! | `GET /v1/machines/{id}/console` | → `{"text"}` |
//! | `POST /v1/machines/{id}/exec` | `mashines_guest::protocol` exec request → its answer |
//! | `PUT /v1/volumes/{id}` | [`PutVolume`] → `{}` |
//! | `DELETE /v1/volumes/{id}` | → `{}` |
//! | `PUT /v1/migrations/{id}/incoming` | [`Incoming`] → [`IncomingReady`] |
//! | `PUT /v1/migrations/{id}/outgoing` | [`Outgoing`] → [`LocalMigration`] |
//! | `GET /v1/migrations/{id}` | → [`LocalMigration`] |
//! | `POST /v1/migrations/{id}/cancel` | → [`LocalMigration`]; source: resumes; destination: discards unless it runs |
//! | `POST /v1/migrations/{id}/resolve` | [`Resolve`] → [`LocalMigration`]; destination only |
//! | `POST /v1/migrations/{id}/finish` | → `{}`; source: ends the handed-over monitor and removes its disks; destination: forgets the migration |
//!
//! Errors are `{"error": "...", "code": "..."}` with [`ErrorCode`]; 409 for an older epoch.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, HostId, ImageName, MachineId, MigrationId, VolumeId};
use crate::record::{Capacity, Image, MachineConfig, MachineNet};

/// Everything a host needs to run a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMachine {
    /// The machine.
    pub machine: MachineSpec,
    /// The epoch this instance runs in.
    pub epoch: Epoch,
}

/// A machine as a host sees it: no policy, no history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// The id.
    pub id: MachineId,
    /// Its name, the guest's hostname.
    pub slug: String,
    /// The owner.
    pub account: crate::id::AccountId,
    /// The app.
    pub app: String,
    /// The region, for the guest's environment.
    pub region: String,
    /// What was asked for.
    pub config: MachineConfig,
    /// The image by name and digest.
    pub image: ImageName,
    /// Digest of the root file system.
    pub image_digest: String,
    /// Addresses.
    pub net: MachineNet,
    /// The account's private prefix (first address of a /48): netd keeps other accounts out.
    pub private_prefix: std::net::Ipv6Addr,
    /// Keys for root's `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// The SSH CA that the guest's sshd trusts for users, one line.
    pub ssh_user_ca: Option<String>,
    /// What the machine's sshd proves its name with; without it the guest makes a key of its own.
    #[serde(default)]
    pub ssh_host_key: Option<SshHostKey>,
    /// Volumes in the order of the mounts, with their sizes.
    pub volumes: Vec<PutVolume>,
}

/// An Ed25519 host key with its certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshHostKey {
    /// The private key in OpenSSH's PEM form.
    pub private_pem: String,
    /// The public key, one line.
    pub public: String,
    /// The host certificate of the fleet's SSH CA, one line.
    pub certificate: String,
}

/// A private key belongs in no log.
impl std::fmt::Debug for SshHostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshHostKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Makes a volume exist on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutVolume {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size in MiB.
    pub size_mib: u64,
}

/// Ends an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopMachine {
    /// The epoch that the caller means.
    pub epoch: Epoch,
    /// Time for the guest to shut down; then the monitor is ended.
    pub timeout_ms: u64,
}

/// What runs, and what is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostState {
    /// The host.
    pub host: HostId,
    /// What it offers.
    pub capacity: Capacity,
    /// The images it holds.
    pub images: Vec<Image>,
    /// Its machines.
    pub machines: Vec<LocalMachine>,
    /// Its migrations that were not finished.
    pub migrations: Vec<LocalMigration>,
    /// Volumes whose files are here.
    pub volumes: Vec<VolumeId>,
}

/// An instance as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalMachine {
    /// The machine.
    pub id: MachineId,
    /// The epoch of the instance.
    pub epoch: Epoch,
    /// Where it stands.
    pub state: LocalState,
    /// Why, where a person should know.
    pub reason: Option<String>,
    /// CPU time of its vCPUs, microseconds.
    pub cpu_time_us: u64,
    /// Resident memory of its monitor, bytes.
    pub resident_bytes: u64,
}

/// The life of an instance on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalState {
    /// Its monitor is up, the guest is not ready yet.
    Starting,
    /// The guest said that it is ready.
    Ready,
    /// Told to shut down.
    Stopping,
    /// Not running: the guest powered off, or it was told to end.
    Stopped,
    /// Not running: the monitor died or the guest crashed; `reason` says what is known.
    Crashed,
    /// Destination of a move that has not been handed over.
    Incoming,
    /// Source of a move that has been handed over: it never runs here again.
    HandedOver,
}

/// Prepares a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// The machine, as it runs at the source.
    pub machine: MachineSpec,
    /// The epoch it will run in here.
    pub epoch: Epoch,
    /// The host it comes from; its certificate is the only one accepted.
    pub source: HostId,
}

/// A destination that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingReady {
    /// Where its monitor listens.
    pub address: SocketAddr,
}

/// Starts the sending side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// The machine.
    pub machine: MachineId,
    /// The epoch it runs in here.
    pub epoch: Epoch,
    /// The destination, whose certificate is the only one accepted.
    pub destination: HostId,
    /// Where its monitor listens.
    pub address: SocketAddr,
    /// The blackout to aim for, milliseconds.
    pub budget_ms: u64,
    /// Give up after this, milliseconds.
    pub timeout_ms: u64,
}

/// The authority's verdict for a destination in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// Run here (the source has handed over, or can never run again), or discard.
    pub run: bool,
}

/// One side of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalMigration {
    /// The migration.
    pub id: MigrationId,
    /// The machine.
    pub machine: MachineId,
    /// Which side this host is.
    pub side: Side,
    /// How it stands.
    pub state: LocalMigrationState,
    /// The monitor's phase: `pre-copy`, ….
    pub phase: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// The monitor's figures.
    pub figures: Option<serde_json::Value>,
}

/// Which side of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// It comes from here.
    Source,
    /// It goes here.
    Destination,
}

/// How one side of a move stands. The pair (source's, destination's) decides the saga's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalMigrationState {
    /// Source: sending; the guest may run here again. Destination: waiting or receiving.
    Active,
    /// Destination: loaded, the hand-over not seen.
    Prepared,
    /// Source: durably handed over. It never runs here again.
    HandedOver,
    /// Destination: it runs here.
    Running,
    /// Ended without a hand-over. Source: the guest runs on, or its monitor died before it (then the machine is `crashed`).
    /// Destination: discarded.
    Failed,
}

/// What kind of error, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is wrong.
    Invalid,
    /// No such machine, volume, image, migration here.
    NotFound,
    /// An older epoch, or it runs already in another way.
    Conflict,
    /// No room.
    NoRoom,
    /// This host's fault.
    Internal,
}

/// What a member tells control, at every change and every 3 s: `POST /internal/v1/hosts/{id}/report`.
///
/// A box that is host and entry may send one report for each role: control unites the roles of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The member's own record; `cordoned` and `seen_at` are control's and not looked at.
    pub host: crate::record::Host,
    /// What runs there; none from an entry.
    #[serde(default)]
    pub state: Option<HostState>,
}

/// Where an entry asks control for the secret that it shares with the other entries.
pub const ENTRY_SECRET: &str = "/internal/v1/entry-secret";

/// The answer: [`EntrySecret::to_hex`](crate::sealed::EntrySecret::to_hex).
#[derive(Clone, Serialize, Deserialize)]
pub struct EntrySecretAnswer {
    /// 64 hex digits.
    pub secret: String,
}
