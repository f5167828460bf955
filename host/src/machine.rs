//! One machine's slot on this host: its record, its monitor, and the lock that everything that changes them holds.
//!
//! Invariants:
//! - A slot is changed only through [`Held`], of which one exists at a time; reports read without it.
//! - What memory says was on disk first ([`Held::update`]).
//! - A slot without an instance is vacant, and leaves the host's map when it is let go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mashines_fleet::host_api::{LocalMachine, LocalState};
use mashines_fleet::id::MachineId;
use mashines_vmm::api::Status;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::agent::Agent;
use crate::decide::Durable;
use crate::error::{Context, HostError, Result};
use crate::host::Host;
use crate::instance::Instance;
use crate::layout::MachineDir;
use crate::monitor::Monitor;
use crate::process::{Exit, Killer, Process};

/// How much of a monitor's log goes into a reason.
const LOG_TAIL: u64 = 2048;

/// As much of a console as a monitor keeps.
const MAX_CONSOLE: u64 = 256 << 10;

/// A machine's slot.
#[derive(Debug)]
pub struct Machine {
    id: MachineId,
    dir: MachineDir,
    ops: Arc<tokio::sync::Mutex<()>>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    instance: Option<Instance>,
    live: Option<Live>,
    status: Option<Status>,
    resets: Vec<std::time::Instant>,
    console: Option<String>,
}

/// A monitor that lives, or whose end was not dealt with yet.
#[derive(Debug, Clone)]
pub struct Live {
    /// Which process.
    pub process: Process,
    /// Ends it.
    pub killer: Arc<Killer>,
    /// Set once it ended.
    pub exit: watch::Receiver<Option<Exit>>,
}

impl Live {
    /// How it ended; none while it lives.
    pub fn ended(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn gone(&self) {
        // The sender is dropped only after it has told the end.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }
}

impl Machine {
    /// A vacant slot.
    pub fn vacant(id: MachineId, dir: MachineDir) -> Self {
        Self { id, dir, ops: Arc::default(), inner: Mutex::default() }
    }

    /// The machine.
    pub fn id(&self) -> &MachineId {
        &self.id
    }

    /// Its paths.
    pub fn dir(&self) -> &MachineDir {
        &self.dir
    }

    /// Its monitor's control socket.
    pub fn monitor(&self) -> Monitor {
        Monitor::new(&self.dir.socket())
    }

    /// Its guest's agent.
    pub fn agent(&self) -> Agent {
        Agent::new(&self.dir.vsock())
    }

    /// Its record; none when the slot is vacant.
    pub fn instance(&self) -> Option<Instance> {
        self.inner().instance.clone()
    }

    /// Its monitor.
    pub fn live(&self) -> Option<Live> {
        self.inner().live.clone()
    }

    /// What its monitor said last.
    pub fn status(&self) -> Option<Status> {
        self.inner().status.clone()
    }

    /// Notes what its monitor said.
    pub fn set_status(&self, status: Option<Status>) {
        self.inner().status = status;
    }

    /// The end of what its monitor wrote to its log.
    pub fn log_tail(&self) -> String {
        crate::files::tail(&self.dir.log(), LOG_TAIL)
    }

    /// The monitor's durable records of the instance.
    pub fn durable(&self) -> Durable {
        let Some(instance) = self.instance() else { return Durable::default() };
        let run = self.dir.run(instance.epoch);
        Durable {
            // A record that cannot be looked at counts as there: that errs to the safe side.
            handed_over: run.join("handed-over.json").try_exists().unwrap_or(true),
            accepted: run.join("accepted.json").try_exists().unwrap_or(false),
        }
    }

    /// As control sees it; none when the slot is vacant.
    pub fn local(&self) -> Option<LocalMachine> {
        let inner = self.inner();
        let instance = inner.instance.as_ref()?;
        let status = inner.status.as_ref();
        Some(LocalMachine {
            id: self.id.clone(),
            epoch: instance.epoch,
            state: instance.phase,
            reason: instance.reason.clone(),
            cpu_time_us: status.map_or(0, |s| s.cpu_time_us),
            resident_bytes: status.map_or(0, |s| s.resident_bytes),
        })
    }

    /// Takes a copy of the console, which goes with the monitor.
    pub async fn remember_console(&self) {
        if let Ok(text) = self.monitor().console().await {
            self.inner().console = Some(text);
        }
    }

    /// Writes the last copy of the console down, when its monitor has ended.
    pub fn write_console(&self) {
        let Some(text) = self.inner().console.take() else { return };
        if let Err(e) = std::fs::write(self.dir.console(), text) {
            tracing::warn!(machine = %self.id, "its console is lost: {e}");
        }
    }

    /// The end of the serial console, of a monitor that lives or of the last one.
    pub async fn console(&self) -> Result<String> {
        match self.live() {
            Some(live) if live.ended().is_none() => self.monitor().console().await,
            Some(_) | None => Ok(crate::files::tail(&self.dir.console(), MAX_CONSOLE)),
        }
    }

    /// Notes a reset of the guest, and answers how many there were within `window`.
    pub fn note_reset(&self, window: std::time::Duration) -> usize {
        let mut inner = self.inner();
        inner.resets.retain(|at| at.elapsed() < window);
        inner.resets.push(std::time::Instant::now());
        inner.resets.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment: a panic in between leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to change a machine's slot.
#[derive(Debug)]
pub struct Held {
    host: Arc<Host>,
    machine: Arc<Machine>,
    _ops: OwnedMutexGuard<()>,
}

impl Held {
    /// Waits for the slot of a machine, which is made when there is none.
    pub async fn new(host: &Arc<Host>, id: &MachineId) -> Self {
        loop {
            let machine = host.slot(id);
            let ops = Arc::clone(&machine.ops).lock_owned().await;
            // It may have left the map while we waited, and another have taken its place.
            if host.is_slot(&machine) {
                return Self { host: Arc::clone(host), machine, _ops: ops };
            }
        }
    }

    /// The slot.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The record, or an error that says that there is none.
    pub fn instance(&self) -> Result<Instance> {
        self.machine
            .instance()
            .ok_or_else(|| HostError::not_found(format!("machine {} is not on this host", self.machine.id)))
    }

    /// Makes `next` the record: on disk, then in memory.
    pub async fn put(&self, next: Instance) -> Result<()> {
        let (layout, record) = (self.host.layout.clone(), next.clone());
        tokio::task::spawn_blocking(move || record.store(&layout))
            .await
            .doing(|| format!("write the record of machine {}", self.machine.id))??;
        self.machine.inner().instance = Some(next);
        self.host.changed();
        Ok(())
    }

    /// Changes the record.
    pub async fn update(&self, change: impl FnOnce(&mut Instance)) -> Result<Instance> {
        let mut next = self.instance()?;
        change(&mut next);
        self.put(next.clone()).await?;
        Ok(next)
    }

    /// Changes the phase and its reason.
    pub async fn phase(&self, phase: LocalState, reason: Option<String>) -> Result<Instance> {
        self.update(|i| {
            i.phase = phase;
            i.reason = reason;
        })
        .await
    }

    /// Notes the monitor, or that there is none.
    pub fn set_live(&self, live: Option<Live>) {
        let mut inner = self.machine.inner();
        if live.is_none() {
            inner.status = None;
        }
        inner.live = live;
    }

    /// Empties the slot; its files are the caller's business.
    pub fn vacate(&self) {
        let mut inner = self.machine.inner();
        inner.instance = None;
        inner.live = None;
        inner.status = None;
        drop(inner);
        self.host.changed();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.machine.inner().instance.is_none() {
            self.host.forget_slot(&self.machine);
        }
    }
}
