//! The public REST API's bodies, for control, the CLI and the lobby.
//!
//! Shape: the Fly Machines API under `/v1`, and in its style what it lacks. M = `/v1/apps/{app}/machines`.
//!
//! | call | body → answer |
//! | --- | --- |
//! | `GET /v1/account` | → [`Account`] |
//! | `POST /v1/account/keys` | [`AddKey`] → [`Account`] |
//! | `GET /v1/tokens/current` | → [`CurrentToken`] |
//! | `GET /v1/platform/regions` | → [`Regions`] |
//! | `GET, POST /v1/apps`; `GET, DELETE /v1/apps/{app}` | [`CreateApp`] → [`App`], [`Apps`] |
//! | `GET, POST M` | [`CreateMachine`] → [`Machine`]; the list takes `state`, `region`, `include_deleted`, `metadata.K=V` |
//! | `GET, POST, DELETE M/{id}` | [`UpdateMachine`] → [`Machine`]; DELETE takes `force` |
//! | `POST M/{id}/start`, `stop`, `restart` | [`StopMachine`] → [`Done`]; restart takes `?timeout=S` |
//! | `GET M/{id}/wait?state=S&timeout=SECONDS` | → [`Done`], or 408 with the state in words |
//! | `POST M/{id}/exec` | [`Exec`] → [`ExecAnswer`] |
//! | `GET M/{id}/events` | → `[MachineEvent]` |
//! | `GET M/{id}/logs` | → [`Logs`]: the console |
//! | `GET, PUT, PATCH M/{id}/metadata`; `GET, POST, DELETE …/{key}` | `{key: value}`; POST [`MetadataValue`] |
//! | `GET, POST, DELETE M/{id}/lease` | [`LeaseRequest`] → [`LeaseAnswer`] |
//! | `POST M/{id}/migrate` | [`Migrate`] → [`Migration`] |
//! | `GET, POST /v1/apps/{app}/volumes`; `GET, DELETE …/{id}` | [`CreateVolume`] → [`Volume`] |
//! | `GET /v1/orgs/{account}/machines` | → [`OrgMachines`] |
//! | `GET /v1/machines`, `/v1/machines/{id or slug}` | → [`Machine`]s of the account, flat |
//! | `GET /v1/volumes` | → [`Volume`]s of the account, flat |
//! | `GET /v1/migrations?machine=ID`, `/v1/migrations/{id}` | → [`Migration`] |
//! | `POST /v1/migrations/{id}/cancel` | → [`Migration`] |
//! | `GET /v1/hosts`, `/v1/hosts/{id}` | → [`Host`] |
//! | `POST /v1/hosts/{id}/cordon`, `uncordon` | → [`Host`] |
//! | `POST /v1/hosts/{id}/drain`; `GET` the same | → [`Drain`] |
//!
//! Every machine path takes the id or the slug. Errors are [`ErrorBody`]. Answers carry `fly-request-id`.
//! `POST M` takes `Idempotency-Key`: the same key within a day answers with the same machine.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, AppName, Epoch, HostId, ImageName, MachineId, MigrationId, Slug, VolumeId};
use crate::record::{
    Capacity, ConfigFile, HostRole, Image, Init, MachineConfig, MachineEvent, MachineState, MigrationStep,
    RestartPolicy, UnixMs,
};

/// The app that machines belong to when nobody says otherwise; every account has it.
pub const DEFAULT_APP: &str = "default";

/// Header of an entry's request on behalf of an account (the lobby): the account's id.
pub const ACCOUNT_HEADER: &str = "x-mashines-account";

/// Any answer from 400 up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was tried, on which object, what came back, what to do.
    pub error: String,
    /// For programs: `invalid`, `not-found`, `conflict`, `no-room`, `unauthorized`, `forbidden`, `timeout`, `internal`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// It was done, or is being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// The account that the token belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The id.
    pub id: AccountId,
    /// Public keys that enter its machines.
    pub ssh_keys: Vec<String>,
    /// May administer the fleet.
    pub admin: bool,
    /// The apex: machines are at `slug.domain`.
    pub domain: String,
    /// The platform's SSH CA, for a `@cert-authority` line.
    pub ssh_ca: Option<String>,
}

/// A public key for the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddKey {
    /// In OpenSSH's one-line form.
    pub public_key: String,
}

/// Who the token speaks for, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentToken {
    /// One entry.
    pub tokens: Vec<TokenInfo>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// The account.
    pub org_slug: AccountId,
    /// The account, again: Fly has organisations and users.
    pub organization: AccountId,
    /// May administer the fleet.
    #[serde(default)]
    pub admin: bool,
}

/// The regions of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regions {
    /// By code.
    #[serde(rename = "Regions")]
    pub regions: Vec<Region>,
}

/// A region: hosts that share a prefix and a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its code, the hosts' `region`.
    pub code: String,
    /// Its name.
    pub name: String,
    /// Room for machines, MiB of memory.
    pub capacity: u64,
}

/// Makes an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateApp {
    /// Its name.
    #[serde(alias = "app_name")]
    pub name: String,
    /// The account, when given it must be the token's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
}

/// An app: a group of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The name is the id.
    pub id: AppName,
    /// Unique in the account.
    pub name: AppName,
    /// Machines that are not destroyed.
    pub machine_count: usize,
    /// Volumes.
    pub volume_count: usize,
    /// The account's private network.
    pub network: String,
    /// The account.
    pub organization: Organization,
    /// `deployed` with machines, else `pending`.
    pub status: String,
}

/// An account as Fly's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// The id.
    pub name: AccountId,
    /// The id.
    pub slug: AccountId,
}

/// The account's apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apps {
    /// How many.
    pub total_apps: usize,
    /// They.
    pub apps: Vec<App>,
}

/// Launches a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateMachine {
    /// Its name, a DNS label unique in the fleet; a readable one is made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// On this very host (administrators only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What.
    pub config: ConfigRequest,
    /// Volumes that are made and attached with the machine, in one transaction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<NewVolume>,
    /// Recorded, but not started.
    #[serde(default)]
    pub skip_launch: bool,
}

/// A volume that is made with its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Its name, unique in the app.
    pub name: String,
    /// Its size in MiB.
    pub size_mib: u64,
    /// Where the guest mounts it; `/mnt/NAME` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Replaces a machine's whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateMachine {
    /// The new configuration.
    pub config: ConfigRequest,
    /// Leaves the machine as it is until the next start.
    #[serde(default)]
    pub skip_launch: bool,
}

/// A machine's configuration as a client writes it: what is absent has a default, unknown keys are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigRequest {
    /// The image's name.
    #[serde(default)]
    pub image: String,
    /// A preset (`shared-cpu-1x`, `shared-cpu-2x`, `shared-cpu-4x`, `shared-cpu-8x`, `performance-1x` …); `guest` wins over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// CPU and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestRequest>,
    /// Environment of the workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Volumes that exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
    /// Files written before the workload starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ConfigFile>,
    /// How the workload is started.
    #[serde(default)]
    pub init: Init,
    /// What happens when the machine exits on its own.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Removed once it has stopped.
    #[serde(default)]
    pub auto_destroy: bool,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// CPU and memory as a client writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRequest {
    /// `shared` (the default) or `performance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<String>,
    /// 1 to 8; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// MiB, at least 128; 256 for a shared CPU and 2048 for a performance CPU when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

/// An existing volume, by id or by its name in the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The volume's id or name.
    pub volume: String,
    /// Where the guest mounts it.
    pub path: String,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The id.
    pub id: MachineId,
    /// The name, same as `slug`: Fly's clients look here.
    pub name: Slug,
    /// The name in DNS.
    pub slug: Slug,
    /// The app.
    pub app: AppName,
    /// The owner.
    pub account: AccountId,
    /// Where it stands.
    pub state: MachineState,
    /// Why it stands there, where a person should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its region; empty until it is scheduled.
    pub region: String,
    /// Its host, once it is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The epoch of its place; 0 until it is scheduled.
    pub epoch: Epoch,
    /// Changes with each update of the configuration: a ULID.
    pub instance_id: String,
    /// The image.
    pub image_ref: ImageRef,
    /// The public address.
    pub ipv6: Ipv6Addr,
    /// The private address in the account's mesh.
    pub private_ip: Ipv6Addr,
    /// The full name: `slug.mashine.dev`.
    pub fqdn: String,
    /// The shared IPv4 door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshDoor>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What was asked for.
    pub config: MachineConfig,
    /// The newest events, newest first.
    pub events: Vec<MachineEvent>,
    /// Health checks: none yet; Fly's clients iterate over it.
    #[serde(default)]
    pub checks: Vec<serde_json::Value>,
    /// The migration under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
}

/// An image, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The name.
    pub repository: ImageName,
    /// `sha256:…`.
    pub digest: String,
}

/// `ssh -p PORT root@IPV4_HOST`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshDoor {
    /// The entry's name: `entry160.mashine.dev`.
    pub ipv4_host: String,
    /// Its addresses.
    #[serde(default)]
    pub ipv4: Vec<Ipv4Addr>,
    /// The port.
    pub port: u16,
}

/// The account's machines, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgMachines {
    /// They.
    pub machines: Vec<Machine>,
    /// Pass it as `cursor` for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// How to stop. An empty body is fine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopMachine {
    /// Time for the guest to shut down, seconds (30 when absent), as a number or like `"10s"`.
    #[serde(default, deserialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Fly's; only the orderly ones (`SIGTERM`, `SIGINT`) and `SIGKILL` (no time to shut down) mean something here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// Seconds, as clients write them: `10`, `"10"`, `"10s"`, `"1m"`.
fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    let Some(written) = Option::<Written>::deserialize(deserializer)? else { return Ok(None) };
    let parsed = match &written {
        Written::Number(seconds) => Some(*seconds),
        Written::Text(text) => parse_seconds(text),
    };
    let refused = || serde::de::Error::custom("a timeout is seconds as a number, or like \"10s\" or \"2m\"");
    parsed.map(Some).ok_or_else(refused)
}

/// Seconds from `"10"`, `"10s"`, `"2m"` or `"1h"`.
pub fn parse_seconds(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b's' => (text.strip_suffix('s')?, 1),
        b'm' => (text.strip_suffix('m')?, 60),
        b'h' => (text.strip_suffix('h')?, 3600),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Runs a command in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// One line for the guest's `/bin/sh -c`, or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// The program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Seconds until it is killed; 30 when absent.
    #[serde(default, deserialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecAnswer {
    /// Its exit code; -1 when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it, 0 for none.
    #[serde(default)]
    pub exit_signal: i32,
    /// Its output; bytes that are no UTF-8 are replaced.
    #[serde(default)]
    pub stdout: String,
    /// Its errors.
    #[serde(default)]
    pub stderr: String,
}

/// The console's last bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// As the guest wrote it; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// A label's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataValue {
    /// The value.
    pub value: String,
}

/// Asks for the lease of a machine: others' changes are refused meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Seconds; 60 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A lease, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// `success`.
    pub status: String,
    /// The lease.
    pub data: Lease,
}

/// A lease of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Goes into the header `fly-machine-lease-nonce` of the holder's requests. Empty in answers to others.
    #[serde(default)]
    pub nonce: String,
    /// Unix seconds.
    pub expires_at: u64,
    /// The account that holds it.
    pub owner: AccountId,
    /// For people.
    #[serde(default)]
    pub description: String,
}

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
