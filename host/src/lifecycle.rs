//! A machine's life on this host: boot, stop, remove, and what follows when its monitor ends.
//!
//! ```text
//!   run ─▶ record (Starting) ─▶ disks, guest config ─▶ netd: prepare ─▶ monitor ─▶ netd: activate ─▶ guest ready ─▶ Ready
//!                                                                         │ exit
//!                                        Stopped · Crashed · (reset: monitor again) ◀┘
//! ```
//!
//! The route is active as soon as the monitor runs, before the guest says that it is ready: a machine that boots runs nowhere else,
//! its frames wait in the tap's queue, and what its own start-up fetches from the network arrives. (In a move the order is
//! another, see `migrate`.)
//!
//! Nothing is left behind by a start that fails: what it made, and nothing older, is removed again.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::host_api::{LocalMachine, LocalState, MachineSpec, RunMachine, StopMachine};
use mashines_fleet::id::{Epoch, MachineId};
use mashines_guest::config_archive;
use mashines_vmm::api::{Hooks, Request};

use crate::decide::{self, AfterExit, Start};
use crate::error::{Context, HostError, Result};
use crate::host::Host;
use crate::image::LocalImage;
use crate::instance::{self, Instance};
use crate::machine::{Held, Live, Machine};
use crate::process::{self, Exit, RunLock};
use crate::{files, network, spec};

/// How long a monitor may take to open its control socket. An emulated lab is slow.
const SOCKET_PATIENCE: Duration = Duration::from_secs(20);

/// How long a monitor may take to end after it was told to, before it is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Resets within this time are slowed down.
const RESET_WINDOW: Duration = Duration::from_secs(120);

/// The longest pause before a guest that resets itself over and over is started again.
const MAX_RESET_PAUSE: Duration = Duration::from_secs(30);

/// What a start has made so far, to be taken back if it fails.
#[derive(Debug, Default)]
pub struct Made(pub Vec<PathBuf>);

impl Host {
    /// Boots a machine in an epoch, or answers how it stands if that was done before.
    pub async fn run(self: &Arc<Self>, request: RunMachine) -> Result<LocalMachine> {
        let RunMachine { machine: wanted, epoch } = request;
        spec::check(&wanted)?;
        let held = Held::new(self, &wanted.id).await;
        let before = held.machine().instance();
        match decide::start(instance::fence(&self.layout, &wanted.id)?, before.as_ref(), epoch)? {
            Start::Answer => return local(&held),
            Start::Boot => {}
        }
        let image = self.images.find(&wanted.image, &wanted.image_digest)?;
        self.check_volumes(&wanted, before.as_ref())?;
        let next = Instance {
            spec: wanted,
            epoch,
            phase: LocalState::Starting,
            reason: None,
            process: None,
            migration: None,
        };
        self.admit(&held, &next, &image).await?;
        let mut made = Made::default();
        let booted = match self.end_monitor(&held).await {
            Ok(()) => self.boot(&held, &image, &mut made).await,
            Err(e) => Err(e),
        };
        if let Err(e) = booted {
            let left = self.take_back(&held, before, made).await;
            return Err(e.and_left_behind(&left));
        }
        local(&held)
    }

    /// A volume is made with the first machine that has it. One that the machine had before must be there: an empty disk must
    /// not stand in for a lost one.
    fn check_volumes(&self, wanted: &MachineSpec, before: Option<&Instance>) -> Result<()> {
        self.check_volumes_free(&wanted.id, wanted.volumes.iter().map(|v| &v.id))?;
        let had = before.map(|b| b.spec.volumes.as_slice()).unwrap_or_default();
        let lost = wanted
            .volumes
            .iter()
            .find(|volume| had.iter().any(|v| v.id == volume.id) && !self.layout.volume(&volume.id).exists());
        match lost {
            None => Ok(()),
            Some(volume) => Err(HostError::not_found(format!(
                "volume {} of machine {} was on this host and its file {} is gone",
                volume.id,
                wanted.id,
                self.layout.volume(&volume.id).display()
            ))),
        }
    }

    /// Checks the room and makes `next` the record, so that its room counts as promised.
    pub(crate) async fn admit(&self, held: &Held, next: &Instance, image: &LocalImage) -> Result<()> {
        let _admission = self.admission.lock().await;
        self.check_room(next.id(), spec::room(&next.spec, image.image.rootfs_bytes))?;
        let dir = held.machine().dir().path();
        std::fs::create_dir_all(dir).doing(|| format!("make the directory {}", dir.display()))?;
        held.put(next.clone()).await
    }

    async fn boot(self: &Arc<Self>, held: &Held, image: &LocalImage, made: &mut Made) -> Result<()> {
        let instance = held.instance()?;
        self.write_files(&instance, image, Hooks::default(), made).await?;
        self.netd.call(netd::api::Request::Prepare(network::port(&instance.spec, instance.epoch)?)).await?;
        self.start_monitor(held, false).await
    }

    /// Everything that a monitor reads: disks, the guest's configuration, its spec, its own directory.
    pub(crate) async fn write_files(
        &self,
        instance: &Instance,
        image: &LocalImage,
        hooks: Hooks,
        made: &mut Made,
    ) -> Result<()> {
        let dir = instance.dir(&self.layout);
        let arguments = &self.config.kernel_arguments;
        let told = spec::monitor(&instance.spec, instance.epoch, image, arguments, &self.layout, hooks);
        let guest = spec::guest(&instance.spec, image, &self.config.guest_dns);
        let epoch = instance.epoch;
        let write = move || -> (Vec<PathBuf>, Result<()>) {
            let mut made = Vec::new();
            let mut all = || -> Result<()> {
                for (path, size) in spec::disk_files(&told.disks) {
                    if files::create_sparse(path, size)? {
                        made.push(path.to_path_buf());
                    }
                }
                let run = dir.run(epoch);
                std::fs::create_dir_all(&run).doing(|| format!("make the directory {}", run.display()))?;
                let archive =
                    config_archive(&guest).doing(|| "write the guest's configuration".to_owned())?;
                files::store(&dir.config(), &archive)?;
                files::store_json(&dir.spec(), &told)
            };
            let done = all();
            (made, done)
        };
        let (paths, done) =
            tokio::task::spawn_blocking(write).await.doing(|| "write a machine's files".to_owned())?;
        made.0.extend(paths);
        done
    }

    /// Starts the monitor and waits until it answers.
    pub(crate) async fn start_monitor(self: &Arc<Self>, held: &Held, incoming: bool) -> Result<()> {
        let machine = held.machine();
        let dir = machine.dir();
        let lock = RunLock::take(dir)?.ok_or_else(|| {
            HostError::conflict(format!("a monitor of machine {} lives already", machine.id()))
        })?;
        // Whoever holds the lock may take a dead monitor's sockets away.
        let mut left = Vec::new();
        files::remove(&dir.socket(), &mut left);
        files::remove(&dir.vsock(), &mut left);
        if let Some(left) = left.first() {
            return Err(HostError::internal(format!("remove an old socket: {left}")));
        }
        let (spec, socket) = (dir.spec(), dir.socket());
        let mut args =
            vec![OsStr::new("--spec"), spec.as_os_str(), OsStr::new("--socket"), socket.as_os_str()];
        if incoming {
            args.push(OsStr::new("--incoming"));
        }
        let running = process::spawn(lock, dir, &self.vmm_binary, &args)?;
        let process = running.process;
        self.watch(held, running)?;
        held.update(|i| i.process = Some(process)).await?;
        self.wait_for_socket(machine).await
    }

    async fn wait_for_socket(&self, machine: &Machine) -> Result<()> {
        let monitor = machine.monitor();
        let answers = async {
            loop {
                if let Some(exit) = machine.live().and_then(|live| live.ended()) {
                    return Err(HostError::internal(format!(
                        "the monitor of machine {} ended at its start ({exit:?}): {}",
                        machine.id(),
                        machine.log_tail().trim()
                    )));
                }
                if let Ok(status) = monitor.status().await {
                    machine.set_status(Some(status));
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOCKET_PATIENCE, answers).await.unwrap_or_else(|_| {
            Err(HostError::internal(format!(
                "the monitor of machine {} did not open its control socket within {SOCKET_PATIENCE:?}: {}",
                machine.id(),
                machine.log_tail().trim()
            )))
        })
    }

    /// Undoes a start that failed: monitor, port, the files it made; the record is as before. Answers what stayed.
    pub(crate) async fn take_back(&self, held: &Held, before: Option<Instance>, made: Made) -> Vec<String> {
        let mut left = Vec::new();
        let machine = held.machine();
        left.extend(self.end_monitor(held).await.err().map(|e| e.message));
        if let Some(instance) = machine.instance() {
            let gone = self.netd.call(network::remove(machine.id(), instance.epoch)).await;
            left.extend(gone.err().map(|e| e.message));
        }
        let mut paths = made.0;
        match before {
            Some(before) => left.extend(held.put(before).await.err().map(|e| e.message)),
            None => {
                paths.push(machine.dir().path().to_path_buf());
                held.vacate();
            }
        }
        left.extend(self.remove_files(paths).await);
        left
    }

    /// Ends a machine's monitor, if it has one: by its word, then by the kernel's.
    pub(crate) async fn end_monitor(&self, held: &Held) -> Result<()> {
        let machine = held.machine();
        let Some(live) = machine.live() else { return Ok(()) };
        if live.ended().is_none() {
            // It flushes its disks; one that does not answer is killed below.
            let _ = machine.monitor().tell(&Request::Kill).await;
        }
        if tokio::time::timeout(KILL_PATIENCE, live.gone()).await.is_err() {
            live.killer.kill()?;
            if tokio::time::timeout(KILL_PATIENCE, live.gone()).await.is_err() {
                return Err(HostError::internal(format!(
                    "process {} of machine {} does not end though killed: it waits for a disk?",
                    live.process.pid,
                    machine.id()
                )));
            }
        }
        held.set_live(None);
        Ok(())
    }

    /// Asks a machine to shut down; the answer comes at once, its end is noticed later.
    pub async fn stop(self: &Arc<Self>, id: &MachineId, stop: StopMachine) -> Result<LocalMachine> {
        let held = Held::new(self, id).await;
        let here = held.instance()?;
        decide::same_epoch(&here, stop.epoch)?;
        match here.phase {
            LocalState::Stopped | LocalState::Crashed => return local(&held),
            LocalState::Incoming | LocalState::HandedOver => {
                return Err(HostError::conflict(format!(
                    "machine {id} takes part in a move: it does not run here"
                )));
            }
            LocalState::Starting | LocalState::Ready | LocalState::Stopping => {}
        }
        if let Some(going) = self.look_at_move(held.machine()).await?.filter(super::moves::Move::open) {
            return Err(HostError::conflict(format!(
                "machine {id} is being moved to {} (migration {}): cancel that first",
                going.peer, going.id
            )));
        }
        let Some(live) = held.machine().live() else {
            // Between a reset and the next start.
            held.phase(LocalState::Stopped, None).await?;
            return local(&held);
        };
        let again = here.phase == LocalState::Stopping;
        held.phase(LocalState::Stopping, here.reason).await?;
        if !again || stop.timeout_ms == 0 {
            let machine = Arc::clone(held.machine());
            tokio::spawn(shut_down(machine, live, Duration::from_millis(stop.timeout_ms)));
        }
        local(&held)
    }

    /// Removes an instance: monitor, port, directory with the root disk. Volumes stay. The epoch is fenced.
    pub async fn remove(self: &Arc<Self>, id: &MachineId, epoch: Epoch) -> Result<()> {
        let held = Held::new(self, id).await;
        let Some(here) = held.machine().instance() else {
            return instance::raise_fence(&self.layout, id, epoch);
        };
        if here.epoch > epoch || here.phase == LocalState::Incoming {
            return Err(HostError::conflict(format!(
                "machine {id} is here in epoch {} ({:?}); the removal means epoch {epoch}",
                here.epoch, here.phase
            )));
        }
        // The fence first: a crash from here on leaves a machine that cannot start, never one that starts without its disk.
        instance::raise_fence(&self.layout, id, epoch)?;
        let mut left = Vec::new();
        left.extend(self.end_monitor(&held).await.err().map(|e| e.message));
        // A move that was under way has ended with it.
        left.extend(self.look_at_move(held.machine()).await.err().map(|e| e.message));
        left.extend(self.netd.call(network::remove(id, here.epoch)).await.err().map(|e| e.message));
        if left.is_empty() {
            left.extend(self.remove_files(vec![held.machine().dir().path().to_path_buf()]).await);
        }
        if left.is_empty() {
            held.vacate();
            return Ok(());
        }
        Err(HostError::internal(format!("machine {id} is not wholly removed, repeat: {}", left.join("; "))))
    }

    /// Deals with a monitor's end.
    pub(crate) async fn after_end(self: &Arc<Self>, held: &Held, exit: Exit) -> Result<()> {
        let machine = held.machine();
        let here = held.instance()?;
        self.look_at_move(machine).await?;
        let after = decide::after_exit(here.phase, exit, machine.durable(), &machine.log_tail());
        tracing::info!(machine = %machine.id(), epoch = %here.epoch, ?exit, "the monitor ended");
        held.set_live(None);
        machine.write_console();
        match after {
            AfterExit::Stopped(reason) => self.went_down(held, LocalState::Stopped, reason).await,
            AfterExit::Crashed(reason) => {
                tracing::warn!(machine = %machine.id(), "crashed: {reason}");
                self.went_down(held, LocalState::Crashed, Some(reason)).await
            }
            AfterExit::Reboot => {
                held.update(|i| {
                    i.phase = LocalState::Starting;
                    i.process = None;
                })
                .await?;
                tokio::spawn(start_again(Arc::clone(self), Arc::clone(machine), here.epoch));
                Ok(())
            }
            AfterExit::HandedOver => {
                held.update(|i| {
                    i.phase = LocalState::HandedOver;
                    i.process = None;
                })
                .await?;
                self.repair_source(&here).await
            }
            AfterExit::Discard(reason) => self.discard(held, &reason).await,
        }
    }

    async fn went_down(&self, held: &Held, phase: LocalState, reason: Option<String>) -> Result<()> {
        let next = held
            .update(|i| {
                i.phase = phase;
                i.reason = reason;
                i.process = None;
            })
            .await?;
        // The tap goes; the port is prepared anew at the next start. A failure is repaired by that.
        if let Err(e) = self.netd.call(network::remove(next.id(), next.epoch)).await {
            tracing::warn!(machine = %next.id(), "its port stays for now: {e}");
        }
        Ok(())
    }
}

/// How the machine in a slot stands.
pub(crate) fn local(held: &Held) -> Result<LocalMachine> {
    held.machine().local().ok_or_else(|| HostError::internal(format!("machine {} left", held.machine().id())))
}

/// The guest's agent, else the power button; when the time is over, the end.
async fn shut_down(machine: Arc<Machine>, live: Live, patience: Duration) {
    if !patience.is_zero() {
        if let Err(e) = machine.agent().shut_down().await {
            tracing::info!(machine = %machine.id(), "no agent to ask, the power button is pressed: {e}");
            let _ = machine.monitor().tell(&Request::PowerButton).await;
        }
        if tokio::time::timeout(patience, live.gone()).await.is_ok() {
            return;
        }
        tracing::warn!(machine = %machine.id(), "it did not shut down within {patience:?} and is ended");
    }
    machine.remember_console().await;
    let _ = machine.monitor().tell(&Request::Kill).await;
    if tokio::time::timeout(KILL_PATIENCE, live.gone()).await.is_err()
        && let Err(e) = live.killer.kill()
    {
        tracing::error!(machine = %machine.id(), "{e}");
    }
}

/// Honours a guest's reset: the same epoch, the same disks, a new monitor. One that resets over and over waits longer each time.
async fn start_again(host: Arc<Host>, machine: Arc<Machine>, epoch: Epoch) {
    let resets = u32::try_from(machine.note_reset(RESET_WINDOW)).unwrap_or(u32::MAX);
    let pause = Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(resets.saturating_sub(1)));
    if resets > 1 {
        tokio::time::sleep(pause.min(MAX_RESET_PAUSE)).await;
    }
    let held = Held::new(&host, machine.id()).await;
    let Some(here) = held.machine().instance() else { return };
    if here.epoch != epoch || here.phase != LocalState::Starting || held.machine().live().is_some() {
        return;
    }
    if let Err(e) = host.start_monitor(&held, false).await {
        let reason = Some(format!("the guest rebooted, and could not be started again: {e}"));
        let ended = host.end_monitor(&held).await;
        let noted = host.went_down(&held, LocalState::Crashed, reason).await;
        for e in [ended, noted].into_iter().filter_map(Result::err) {
            tracing::error!(machine = %machine.id(), "{e}");
        }
    }
}
