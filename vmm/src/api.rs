//! What a monitor is told and what it answers.
//!
//! One process of `mashines-vmm` runs one machine. It is started with a [`MachineSpec`] in a file and serves a unix
//! socket: one JSON [`Request`] a line in, one JSON [`Reply`] a line out, in order, any number a connection.
//! Lines are capped at [`MAX_LINE`] bytes.
//!
//! ```text
//! mashines-vmm --spec DIR/spec.json --socket DIR/vmm.sock                 boots
//! mashines-vmm --spec DIR/spec.json --socket DIR/vmm.sock --incoming      waits for a migration
//! mashines-vmm --spec DIR/spec.json --socket DIR/vmm.sock --restore SNAP  takes a snapshot up, running
//! ```
//!
//! The life of a monitor is [`State`]; every reply to `status` carries it.
//!
//! The process's exit status says how the machine ended:
//!
//! | status | meaning |
//! | --- | --- |
//! | 0 | the guest switched itself off, or `kill` |
//! | 1 | the monitor or KVM failed; standard error says how |
//! | 3 | the guest asked for a reset: start it again |
//! | 4 | a triple fault: the guest crashed without a word |
//! | 5 | a migration's destination was discarded; nothing of it ever ran |

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest line either side of the control socket accepts, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Everything that fixes a machine before its first instruction. The destination of a migration gets the same
/// spec, with its own paths and tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The machine's id, for logs, process titles and the migration handshake.
    pub machine_id: String,
    /// The epoch this instance runs in. A migration hands over to `epoch + 1`.
    pub epoch: u64,
    /// Virtual CPUs, 1 to 8.
    pub vcpus: u8,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// A bzImage or an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// Initial RAM disks, concatenated in this order (the kernel reads concatenated cpio archives). A destination
    /// leaves this and `kernel` unread.
    pub initrd: Vec<PathBuf>,
    /// The kernel's command line, complete; the monitor adds nothing.
    pub cmdline: String,
    /// Block devices, in the order of `/dev/vda`, `/dev/vdb`, ….
    pub disks: Vec<DiskSpec>,
    /// Network devices, in the order of `eth0`, `eth1`, ….
    pub nets: Vec<NetSpec>,
    /// The vsock device, when wanted.
    pub vsock: Option<VsockSpec>,
    /// The directory for durable records of this instance (`handed-over.json`, `hold-PHASE` files, see
    /// [`MigrateOut`]). It exists and belongs to this monitor alone.
    pub state_dir: PathBuf,
    /// Lines that this monitor sends to other daemons of its own host at the two moments of a migration that
    /// must not wait for anyone.
    #[serde(default)]
    pub hooks: Hooks,
}

/// One virtio block device with logical blocks of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// A name that is the same on both sides of a migration: `root`, or a volume's id. At most 20 bytes, which the
    /// guest reads as the device's serial.
    pub id: String,
    /// The sparse file (or block device) that takes all writes. With a `base`, blocks that are holes here are read from
    /// the base: the file system's own extent map is the index of what was written.
    pub path: PathBuf,
    /// The read-only image below, the same bytes on every host. It is never moved.
    pub base: Option<PathBuf>,
    /// The size the guest sees, in bytes; a multiple of 4096.
    pub size_bytes: u64,
    /// No write is accepted.
    #[serde(default)]
    pub read_only: bool,
}

/// One virtio network device on an existing tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// The tap's name in the monitor's network namespace. netd made it (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, persistent).
    pub tap: String,
    /// The guest's MAC address, `02:…`.
    pub mac: String,
    /// The MTU the guest is told.
    pub mtu: u16,
}

/// The vsock device: host-side connections go through a unix socket, as Firecracker's do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, 3 or higher.
    pub cid: u32,
    /// The monitor listens here: a client connects, sends `CONNECT PORT\n`, reads `OK PORT\n`, then speaks to the guest.
    /// Connections that the guest opens to port P of the host go to the socket `PATH_P`.
    pub socket: PathBuf,
}

/// Lines sent to unix stream sockets of other daemons. Each gets the line and a newline, and answers with one line
/// that starts `{"ok":true`; anything else, or 2 s of silence, is logged and left to the host daemon to repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Destination, everything loaded, before `Prepared`: netd activates the route (frames wait in the tap's queue).
    pub prepared: Option<Hook>,
    /// Destination, after a failure that came after `prepared` and before the hand-over: netd suppresses the route again.
    pub abandoned: Option<Hook>,
    /// Destination, just after the vCPUs run: netd announces.
    pub running: Option<Hook>,
}

/// One line for one socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The unix stream socket.
    pub socket: PathBuf,
    /// The JSON line.
    pub line: String,
}

/// What the monitor can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state, the migration's progress and the counters. Answers [`Reply::Status`].
    Status,
    /// Stops the vCPUs. Idempotent.
    Pause,
    /// Runs the vCPUs again. Idempotent; refused after a hand-over.
    Resume,
    /// Presses the power button (ACPI); the guest shuts down when it wants to.
    PowerButton,
    /// Ends the machine at once: flushes the disks, exits with 0.
    Kill,
    /// Writes the paused machine to a directory, from which `--restore DIR` takes it up. The disks are not copied.
    Snapshot {
        /// Made when it does not exist.
        directory: PathBuf,
    },
    /// The last bytes of the serial console, at most 256 KiB. Answers [`Reply::Console`].
    Console,
    /// Source: starts a migration; the reply comes at once, progress through `status`.
    MigrateOut(MigrateOut),
    /// Source: gives up a migration that has not handed over; the machine goes on here.
    MigrateCancel,
    /// Destination (`--incoming`): listens for the one source named. Answers [`Reply::Listening`].
    MigrateIn(MigrateIn),
    /// Destination in [`State::Prepared`] whose source fell silent: the authority's verdict. `run: true` only when the
    /// source is known to have handed over or to be dead *and fenced*.
    Resolve {
        /// Run here, or discard the instance.
        run: bool,
    },
}

/// A migration as its source is told of it.
///
/// For tests: at the start of each [`Phase`] the monitor looks for a file `hold-PHASE` in its state directory (`hold-pre-copy`,
/// `hold-stop-and-copy`, …) and, while it exists and for 30 s at most, waits. Both sides do so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateOut {
    /// The migration's id (a ULID). Both sides must name the same.
    pub migration_id: String,
    /// Where the destination's monitor listens.
    pub address: SocketAddr,
    /// The epoch the machine will run in at the destination: this instance's epoch + 1.
    pub next_epoch: u64,
    /// The credentials of this side and what it demands of the other.
    pub tls: Tls,
    /// The blackout to aim for, in milliseconds.
    pub budget_ms: u64,
    /// Give up when the machine has not converged within this time, in milliseconds.
    pub timeout_ms: u64,
    /// Slow the vCPUs down when the guest writes faster than the link carries.
    pub throttle: bool,
    /// Parallel streams for RAM, 1 to 8.
    pub streams: u8,
    /// Sent to netd of this host the moment the hand-over is durable: the address turns to the destination.
    pub handed_over: Option<Hook>,
}

/// A migration as its destination is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateIn {
    /// The migration's id (a ULID).
    pub migration_id: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The credentials of this side and what it demands of the other.
    pub tls: Tls,
    /// Leave when no source came within this time, in milliseconds.
    pub timeout_ms: u64,
}

/// mTLS material. Files, so that no key passes through a command line or a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// This host's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub private_key: PathBuf,
    /// The fleet's CA, PEM.
    pub ca: PathBuf,
    /// The DNS name that the peer's certificate must carry: `<host id>.host.mashines.internal`.
    pub peer_name: String,
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing to add.
    Ok,
    /// To `status`.
    Status(Box<Status>),
    /// To `console`: the bytes, lossily as UTF-8.
    Console {
        /// The text.
        text: String,
    },
    /// To `migrate-in`: the address that is listened on.
    Listening {
        /// Address and port.
        address: SocketAddr,
    },
    /// Not done. Nothing changed.
    Error {
        /// What was tried, what came back, what to do.
        error: String,
    },
}

/// Where an instance stands. Only [`State::Running`] executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Destination: waits for its source, or receives.
    Incoming,
    /// Destination: everything is loaded; the hand-over has not been seen.
    Prepared,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still, by `pause` or within a stop-and-copy.
    Paused,
    /// Source: the machine belongs to the destination. Never left again.
    HandedOver,
    /// The guest powered off, or the monitor was told to end; the process exits next.
    Stopped,
}

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The machine.
    pub machine_id: String,
    /// The epoch of this instance.
    pub epoch: u64,
    /// Where it stands.
    pub state: State,
    /// The current or last migration of this instance.
    pub migration: Option<MigrationStatus>,
    /// Something of that migration is at work still. After its outcome these are the late frames: whoever ends this process
    /// before they are through loses them.
    #[serde(default)]
    pub migrating: bool,
    /// Microseconds the vCPU threads have spent in user + system, summed.
    pub cpu_time_us: u64,
    /// Resident bytes of this process.
    pub resident_bytes: u64,
}

/// The phases of a migration, in order, the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connect, mTLS, versions, CPU and device compatibility.
    Handshake,
    /// RAM and disk blocks flow while the guest runs.
    PreCopy,
    /// The vCPUs stand still; last pages, blocks, device state, frames.
    StopAndCopy,
    /// Destination: loaded, told the source so. Source: heard so.
    Prepared,
    /// Source: recorded durably, told the destination. Destination: heard so.
    HandedOver,
    /// The guest runs at the destination; late frames follow.
    Running,
}

/// How a migration ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The machine runs at the destination.
    Completed,
    /// The machine goes on at the source.
    Failed {
        /// What was tried, what came back, what to do.
        error: String,
    },
    /// The source handed over and did not hear that the destination runs: ask the destination.
    Doubtful {
        /// What was seen.
        error: String,
    },
}

/// Progress and figures of a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// The migration's id.
    pub migration_id: String,
    /// The phase reached.
    pub phase: Phase,
    /// Set when it ended.
    pub outcome: Option<Outcome>,
    /// The figures so far.
    pub figures: Figures,
}

/// What a migration cost, in microseconds and bytes. Fields that do not apply to a side stay 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the request to the end.
    pub total_us: u64,
    /// From just before the first vCPU was asked to stop to the moment that the destination reported that the vCPUs run
    /// (source), measured on the source's clock; includes the last one-way trip.
    pub blackout_us: u64,
    /// Bytes of RAM sent, framing included.
    pub ram_bytes: u64,
    /// Bytes of disk sent.
    pub disk_bytes: u64,
    /// Pages that went as a flag because they are zero.
    pub zero_pages: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Pages sent within the blackout.
    pub last_pages: u64,
    /// Frames taken out of the source's tap queue and delivered at the destination.
    pub frames: u64,
    /// The highest throttle applied, in percent of CPU time taken away.
    pub throttle_percent: u8,
    /// Named spans within the blackout, in order: `(name, microseconds)`.
    pub spans: Vec<(String, u64)>,
}
