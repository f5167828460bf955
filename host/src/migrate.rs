//! The two sides of a move on this host. Control's saga calls; the monitors move the machine.
//!
//! ```text
//!   incoming   staging: overlay, volumes, port (suppressed), monitor --incoming        ─▶ its address
//!   outgoing   the monitor is told to send                                             ─▶ Active
//!   …          destination's hooks: prepared → netd activate, running → netd announce, abandoned → netd suppress
//!              source's hook: handed over → netd redirect
//!   finish     source: monitor, disks, port go; the redirect stays with netd
//! ```
//!
//! What is staged belongs to the move until the machine runs here: a destination that fails takes all of it away again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::host_api::{
    Incoming, IncomingReady, LocalMigration, LocalMigrationState, LocalState, Outgoing, Side,
};
use mashines_fleet::id::{HostId, MigrationId};
use mashines_vmm::api::{Hooks, MigrateIn, MigrateOut, MigrationStatus, Reply, Request, Tls};

use crate::decide;
use crate::error::{HostError, Result};
use crate::host::Host;
use crate::image::LocalImage;
use crate::instance::{self, Instance};
use crate::lifecycle::Made;
use crate::machine::{Held, Machine};
use crate::moves::{Move, known_to};
use crate::{network, spec};

/// How long a destination waits for its source.
const INCOMING_PATIENCE: Duration = Duration::from_secs(60);

/// How long a source may still deliver late frames when it is to be ended.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a verdict may take to show.
const VERDICT_PATIENCE: Duration = Duration::from_secs(3);

impl Host {
    /// Makes everything ready for a machine to arrive.
    pub async fn incoming(self: &Arc<Self>, id: &MigrationId, incoming: Incoming) -> Result<IncomingReady> {
        spec::check(&incoming.machine)?;
        let held = Held::new(self, &incoming.machine.id).await;
        if let Ok(known) = self.find_move(id) {
            return answer_known(&known, &incoming);
        }
        let here = held.machine().instance();
        decide::arrive(instance::fence(&self.layout, held.machine().id())?, here.as_ref(), incoming.epoch)?;
        let image = self.images.find(&incoming.machine.image, &incoming.machine.image_digest)?;
        self.check_volumes_absent(&incoming)?;
        let next = Instance {
            spec: incoming.machine,
            epoch: incoming.epoch,
            phase: LocalState::Incoming,
            reason: None,
            process: None,
            migration: Some(id.clone()),
        };
        self.admit(&held, &next, &image).await?;
        let mut made = Made::default();
        match self.stage(&held, id, &image, &incoming.source, &mut made).await {
            Ok(address) => Ok(IncomingReady { address }),
            Err(e) => {
                let mut left = self.take_back(&held, None, made).await;
                left.extend(self.forget_move(id).await.err().map(|e| e.message));
                Err(e.and_left_behind(&left))
            }
        }
    }

    /// A file that is here already holds bytes that someone may want: nothing that arrives overwrites it.
    fn check_volumes_absent(&self, incoming: &Incoming) -> Result<()> {
        let volumes = &incoming.machine.volumes;
        self.check_volumes_free(&incoming.machine.id, volumes.iter().map(|v| &v.id))?;
        match volumes.iter().find(|v| self.layout.volume(&v.id).exists()) {
            None => Ok(()),
            Some(volume) => Err(HostError::conflict(format!(
                "volume {} has a file on this host already, though it is to arrive from {}: remove that first if it is stale",
                volume.id, incoming.source
            ))),
        }
    }

    async fn stage(
        self: &Arc<Self>,
        held: &Held,
        id: &MigrationId,
        image: &LocalImage,
        source: &HostId,
        made: &mut Made,
    ) -> Result<SocketAddr> {
        let here = held.instance()?;
        let volumes: Vec<PathBuf> = here.spec.volumes.iter().map(|v| self.layout.volume(&v.id)).collect();
        let begun = Move::begun(id.clone(), here.id().clone(), Side::Destination, here.epoch, source.clone());
        // The volumes are on record before they are made: whoever takes up after a crash removes them.
        let mut record = Move { made: volumes, ..begun };
        self.put_move(record.clone()).await?;
        self.write_files(&here, image, self.hooks(&here)?, made).await?;
        self.netd.call(netd::api::Request::Prepare(network::port(&here.spec, here.epoch)?)).await?;
        self.start_monitor(held, true).await?;
        let request = Request::MigrateIn(MigrateIn {
            migration_id: id.to_string(),
            listen: SocketAddr::new(self.node.underlay, 0),
            tls: self.tls(source),
            timeout_ms: millis(INCOMING_PATIENCE),
        });
        let monitor = held.machine().monitor();
        let address = match monitor.call(&request).await? {
            Reply::Listening { address } => address,
            other => return Err(monitor.unexpected(&request, &other)),
        };
        record.address = Some(address);
        self.put_move(record).await?;
        Ok(address)
    }

    /// What a destination's monitor tells netd on its own.
    fn hooks(&self, here: &Instance) -> Result<Hooks> {
        let (id, epoch) = (here.id(), here.epoch);
        Ok(Hooks {
            prepared: Some(self.netd.hook(&network::activate(id, epoch))?),
            abandoned: Some(self.netd.hook(&network::suppress(id, epoch))?),
            running: Some(self.netd.hook(&network::announce(id, epoch))?),
        })
    }

    fn tls(&self, peer: &HostId) -> Tls {
        let dir = &self.node.identity_dir;
        Tls {
            certificate: dir.join("host.pem"),
            private_key: dir.join("host.key"),
            ca: dir.join("ca.pem"),
            peer_name: format!("{peer}.host.mashines.internal"),
        }
    }

    /// Starts to send a machine away.
    pub async fn outgoing(self: &Arc<Self>, id: &MigrationId, order: Outgoing) -> Result<LocalMigration> {
        let held = Held::new(self, &order.machine).await;
        let known = self.find_move(id).ok();
        if known.as_ref().is_some_and(|m| m.side != Side::Source || m.machine != order.machine) {
            return Err(HostError::conflict(format!("migration {id} is another one on this host")));
        }
        let here = held.instance()?;
        decide::same_epoch(&here, order.epoch)?;
        let looked = self.look_at_move(held.machine()).await?;
        if let Some(known) = looked.clone().filter(|m| m.id == *id) {
            let told = held.machine().status().is_some_and(|s| known_to(&s, id).is_some());
            if told || !known.open() {
                return Ok(known.local());
            }
        } else if let Some(known) = known {
            return Ok(known.local());
        }
        self.check_can_leave(&here, id, looked.as_ref())?;
        self.send(&held, id, &order).await
    }

    fn check_can_leave(&self, here: &Instance, id: &MigrationId, going: Option<&Move>) -> Result<()> {
        if let Some(other) = going.filter(|m| m.open() && m.id != *id) {
            return Err(HostError::conflict(format!(
                "machine {} is being moved to {} already (migration {})",
                here.id(),
                other.peer,
                other.id
            )));
        }
        match here.phase {
            LocalState::Ready | LocalState::Starting => Ok(()),
            other @ (LocalState::Stopping
            | LocalState::Stopped
            | LocalState::Crashed
            | LocalState::Incoming
            | LocalState::HandedOver) => Err(HostError::conflict(format!(
                "machine {} does not run here ({other:?}): only a running machine is moved",
                here.id()
            ))),
        }
    }

    async fn send(&self, held: &Held, id: &MigrationId, order: &Outgoing) -> Result<LocalMigration> {
        let next = order.epoch.next();
        let (machine, peer) = (order.machine.clone(), order.destination.clone());
        let begun = Move::begun(id.clone(), machine, Side::Source, order.epoch, peer);
        let record = Move { address: Some(order.address), ..begun };
        self.put_move(record.clone()).await?;
        let before = held.instance()?.migration;
        held.update(|i| i.migration = Some(id.clone())).await?;
        let request = Request::MigrateOut(MigrateOut {
            migration_id: id.to_string(),
            address: order.address,
            next_epoch: next.0,
            tls: self.tls(&order.destination),
            budget_ms: order.budget_ms,
            timeout_ms: order.timeout_ms,
            throttle: true,
            streams: self.config.migration_streams,
            handed_over: Some(self.netd.hook(&network::redirect(
                &order.machine,
                next,
                &order.destination,
            ))?),
        });
        let monitor = held.machine().monitor();
        let Err(e) = monitor.tell(&request).await else { return Ok(record.local()) };
        // Refused, or an answer that was lost: the monitor knows which.
        let status = monitor.status().await?;
        if known_to(&status, id).is_some() {
            return Ok(record.local());
        }
        held.update(|i| i.migration = before).await?;
        self.forget_move(id).await?;
        Err(e)
    }

    /// How a move stands on this side.
    pub async fn migration(self: &Arc<Self>, id: &MigrationId) -> Result<LocalMigration> {
        let known = self.find_move(id)?;
        let machine = Held::new(self, &known.machine).await;
        self.fresh(&machine, known).await
    }

    /// The record after a new look at the monitor.
    async fn fresh(&self, held: &Held, known: Move) -> Result<LocalMigration> {
        let mine = held.machine().instance().and_then(|i| i.migration);
        if mine.as_ref() != Some(&known.id) {
            if !known.open() {
                return Ok(known.local());
            }
            let error = Some("the machine is no longer on this host".to_owned());
            let failed = Move { state: LocalMigrationState::Failed, error, settled: true, ..known };
            self.put_move(failed.clone()).await?;
            return Ok(failed.local());
        }
        if let Ok(status) = held.machine().monitor().status().await {
            held.machine().set_status(Some(status));
        }
        let looked = self.look_at_move(held.machine()).await?.unwrap_or(known);
        self.follow_move(held, &looked).await?;
        Ok(looked.local())
    }

    /// The machine's phase never lags behind its move's state: control reads both.
    pub(crate) async fn follow_move(&self, held: &Held, looked: &Move) -> Result<()> {
        let here = held.instance()?;
        let next = match (looked.state, here.phase) {
            (LocalMigrationState::Running, LocalState::Incoming) => LocalState::Ready,
            (LocalMigrationState::HandedOver, LocalState::Starting | LocalState::Ready) => {
                LocalState::HandedOver
            }
            _ => return Ok(()),
        };
        held.phase(next, None).await.map(drop)
    }

    /// Gives a move up: a source runs on, a destination goes unless it runs. Control cancels the source first: after that no
    /// hand-over can come that this destination would miss.
    pub async fn cancel(self: &Arc<Self>, id: &MigrationId) -> Result<LocalMigration> {
        let known = self.find_move(id)?;
        let held = Held::new(self, &known.machine).await;
        let now = self.fresh(&held, known).await?;
        match (now.side, now.state) {
            (Side::Source, LocalMigrationState::Active) => {
                held.machine().monitor().tell(&Request::MigrateCancel).await?;
                self.await_verdict(&held, id).await
            }
            (Side::Destination, LocalMigrationState::Active | LocalMigrationState::Prepared) => {
                self.discard_if_idle(&held, id, "the move was cancelled").await
            }
            (Side::Source, LocalMigrationState::Prepared)
            | (
                Side::Source | Side::Destination,
                LocalMigrationState::HandedOver | LocalMigrationState::Running | LocalMigrationState::Failed,
            ) => Ok(now),
        }
    }

    /// Does what the authority says of a destination in doubt.
    pub async fn resolve(self: &Arc<Self>, id: &MigrationId, run: bool) -> Result<LocalMigration> {
        let known = self.find_move(id)?;
        let held = Held::new(self, &known.machine).await;
        let now = self.fresh(&held, known).await?;
        if now.side != Side::Destination {
            return Err(HostError::invalid(format!(
                "migration {id}: this host is the source, the verdict is for the destination"
            )));
        }
        match (now.state, run) {
            (LocalMigrationState::Prepared, true) => {
                held.machine().monitor().tell(&Request::Resolve { run }).await?;
                self.await_verdict(&held, id).await
            }
            (LocalMigrationState::Active, true) => Err(HostError::conflict(format!(
                "migration {id}: the destination has not received the whole machine, it cannot run"
            ))),
            (LocalMigrationState::Active | LocalMigrationState::Prepared, false) => {
                self.discard_if_idle(&held, id, "control decided that it does not run here").await
            }
            (
                LocalMigrationState::HandedOver | LocalMigrationState::Running | LocalMigrationState::Failed,
                true | false,
            ) => Ok(now),
        }
    }

    /// Waits until a move's state is final, for a short while.
    async fn await_verdict(&self, held: &Held, id: &MigrationId) -> Result<LocalMigration> {
        let until = tokio::time::Instant::now() + VERDICT_PATIENCE;
        loop {
            let known = self.find_move(id)?;
            let now = self.fresh(held, known).await?;
            let open = matches!(now.state, LocalMigrationState::Active | LocalMigrationState::Prepared);
            if !open || tokio::time::Instant::now() > until {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends a destination that does not run. The monitor itself decides whether it does: it alone knows in the instant.
    async fn discard_if_idle(&self, held: &Held, id: &MigrationId, why: &str) -> Result<LocalMigration> {
        let monitor = held.machine().monitor();
        if monitor.tell(&Request::Resolve { run: false }).await.is_err() {
            // Not prepared yet: nothing whole is there that could run.
            let known = self.find_move(id)?;
            let now = self.fresh(held, known).await?;
            if now.state == LocalMigrationState::Running {
                return Ok(now);
            }
        }
        self.discard(held, why).await?;
        Ok(self.find_move(id)?.local())
    }

    /// Takes a destination away that never ran: monitor, port, staged files. The move's record says why.
    pub(crate) async fn discard(&self, held: &Held, why: &str) -> Result<()> {
        let here = held.instance()?;
        let mut left = Vec::new();
        left.extend(self.end_monitor(held).await.err().map(|e| e.message));
        left.extend(self.netd.call(network::remove(here.id(), here.epoch)).await.err().map(|e| e.message));
        let mut paths = Vec::new();
        if let Some(known) = here.migration.as_ref().and_then(|id| self.find_move(id).ok()) {
            paths.extend(known.made.clone());
            let error = known.error.clone().or_else(|| Some(why.to_owned()));
            let failed = Move { state: LocalMigrationState::Failed, error, settled: true, ..known };
            left.extend(self.put_move(failed).await.err().map(|e| e.message));
        }
        paths.push(held.machine().dir().path().to_path_buf());
        left.extend(self.remove_files(paths).await);
        held.vacate();
        if left.is_empty() {
            return Ok(());
        }
        Err(HostError::internal(format!(
            "machine {} was discarded, but there stays: {}",
            here.id(),
            left.join("; ")
        )))
    }

    /// Ends this side's part in a move. Source: the monitor, the disks and the port go; netd keeps the redirect.
    pub async fn finish(self: &Arc<Self>, id: &MigrationId) -> Result<()> {
        let Ok(known) = self.find_move(id) else { return Ok(()) };
        let held = Held::new(self, &known.machine).await;
        let now = self.fresh(&held, known.clone()).await?;
        match now.state {
            LocalMigrationState::Active | LocalMigrationState::Prepared => Err(HostError::conflict(format!(
                "migration {id} is not over on this host ({:?}): cancel or resolve it first",
                now.state
            ))),
            LocalMigrationState::HandedOver => {
                self.clear_source(&held, &known).await?;
                self.forget_move(id).await
            }
            LocalMigrationState::Running | LocalMigrationState::Failed => self.forget_move(id).await,
        }
    }

    async fn clear_source(&self, held: &Held, left_by: &Move) -> Result<()> {
        let machine = held.machine();
        let Some(here) = machine.instance().filter(|i| i.epoch == left_by.epoch) else { return Ok(()) };
        self.settle(machine, left_by).await;
        // Neither the epoch that ran here nor the destination's may start here any more.
        instance::raise_fence(&self.layout, here.id(), here.epoch.next())?;
        self.end_monitor(held).await?;
        self.repair_source(&here).await?;
        self.netd.call(network::remove(here.id(), here.epoch)).await?;
        let mut paths: Vec<PathBuf> = here.spec.volumes.iter().map(|v| self.layout.volume(&v.id)).collect();
        paths.push(machine.dir().path().to_path_buf());
        let left = self.remove_files(paths).await;
        if left.is_empty() {
            held.vacate();
            return Ok(());
        }
        Err(HostError::internal(format!(
            "machine {} has left, but there stays: {}",
            here.id(),
            left.join("; ")
        )))
    }

    /// Lets a source deliver its late frames.
    async fn settle(&self, machine: &Machine, left_by: &Move) {
        let settled = async {
            while let Ok(status) = machine.monitor().status().await {
                let over = |m: &MigrationStatus| m.outcome.is_some() && !status.migrating;
                if known_to(&status, &left_by.id).is_none_or(over) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // One that takes longer is ended all the same: its machine is elsewhere.
        let _ = tokio::time::timeout(SETTLE_PATIENCE, settled).await;
    }
}

fn answer_known(known: &Move, incoming: &Incoming) -> Result<IncomingReady> {
    let same = known.side == Side::Destination
        && known.machine == incoming.machine.id
        && known.epoch == incoming.epoch
        && known.peer == incoming.source;
    match known.address {
        Some(address) if same && known.open() => Ok(IncomingReady { address }),
        Some(_) | None => Err(HostError::conflict(format!(
            "migration {} is on this host already and stands at {:?}{}: use a new one",
            known.id,
            known.state,
            known.error.as_deref().map(|e| format!(" ({e})")).unwrap_or_default()
        ))),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
