//! Bodies about machines: launching, showing, stopping, looking inside.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, AppName, Epoch, HostId, ImageName, MachineId, MigrationId, Slug};
use crate::record::{ConfigFile, Init, MachineConfig, MachineEvent, MachineState, RestartPolicy, Service};

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
    /// Started by whoever comes to a door of it while it is stopped.
    #[serde(default)]
    pub autostart: bool,
    /// What is shown at terminals is recorded by the gateway.
    #[serde(default)]
    pub record_sessions: bool,
    /// What the public reaches of it; HTTP on its port 80 when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
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
    /// The IPv4 address where a key of the account is enough: the machine's name has it in DNS. No other machine of the account does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_ipv4: Option<Ipv4Addr>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What was asked for.
    pub config: MachineConfig,
    /// The newest events, newest first.
    pub events: Vec<MachineEvent>,
    /// What entries found when they last tried the checks of its services; of a started machine only.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The migration under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
    /// It is another account's, and shared with the one that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<super::Shared>,
}

/// One check of one service, in Fly's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// As Fly names it, by its place among all checks of the machine: `servicecheck-00-http-8080`.
    pub name: String,
    /// What it comes to.
    pub status: CheckStatus,
    /// What was found, for people: `GET /up: 503 Service Unavailable`.
    pub output: String,
    /// Since when it is so, RFC 3339; empty while no entry has tried it.
    pub updated_at: String,
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// It passed.
    Passing,
    /// It failed once, or was not tried yet: people are sent there all the same.
    Warning,
    /// It fails: nobody is sent there.
    Critical,
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
pub(super) fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
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
