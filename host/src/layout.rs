//! Where everything of this host lies.
//!
//! ```text
//! STATE/machines/<id>/instance.json   the durable record of the instance (`instance`)
//!                     run.lock        held by the monitor as its standard input, for as long as it lives (`process`)
//!                     spec.json       what the monitor is told
//!                     config.cpio     what the guest is told, appended as the last initrd
//!                     root.overlay    the machine's own blocks of its root disk, sparse
//!                     vmm.sock        the monitor's control socket
//!                     vsock.sock      the way to the guest's agent
//!                     vmm.log         the monitor's output of this start; `vmm.log.1` of the one before
//!                     console.txt     the end of the serial console, kept when the monitor ends
//!                     run-<epoch>/    the monitor's own durable records
//! STATE/volumes/<id>.img              a volume's bytes, sparse
//! STATE/migrations/<id>.json          one side of a move (`moves`)
//! STATE/fences/<machine>              the highest epoch that may never start here again
//! ```

use std::path::{Path, PathBuf};

use mashines_fleet::id::{Epoch, MachineId, MigrationId, VolumeId};

/// The paths below one state directory.
#[derive(Debug, Clone)]
pub struct Layout {
    state: PathBuf,
}

impl Layout {
    /// The layout below `state`.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into() }
    }

    /// The state directory itself.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where the machines' directories are.
    pub fn machines(&self) -> PathBuf {
        self.state.join("machines")
    }

    /// One machine's directory.
    pub fn machine(&self, id: &MachineId) -> MachineDir {
        MachineDir { dir: self.machines().join(id.as_str()) }
    }

    /// Where the volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// A volume's file.
    pub fn volume(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.img"))
    }

    /// Where the records of moves are.
    pub fn migrations(&self) -> PathBuf {
        self.state.join("migrations")
    }

    /// The record of a move.
    pub fn migration(&self, id: &MigrationId) -> PathBuf {
        self.migrations().join(format!("{id}.json"))
    }

    /// Where the fences are.
    pub fn fences(&self) -> PathBuf {
        self.state.join("fences")
    }

    /// The fence of a machine that may have left.
    pub fn fence(&self, id: &MachineId) -> PathBuf {
        self.fences().join(id.as_str())
    }
}

/// The paths of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDir {
    dir: PathBuf,
}

impl MachineDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The durable record.
    pub fn instance(&self) -> PathBuf {
        self.dir.join("instance.json")
    }

    /// The lock that a living monitor holds.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("run.lock")
    }

    /// The monitor's spec.
    pub fn spec(&self) -> PathBuf {
        self.dir.join("spec.json")
    }

    /// The guest's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.cpio")
    }

    /// The root disk's own blocks.
    pub fn overlay(&self) -> PathBuf {
        self.dir.join("root.overlay")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("vmm.sock")
    }

    /// The socket of the vsock device.
    pub fn vsock(&self) -> PathBuf {
        self.dir.join("vsock.sock")
    }

    /// The monitor's output.
    pub fn log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// The monitor's output of the start before.
    pub fn previous_log(&self) -> PathBuf {
        self.dir.join("vmm.log.1")
    }

    /// The end of the console of an instance that ended.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.txt")
    }

    /// The monitor's state directory in one epoch.
    pub fn run(&self, epoch: Epoch) -> PathBuf {
        self.dir.join(format!("run-{epoch}"))
    }
}
