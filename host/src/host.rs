//! This host: its slots, its moves, its room, and how it comes back after a restart of the daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mashines_fleet::host_api::{HostState, LocalState};
use mashines_fleet::id::{MachineId, MigrationId, VolumeId};
use mashines_fleet::record::Capacity;
use tokio::sync::watch;

use crate::config::{Config, Node};
use crate::decide::{self, Room};
use crate::error::{Context, HostError, Result};
use crate::image::Images;
use crate::instance::{self, Instance};
use crate::layout::Layout;
use crate::machine::{Held, Machine};
use crate::moves::Move;
use crate::network::Netd;
use crate::{capacity, files, moves, process, spec, volumes};

/// This host.
#[derive(Debug)]
pub struct Host {
    /// What every role knows of this box.
    pub node: Node,
    /// What the operator decided.
    pub config: Config,
    /// Where everything lies.
    pub layout: Layout,
    /// The images.
    pub images: Images,
    /// The network.
    pub netd: Netd,
    /// The monitor's binary.
    pub vmm_binary: PathBuf,
    /// What it offers.
    pub capacity: Capacity,
    slots: Mutex<BTreeMap<MachineId, Arc<Machine>>>,
    moves: Mutex<BTreeMap<MigrationId, Move>>,
    /// Held from the question whether something fits until it counts as promised.
    pub admission: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Host {
    /// Makes the directories and loads what is on disk; nothing is adopted yet.
    pub fn open(node: Node, config: Config) -> Result<Arc<Self>> {
        let layout = Layout::new(&node.state_dir);
        for dir in [layout.machines(), layout.volumes(), layout.migrations(), layout.fences()] {
            std::fs::create_dir_all(&dir).doing(|| format!("make the directory {}", dir.display()))?;
        }
        let vmm_binary = match &config.vmm_binary {
            Some(path) => path.clone(),
            None => beside_this_binary("mashines-vmm")?,
        };
        let (found, damaged) = moves::load_all(&layout)?;
        for e in damaged {
            tracing::error!("a record of a move is passed over: {e}");
        }
        Ok(Arc::new(Self {
            images: Images::new(&config.images_dir),
            netd: Netd::new(&node.netd_socket),
            capacity: capacity::measure(&config.capacity, layout.state())?,
            vmm_binary,
            layout,
            config,
            node,
            slots: Mutex::default(),
            moves: Mutex::new(found.into_iter().map(|m| (m.id.clone(), m)).collect()),
            admission: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Takes every machine on disk up again: those whose monitors live are watched as before, the others' end is dealt with.
    /// Nothing is started.
    pub async fn adopt(self: &Arc<Self>) -> Result<()> {
        let (found, damaged) = instance::load_all(&self.layout)?;
        for e in damaged {
            tracing::error!("a machine is passed over, look at it by hand: {e}");
        }
        for instance in found {
            let id = instance.id().clone();
            if let Err(e) = self.adopt_one(instance).await {
                tracing::error!(machine = %id, "the machine could not be taken up again: {e}");
            }
        }
        Ok(())
    }

    async fn adopt_one(self: &Arc<Self>, instance: Instance) -> Result<()> {
        let held = Held::new(self, instance.id()).await;
        let running = process::adopt(held.machine().dir(), instance.process)?;
        let phase = instance.phase;
        held.put(Instance { process: running.as_ref().map(|r| r.process), ..instance }).await?;
        match running {
            Some(running) => {
                tracing::info!(machine = %held.machine().id(), pid = running.process.pid, "the monitor lives on");
                self.watch(&held, running)
            }
            None => match phase {
                LocalState::Stopped | LocalState::Crashed => Ok(()),
                LocalState::Starting
                | LocalState::Ready
                | LocalState::Stopping
                | LocalState::Incoming
                | LocalState::HandedOver => self.after_end(&held, process::Exit::Unseen).await,
            },
        }
    }

    /// Tells whoever reports that something is different.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Wakes at each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All that control wants to know.
    pub fn state(&self) -> HostState {
        HostState {
            host: self.node.id.clone(),
            capacity: self.capacity,
            images: self.images.list().into_iter().map(|i| i.image).collect(),
            machines: self.machines().iter().filter_map(|m| m.local()).collect(),
            migrations: self.moves().values().map(Move::local).collect(),
            volumes: volumes::list(&self.layout),
        }
    }

    /// The slots, vacant ones too.
    pub fn machines(&self) -> Vec<Arc<Machine>> {
        self.slots().values().cloned().collect()
    }

    /// A machine's slot without its lock, to read from.
    pub fn machine(&self, id: &MachineId) -> Result<Arc<Machine>> {
        let found = self.slots().get(id).filter(|m| m.instance().is_some()).cloned();
        found.ok_or_else(|| HostError::not_found(format!("machine {id} is not on this host")))
    }

    /// The slot of a machine, made when there is none. For [`Held::new`].
    pub(crate) fn slot(&self, id: &MachineId) -> Arc<Machine> {
        let vacant = || Arc::new(Machine::vacant(id.clone(), self.layout.machine(id)));
        Arc::clone(self.slots().entry(id.clone()).or_insert_with(vacant))
    }

    /// Whether this is still the machine's slot. For [`Held::new`].
    pub(crate) fn is_slot(&self, machine: &Arc<Machine>) -> bool {
        self.slots().get(machine.id()).is_some_and(|m| Arc::ptr_eq(m, machine))
    }

    /// Takes a vacant slot out of the map. For [`Held`].
    pub(crate) fn forget_slot(&self, machine: &Arc<Machine>) {
        self.slots().remove(machine.id());
    }

    /// The moves that are not forgotten.
    pub fn moves(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Move>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<MachineId, Arc<Machine>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instances on this host but for one machine's.
    pub fn others(&self, than: &MachineId) -> Vec<Instance> {
        self.machines().iter().filter(|m| m.id() != than).filter_map(|m| m.instance()).collect()
    }

    /// Whether a machine fits beside the others. Call with `admission` held.
    pub fn check_room(&self, machine: &MachineId, asked: Room) -> Result<()> {
        capacity::check_free(&self.config.capacity, self.layout.state())?;
        let capacity = Room {
            vcpus: self.capacity.vcpus,
            memory_mib: self.capacity.memory_mib,
            disk_mib: self.capacity.disk_mib,
        };
        let promised = self.others(machine).iter().fold(Room::default(), |sum, other| self.add(sum, other));
        decide::fits(capacity, promised, asked)
    }

    fn add(&self, sum: Room, other: &Instance) -> Room {
        let bytes = self.images.find(&other.spec.image, &other.spec.image_digest);
        let takes = spec::room(&other.spec, bytes.map_or(0, |i| i.image.rootfs_bytes));
        let runs = match other.phase {
            LocalState::Starting | LocalState::Ready | LocalState::Stopping | LocalState::Incoming => true,
            LocalState::Stopped | LocalState::Crashed | LocalState::HandedOver => false,
        };
        Room {
            vcpus: sum.vcpus.saturating_add(if runs { takes.vcpus } else { 0 }),
            memory_mib: sum.memory_mib.saturating_add(if runs { takes.memory_mib } else { 0 }),
            disk_mib: sum.disk_mib.saturating_add(takes.disk_mib),
        }
    }

    /// Refuses when another machine on this host has one of the volumes.
    pub fn check_volumes_free<'a>(
        &self,
        machine: &MachineId,
        volumes: impl Iterator<Item = &'a VolumeId>,
    ) -> Result<()> {
        let others = self.others(machine);
        for volume in volumes {
            let user = others.iter().find(|o| o.spec.volumes.iter().any(|v| v.id == *volume));
            if let Some(user) = user {
                return Err(HostError::conflict(format!(
                    "volume {volume} is attached to machine {}",
                    user.id()
                )));
            }
        }
        Ok(())
    }

    /// Removes what is given and all that can be removed of it; answers what stayed.
    pub async fn remove_files(&self, paths: Vec<PathBuf>) -> Vec<String> {
        let removal = move || {
            let mut left = Vec::new();
            for path in &paths {
                files::remove(path, &mut left);
            }
            left
        };
        match tokio::task::spawn_blocking(removal).await {
            Ok(left) => left,
            Err(e) => vec![format!("the removal itself failed: {e}")],
        }
    }
}

fn beside_this_binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().doing(|| "find this binary".to_owned())?;
    Ok(this.with_file_name(name))
}
