//! What live migration asks of a machine: one trait a side, one for a disk.
//!
//! The real machine implements them on KVM and its devices, the tests implement them in memory with failures on
//! demand. All methods take `&self`; the control socket goes on answering `status` while a migration runs.
//!
//! # Call order, source
//!
//! ```text
//! describe · ram · disks                              handshake
//! start_dirty_log · DiskSide::start_tracking · DiskSide::allocated_runs
//! ( harvest(Round) · DiskSide::take_dirty · read_blocks )*      pre-copy, the guest runs; throttle(p) may come
//! pause                                               the blackout begins just before this call
//! save                                                may be called once only after `pause`
//! harvest(Last) · DiskSide::take_dirty · read_blocks  after `save`: device writes are dirty too
//! take_frames
//!   ── from here either ──
//! release   the durable record exists; never resumed again. Then take_frames for a while (late frames), then
//!           stop_dirty_log · DiskSide::stop_tracking
//!   ── or, after a failure at any point above ──
//! resume (if paused) · throttle(0) · stop_dirty_log · DiskSide::stop_tracking
//! ```
//!
//! # Call order, destination
//!
//! ```text
//! describe · check_compatible                         before any RAM is sent
//! ram · disks                                         pages and blocks are written by the migration itself
//! ( DiskSide::write_blocks | zero )* · DiskSide::sync     a sync after each round
//! load · inject_frames                                after the last page and block; the guest is still stopped
//! prepared                                            the state becomes `Prepared`
//!   ── either ──
//! run                                                 clock → devices → vCPUs, every queue kicked
//! inject_frames*                                      late frames
//!   ── or ──
//! discard                                             nothing of this instance may run; the process ends
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use super::region::{DirtyBitmap, PAGE_SIZE, RamRegion};

/// The saved state of one part of a machine: a vCPU, the irqchip, a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which part. A destination refuses a kind it does not know.
    pub kind: u16,
    /// The version of `bytes`. A destination reads its own and the one before.
    pub version: u16,
    /// The encoded state; the encoding is the owner's.
    pub bytes: Vec<u8>,
}

/// An Ethernet frame out of a tap queue, with its virtio-net header exactly as the tap delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetFrame {
    /// The index of the network device, in the order of the spec.
    pub device: u16,
    /// Header and frame.
    pub bytes: Vec<u8>,
}

/// What must agree before any RAM is sent. Sent by the source, compared by the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The machine's id.
    pub machine_id: String,
    /// The number of virtual CPUs.
    pub vcpus: u8,
    /// What the guest's CPU looks like.
    pub cpu: CpuDescription,
    /// RAM, `(guest address, bytes)`, ascending.
    pub memory: Vec<(u64, u64)>,
    /// Each device with the section kind and version that its saved state has.
    pub devices: Vec<DeviceDescription>,
    /// The disks, in order.
    pub disks: Vec<DiskDescription>,
}

/// The guest's CPU. The machine decides what makes two of them compatible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuDescription {
    /// `AuthenticAMD`, `GenuineIntel`.
    pub vendor: String,
    /// The CPUID leaves that the guest was given: `[function, index, eax, ebx, ecx, edx]`.
    pub cpuid: Vec<[u32; 6]>,
    /// The MSRs that are saved and must be loadable.
    pub msrs: Vec<u32>,
    /// The frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
}

/// A device as far as compatibility goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// A name for error messages: `net0`, `root`, `serial`.
    pub name: String,
    /// The kind of its [`Section`].
    pub kind: u16,
    /// The version of its [`Section`].
    pub version: u16,
}

/// A disk as far as compatibility goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescription {
    /// The id, the same on both sides.
    pub id: String,
    /// The size the guest sees, in bytes.
    pub size_bytes: u64,
    /// Never written, so never sent.
    pub read_only: bool,
}

/// Why the dirty log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harvest {
    /// A round of pre-copy: what is returned is cleared (write-protected) again before this returns.
    Round,
    /// The guest is paused and this is the last reading: nothing needs to be cleared.
    Last,
}

/// The side that the machine leaves.
pub trait SourceMachine: Send + Sync {
    /// What the destination must match.
    fn describe(&self) -> Result<Description>;

    /// The guest's RAM. The regions stay mapped as long as they are held.
    fn ram(&self) -> Result<Vec<RamRegion>>;

    /// The disks, in the order of the description.
    fn disks(&self) -> Vec<Arc<dyn DiskSide>>;

    /// Starts to note written pages: the guest's writes and the monitor's own. Idempotent. Pages may count as dirty from
    /// the start (`KVM_DIRTY_LOG_INITIALLY_SET`); the first round sends all of them anyway.
    fn start_dirty_log(&self) -> Result<()>;

    /// ORs the pages written since the last call into `dirty`.
    fn harvest(&self, dirty: &mut DirtyBitmap, why: Harvest) -> Result<()>;

    /// Ends the dirty log. Idempotent; never called within a blackout.
    fn stop_dirty_log(&self) -> Result<()>;

    /// Takes `percent` of the vCPUs' time away; 0 ends it.
    fn throttle(&self, percent: u8) -> Result<()>;

    /// Stops the vCPUs, then drains and quiesces the devices: when this returns, nothing writes guest RAM or a disk any
    /// more, except for [`SourceMachine::save`]. The frames in the tap queues stay there.
    fn pause(&self) -> Result<()>;

    /// Runs the guest again after a failed migration. Called only if no durable hand-over record was written.
    fn resume(&self) -> Result<()>;

    /// The state of everything but RAM and disks. The guest is paused.
    fn save(&self) -> Result<Vec<Section>>;

    /// The frames that wait in the tap queues, without blocking. At most a few hundred a call; empty means none is there.
    fn take_frames(&self) -> Result<Vec<NetFrame>>;

    /// Waits until a tap queue holds a frame, at most so long.
    fn wait_for_frames(&self, longest: Duration) -> Result<()>;

    /// The machine is handed over: its state is `HandedOver` for ever; disks are closed or at least unlocked, quickly, as this
    /// is within the blackout. The destination takes the locks in [`DestinationMachine::run`].
    fn release(&self) -> Result<()>;
}

/// The side that the machine comes to.
pub trait DestinationMachine: Send + Sync {
    /// What the source must match.
    fn describe(&self) -> Result<Description>;

    /// Compares what only the machine understands: the CPU and the devices' versions. Memory, vCPU count, disks and
    /// the machine's id have been compared before ([`super::handshake::compatible`]). The error names the first difference.
    fn check_compatible(&self, source: &Description) -> Result<()>;

    /// The guest's RAM, mapped and readable; what was never written reads as zero.
    fn ram(&self) -> Result<Vec<RamRegion>>;

    /// The disks, in the order of the description.
    fn disks(&self) -> Vec<Arc<dyn DiskSide>>;

    /// Loads the state. An unknown kind or version is an error, and then nothing runs. All that takes time belongs here and not
    /// into [`DestinationMachine::run`].
    fn load(&self, sections: &[Section]) -> Result<()>;

    /// Frames for the guest, in order, ahead of everything that its own tap holds. Before `run` they are kept until the
    /// devices run; after it they are delivered.
    fn inject_frames(&self, frames: Vec<NetFrame>) -> Result<()>;

    /// The state becomes `Prepared`.
    fn prepared(&self);

    /// Takes the disks' locks, then runs: clock → devices → vCPUs, every queue kicked. The state becomes `Running` in
    /// epoch `epoch`. Returns named spans in microseconds for the figures.
    fn run(&self, epoch: u64) -> Result<Vec<(String, u64)>>;

    /// This instance must never run. The process ends soon after.
    fn discard(&self);
}

/// One disk, either side. Offsets and lengths are bytes, multiples of 4096, within the size.
pub trait DiskSide: Send + Sync {
    /// The id, the size, the mode.
    fn describe(&self) -> DiskDescription;

    /// Source: the runs of blocks that differ from the base (or from zero): the file's extents.
    fn allocated_runs(&self) -> Result<Vec<Range<u64>>>;

    /// Source: from now on writes, discards and zeroings are noted. Called before `allocated_runs`. Idempotent.
    fn start_tracking(&self) -> Result<()>;

    /// Source: the runs changed since the last call, and forgets them. Ascending, not overlapping.
    fn take_dirty(&self) -> Result<Vec<Range<u64>>>;

    /// Source: ends the noting. Idempotent.
    fn stop_tracking(&self);

    /// Reads what the guest would read.
    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Destination: writes blocks.
    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Destination: the range reads as zero from now on, whatever a base holds there.
    fn zero(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes all writes so far durable.
    fn sync(&self) -> Result<()>;
}
