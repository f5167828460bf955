//! Looks at every machine whenever something changed, and does what [`decide`](super::decide::decide) says: one action a machine at a
//! time, machines side by side.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::host_api::{LocalMachine, RunMachine, StopMachine};
use mashines_fleet::id::{Epoch, HostId, MachineId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Desired, Machine, MachineState, Place, Volume};
use mashines_fleet::rpc::{Empty, RpcError};
use tokio::sync::Semaphore;

use super::decide::{Action, Noted, decide};
use super::{event, restart_or_stop, sweep};
use crate::control::Control;
use crate::failure::Result;
use crate::hosts::Seen;
use crate::migration;
use crate::records::Private;
use crate::time::now;
use crate::zone_keys;

/// Actions that run at the same time.
const PARALLEL: usize = 64;
/// A look at everything even when nothing was heard.
const TICK: Duration = Duration::from_secs(1);
/// After an action that failed, the machine is left alone for this long.
const PAUSE: Duration = Duration::from_secs(1);
/// Time for a guest to shut down when nobody says otherwise, milliseconds.
const STOP_TIMEOUT_MS: u64 = 30_000;
/// A boot: the host makes disks and starts the monitor before it answers.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// The driver of all machines.
pub struct Driver {
    control: Control,
    busy: Arc<Mutex<HashSet<MachineId>>>,
    slots: Arc<Semaphore>,
}

impl Driver {
    /// Of this control.
    pub fn new(control: Control) -> Self {
        Self { control, busy: Arc::default(), slots: Arc::new(Semaphore::new(PARALLEL)) }
    }

    /// Goes on until it is dropped.
    pub async fn run(self) {
        let mut view = self.control.records.watch();
        let mut swept = tokio::time::Instant::now();
        zone_keys::tick(&self.control).await;
        loop {
            self.look();
            migration::resume(&self.control);
            if swept.elapsed() >= TICK {
                swept = tokio::time::Instant::now();
                sweep::sweep(&self.control).await;
                zone_keys::tick(&self.control).await;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.control.hosts.changed() => {}
                () = self.control.nudge.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn look(&self) {
        let view = self.control.view();
        for machine in view.machines.values() {
            let seen = match &machine.place {
                Some(place) => self.control.hosts.seen(&place.host, &machine.id),
                None => Seen::Absent,
            };
            let action = decide(machine, &seen, view.migration_of(&machine.id).is_some(), now());
            if action != Action::Wait {
                self.start(Arc::clone(machine), action);
            }
        }
    }

    fn start(&self, machine: Arc<Machine>, action: Action) {
        let new = self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.id.clone());
        if !new {
            return;
        }
        let (control, busy, slots) = (self.control.clone(), Arc::clone(&self.busy), Arc::clone(&self.slots));
        tokio::spawn(async move {
            let _slot = slots.acquire().await;
            let outcome = perform(&control, &machine, &action).await;
            if let Err(failure) = outcome.or_else(|f| if f.is_race() { Ok(()) } else { Err(f) }) {
                tracing::warn!(machine = %machine.id, ?action, %failure, "a step failed; it is tried again");
                tokio::time::sleep(PAUSE).await;
            }
            busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine.id);
            control.nudge.notify_one();
        });
    }
}

async fn perform(control: &Control, machine: &Machine, action: &Action) -> Result<()> {
    match action {
        Action::Wait => Ok(()),
        Action::Run(place) => run(control, machine, place).await,
        Action::Stop(host, epoch) => stop(control, machine, host, *epoch).await,
        Action::Ask(place) => ask(control, machine, place).await,
        Action::Remove(place) => remove(control, machine, place).await,
        Action::Forget => forget(control, machine).await,
        Action::Note(noted) => note(control, machine, noted).await,
        Action::Ended { reason, crashed } => ended(control, machine, reason, *crashed).await,
    }
}

/// Changes the record if it is still as it was when the action was decided: same place, same wish.
async fn change(control: &Control, seen: &Machine, mut with: impl FnMut(&mut Machine)) -> Result<()> {
    let key = Key::Machine(seen.id.clone());
    let changed = control.records.update(&key, |machine: &mut Machine| {
        if machine.place != seen.place || machine.desired != seen.desired {
            return Ok(false);
        }
        with(machine);
        Ok(true)
    });
    changed.await.map(drop)
}

async fn run(control: &Control, machine: &Machine, place: &Place) -> Result<()> {
    let body = RunMachine { machine: control.spec(machine).await?, epoch: place.epoch };
    let client = control.hosts.client(&*control.host(&place.host)?)?.with_timeout(RUN_TIMEOUT);
    let answer: Result<LocalMachine, RpcError> =
        client.put(&format!("/v1/machines/{}", machine.id), &body).await;
    match answer {
        Ok(local) => {
            control.hosts.learn(&place.host, local);
            placed_volumes(control, machine, &place.host).await
        }
        // Nobody knows whether it was heard: the next look asks again, in the same epoch.
        Err(error) if error.is_unanswered() => Err(error.into()),
        // The epoch ended there, or a later instance is there: only a later epoch can run.
        Err(error) if error.status() == Some(http::StatusCode::CONFLICT) => {
            ended(
                control,
                machine,
                &format!("host {} refused to start it: {}", place.host, error.message()),
                true,
            )
            .await
        }
        Err(error) => refused(control, machine, place, &error).await,
    }
}

/// The volumes' bytes are there now.
async fn placed_volumes(control: &Control, machine: &Machine, host: &HostId) -> Result<()> {
    for mount in &machine.config.mounts {
        let placed = control.view().volumes.get(&mount.volume).is_some_and(|v| v.host.as_ref() == Some(host));
        if placed {
            continue;
        }
        let key = Key::Volume(mount.volume.clone());
        let update = control.records.update(&key, |volume: &mut Volume| {
            let change = volume.host.is_none();
            if change {
                volume.host = Some(host.clone());
            }
            Ok(change)
        });
        update.await?;
    }
    Ok(())
}

/// The host cannot start it. What a first start left is removed; a machine that ran before keeps its disk.
async fn refused(control: &Control, machine: &Machine, place: &Place, error: &RpcError) -> Result<()> {
    let reason = format!("host {} could not start it: {}", place.host, error.message());
    if place.epoch == Epoch(1) {
        remove_there(control, machine, place).await?;
    }
    let change = change(control, machine, |machine| {
        machine.state = MachineState::Failed;
        machine.desired = Desired::Stopped;
        machine.reason = Some(reason.clone());
        event(machine, "start", "failed", "host", reason.clone(), now());
    });
    change.await
}

async fn stop(control: &Control, machine: &Machine, host: &HostId, epoch: Epoch) -> Result<()> {
    let timeout: Option<u64> = control.records.private(Private::Stop(&machine.id)).await?;
    let timeout_ms = timeout.unwrap_or(STOP_TIMEOUT_MS);
    if machine.desired == Desired::Stopped {
        note(control, machine, &Noted { state: MachineState::Stopping, reason: machine.reason.clone() })
            .await?;
    }
    let client = control.hosts.client(&*control.host(host)?)?;
    // The host may answer at once or when it is done.
    let client = client.with_timeout(Duration::from_millis(timeout_ms.saturating_add(15_000)));
    let body = StopMachine { epoch, timeout_ms };
    let local: LocalMachine = client.post(&format!("/v1/machines/{}/stop", machine.id), &body).await?;
    control.hosts.learn(host, local);
    Ok(())
}

/// A host that lost a running machine: only its answer to a question asked now counts.
async fn ask(control: &Control, machine: &Machine, place: &Place) -> Result<()> {
    let host = control.host(&place.host)?;
    let state = control.hosts.ask(&host).await?;
    if state.machines.iter().any(|local| local.id == machine.id) {
        return Ok(());
    }
    ended(control, machine, &format!("host {} no longer has it: it was lost there", place.host), true).await
}

async fn remove_there(control: &Control, machine: &Machine, place: &Place) -> Result<()> {
    let client = control.hosts.client(&*control.host(&place.host)?)?;
    let path = format!("/v1/machines/{}?epoch={}", machine.id, place.epoch);
    match client.delete::<Empty>(&path).await {
        Ok(Empty {}) => {}
        Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => {}
        Err(error) => return Err(error.into()),
    }
    control.hosts.forget(&place.host, &machine.id, place.epoch);
    Ok(())
}

async fn remove(control: &Control, machine: &Machine, place: &Place) -> Result<()> {
    note(control, machine, &Noted { state: MachineState::Destroying, reason: None }).await?;
    remove_there(control, machine, place).await?;
    forget(control, machine).await
}

/// Gone: its name, port and addresses are free again, its volumes stay without it. The record stays for a while.
pub async fn forget(control: &Control, machine: &Machine) -> Result<()> {
    crate::records::retrying(|| async {
        let mut edit = control.records.edit();
        let mut gone: Machine = edit.require(&Key::Machine(machine.id.clone())).await?;
        if gone.desired != Desired::Destroyed || gone.state == MachineState::Destroyed {
            return Ok(());
        }
        for mount in &gone.config.mounts {
            let volume: Option<Volume> = edit.get(&Key::Volume(mount.volume.clone())).await?;
            if let Some(mut volume) = volume.filter(|v| v.attached_machine.as_ref() == Some(&gone.id)) {
                volume.attached_machine = None;
                edit.put(&volume)?;
            }
        }
        edit.delete_private(Private::Slug(gone.slug.as_str()));
        edit.delete_private(Private::Address(gone.net.ipv6))
            .delete_private(Private::Address(gone.net.private6));
        if let Some(port) = &gone.net.ssh_port {
            edit.delete_private(Private::Port(&port.entry, port.port));
        }
        if let Some(address) = gone.net.entry_ipv4 {
            edit.delete_private(Private::EntryAddress(&gone.account, address));
        }
        edit.delete_private(Private::Lease(&gone.id))
            .delete_private(Private::Stop(&gone.id))
            .delete_private(Private::HostKey(&gone.id));
        gone.state = MachineState::Destroyed;
        gone.reason = None;
        event(&mut gone, "destroy", "completed", "control", String::new(), now());
        edit.put(&gone)?;
        edit.commit().await
    })
    .await
}

async fn note(control: &Control, machine: &Machine, noted: &Noted) -> Result<()> {
    let change = change(control, machine, |machine| {
        let now = now();
        if machine.state != noted.state {
            let kind = match noted.state {
                MachineState::Started | MachineState::Starting | MachineState::Created => "start",
                MachineState::Stopping | MachineState::Stopped => "stop",
                MachineState::Destroying | MachineState::Destroyed => "destroy",
                MachineState::Failed => "exit",
            };
            event(machine, kind, noted.state.word(), "host", noted.reason.clone().unwrap_or_default(), now);
        }
        machine.state = noted.state;
        machine.reason.clone_from(&noted.reason);
        machine.updated_at = now;
        if machine.state == MachineState::Stopped && machine.config.auto_destroy {
            machine.desired = Desired::Destroyed;
        }
    });
    change.await
}

async fn ended(control: &Control, machine: &Machine, reason: &str, crashed: bool) -> Result<()> {
    change(control, machine, |machine| restart_or_stop(machine, reason.to_owned(), crashed, now())).await
}
