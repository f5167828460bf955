//! The life of a monitor process: build, boot or wait, serve, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing::{error, info};

use crate::api::{MachineSpec, State};
use crate::control;
use crate::migrate::handover;
use crate::power::Exit;
use crate::snapshot;
use crate::vm::Vm;

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file with the [`MachineSpec`].
    pub spec: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// How the machine comes to life.
    pub start: Start,
}

/// How a machine comes to life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// By booting.
    Boot,
    /// By a migration.
    Incoming,
    /// From a snapshot in this directory.
    Restore(PathBuf),
}

/// How the process ends: its exit status (see [`crate::api`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// 0.
    PowerOff,
    /// 1.
    Failed,
    /// 3.
    Reset,
    /// 4.
    TripleFault,
    /// 5.
    Discarded,
}

impl Ending {
    /// The exit status.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Failed => 1,
            Self::Reset => 3,
            Self::TripleFault => 4,
            Self::Discarded => 5,
        }
    }
}

/// Runs one machine to its end.
///
/// # Errors
/// When it could not be built or booted. Nothing of it runs then.
pub fn run(options: &Options) -> Result<Ending> {
    let spec = read_spec(&options.spec)?;
    handover::refuse_if_handed_over(&spec.state_dir)?;
    let machine = spec.machine_id.clone();
    let (vm, exits) = Vm::new(spec).with_context(|| format!("make machine {machine}"))?;
    let vm = Arc::new(vm);
    match &options.start {
        Start::Boot => vm.boot().with_context(|| format!("boot machine {machine}"))?,
        Start::Restore(directory) => snapshot::read(&vm, directory)
            .with_context(|| format!("restore machine {machine} from {}", directory.display()))?,
        Start::Incoming => {}
    }
    control::serve(&options.socket, Arc::clone(&vm))?;
    if options.start != Start::Incoming {
        vm.resume()?;
        info!(machine, "running");
    }
    let exit = exits.recv().context("every thread that could end the machine is gone")?;
    vm.phase().state = State::Stopped;
    vm.stop_all();
    vm.flush();
    Ok(ending(&machine, exit))
}

fn ending(machine: &str, exit: Exit) -> Ending {
    match exit {
        Exit::PowerOff => Ending::PowerOff,
        Exit::Reset => Ending::Reset,
        Exit::TripleFault => Ending::TripleFault,
        Exit::Discarded => Ending::Discarded,
        Exit::Failed(reason) => {
            error!(machine, reason, "the machine cannot go on");
            Ending::Failed
        }
    }
}

fn read_spec(path: &Path) -> Result<MachineSpec> {
    let text = std::fs::read(path).with_context(|| format!("read the machine's spec {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand the machine's spec {}", path.display()))
}
