//! Bodies about where things are: migrations, volumes, hosts, drains.

use serde::{Deserialize, Serialize};

use crate::id::{AppName, Epoch, HostId, MachineId, MigrationId, VolumeId};
use crate::record::{Capacity, HostRole, Image, MigrationStep, UnixMs};

use super::machine::seconds;

/// Moves a running machine. An empty body is fine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    /// To this host; the scheduler's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The blackout to aim for, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<u64>,
    /// Give up after this, seconds.
    #[serde(default, deserialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// A move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// The id.
    pub id: MigrationId,
    /// The machine.
    pub machine: MachineId,
    /// Its name; empty when the machine is forgotten.
    pub slug: String,
    /// From where.
    pub source: HostId,
    /// To where.
    pub destination: HostId,
    /// The machine's epoch when it began.
    pub epoch: Epoch,
    /// How far it has come.
    pub step: MigrationStep,
    /// True once nothing more will be done.
    pub done: bool,
    /// The monitor's phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The monitor's figures (`mashines_vmm::api::Figures`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<serde_json::Value>,
    /// Who asked.
    pub requested_by: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// Makes a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Its name, unique in the app.
    pub name: String,
    /// Its size in GiB, or `size_mib`; 1 GiB when neither is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u64>,
    /// Its size in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Where; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The id.
    pub id: VolumeId,
    /// The name.
    pub name: String,
    /// The app.
    pub app: AppName,
    /// `created` until its bytes are on a host, then `attached` or `detached`.
    pub state: String,
    /// GiB, rounded up.
    pub size_gb: u64,
    /// MiB.
    pub size_mib: u64,
    /// The region of its host, empty until it is placed.
    pub region: String,
    /// The host that holds its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The machine it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_machine_id: Option<MachineId>,
    /// RFC 3339.
    pub created_at: String,
}

/// A host, for administrators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The id.
    pub id: HostId,
    /// What it is there for.
    pub roles: Vec<HostRole>,
    /// Its region.
    pub region: String,
    /// What it offers to machines.
    pub capacity: Capacity,
    /// What is promised to machines and to machines on their way here.
    pub used: Capacity,
    /// Images that it holds.
    pub images: Vec<Image>,
    /// Takes no new machines.
    pub cordoned: bool,
    /// It reported within the last 15 s.
    pub alive: bool,
    /// When it last reported.
    pub seen_at: UnixMs,
    /// Its address on the network between hosts.
    pub underlay: std::net::IpAddr,
    /// Machines that are placed here.
    pub machines: Vec<MachineId>,
}

/// How a drain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The host that is drained; it is cordoned.
    pub host: HostId,
    /// Nothing more will be done.
    pub done: bool,
    /// The machines that were here when it began, each with its outcome.
    pub machines: Vec<DrainedMachine>,
}

/// One machine of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedMachine {
    /// The machine.
    pub machine: MachineId,
    /// Its name.
    pub slug: String,
    /// How it stands.
    pub outcome: DrainOutcome,
    /// Its migration, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
    /// Where it went, or why it stays.
    #[serde(default)]
    pub message: String,
}

/// What became of a machine of a drained host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainOutcome {
    /// Its turn has not come.
    Waiting,
    /// It is being moved.
    Moving,
    /// It runs elsewhere.
    Moved,
    /// It does not run, so its disks stay: start it elsewhere or destroy it.
    NotRunning,
    /// It could not be moved.
    Failed,
}
