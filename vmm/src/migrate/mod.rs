//! Live migration: the running machine moves to another host over TCP and mTLS.
//!
//! ```text
//! source                                                   destination
//!   Handshake    versions, machine, epoch, memory, disks, CPU ─▶
//!   PreCopy      rounds of pages and blocks; the guest runs ───▶  written, disks synced, RoundDone
//!   StopAndCopy  Pausing · pause, save, last harvest ──────────▶  netd activates, all is loaded
//!   Prepared     ◀──────────────────────────────────── Prepared
//!                handed-over.json is made durable
//!   HandedOver   disks released · HandedOver ──────────────────▶  accepted.json; runs at once
//!                netd redirects                                   netd announces
//!   Running      ◀───────────────────────────────────── Running
//!                late frames of the old taps ──────────────────▶
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | [`machine`] | what a machine must offer, each side; `region` RAM and the dirty bitmap |
//! | `source`, `destination` | the two halves, mirrored |
//! | `converge` | when to stop: a pure decision |
//! | `handover` | the records that make two runners impossible; `gate` cancel or commit |
//! | `handshake`, `frame`, `link`, `tls`, `cipher`, `listener` | the wire, from meaning to bytes |
//! | `ram`, `disk`, `pending`, `packing`, `send`, `receive` | pages and blocks over parallel streams |
//! | `hold`, `hooks`, `progress`, `figures` | tests' brakes, netd's lines, what `status` tells |
//!
//! **Exactly one runner.** The source may resume until `handed-over.json` is durable and never after; the destination may run
//! only after it heard so, from the source or from the authority. In between nobody runs.

mod cipher;
mod converge;
mod destination;
mod disk;
#[cfg(test)]
mod fake;
mod figures;
pub mod frame;
mod gate;
pub mod handover;
mod handshake;
mod hold;
mod hooks;
mod link;
mod listener;
pub mod machine;
mod packing;
mod pending;
mod progress;
mod ram;
mod receive;
mod region;
mod resident;
mod send;
mod source;
#[cfg(test)]
mod tests;
mod tls;

use std::path::PathBuf;

pub use destination::Incoming;
pub use source::Outgoing;

use crate::api::{Hooks, MachineSpec};

/// What migration needs to know of the instance it moves.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The machine.
    pub machine_id: String,
    /// The epoch that this instance runs in, or is prepared for.
    pub epoch: u64,
    /// Where records and `hold-PHASE` files are.
    pub state_dir: PathBuf,
    /// Lines for netd.
    pub hooks: Hooks,
}

impl From<&MachineSpec> for Instance {
    fn from(spec: &MachineSpec) -> Self {
        Self {
            machine_id: spec.machine_id.clone(),
            epoch: spec.epoch,
            state_dir: spec.state_dir.clone(),
            hooks: spec.hooks.clone(),
        }
    }
}
