//! The hosts as control hears them: their newest reports, and a client to each.
//!
//! Reports live in memory only. What control decides from them is level-triggered, so a lost or late report costs time,
//! never truth; and everything that ends or starts an instance carries its epoch, so a stale one is refused by the host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mashines_fleet::host_api::{HostState, LocalMachine, LocalMigration};
use mashines_fleet::id::{Epoch, HostId, MachineId, MigrationId};
use mashines_fleet::pki::Identity;
use mashines_fleet::record::Host;
use mashines_fleet::rpc::Client;
use tokio::sync::Notify;

use crate::failure::{Failure, Kind, Result};
use crate::time::now;
use crate::usage::Meter;

/// A host that was silent for longer is not alive: nothing is placed on it.
pub const ALIVE: Duration = Duration::from_secs(15);

/// What is known of the hosts.
#[derive(Clone)]
pub struct Hosts {
    identity: Identity,
    started: Instant,
    inner: Arc<Mutex<Inner>>,
    heard: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    reports: HashMap<HostId, Heard>,
    clients: HashMap<HostId, (SocketAddr, Client)>,
}

struct Heard {
    at: Instant,
    state: Option<HostState>,
    meters: HashMap<MachineId, Meter>,
}

impl Heard {
    /// What each of the host's machines has used since the last report.
    fn measure(&mut self) {
        let Some(state) = &self.state else { return };
        let meters = state.machines.iter().map(|local| {
            let (epoch, at, time) = (local.epoch, self.at, local.cpu_time_us);
            let known = self.meters.get(&local.id);
            (
                local.id.clone(),
                known.map_or_else(|| Meter::begin(epoch, at, time), |m| m.next(epoch, at, time)),
            )
        });
        self.meters = meters.collect();
    }
}

/// How an instance stands, as far as control knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The host was not heard of lately.
    Silent,
    /// The host is alive and has nothing of the machine.
    Absent,
    /// The host has this.
    Here(LocalMachine),
}

impl Hosts {
    /// Nothing heard yet.
    pub fn new(identity: Identity) -> Self {
        Self { identity, started: Instant::now(), inner: Arc::default(), heard: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A report came in.
    pub fn report(&self, host: &HostId, state: Option<HostState>) {
        let mut inner = self.inner();
        let heard = inner.reports.entry(host.clone());
        let heard =
            heard.or_insert_with(|| Heard { at: Instant::now(), state: None, meters: HashMap::new() });
        heard.at = Instant::now();
        if state.is_some() {
            heard.state = state;
            heard.measure();
        }
        drop(inner);
        self.heard.notify_one();
    }

    /// Returns at the next report, or at once when one came since the last call. One caller at a time.
    pub async fn changed(&self) {
        self.heard.notified().await;
    }

    /// Whether the host was heard of lately. Just after control's own start, the record's word is taken for it.
    pub fn alive(&self, host: &Host) -> bool {
        let heard = self.inner().reports.get(&host.id).map(|heard| heard.at.elapsed() < ALIVE);
        let lately = || self.started.elapsed() < ALIVE && now().saturating_sub(host.seen_at) < 60_000;
        heard.unwrap_or_else(lately)
    }

    /// How the machine stands on the host, by the newest report.
    pub fn seen(&self, host: &HostId, machine: &MachineId) -> Seen {
        let inner = self.inner();
        let Some(heard) = inner.reports.get(host).filter(|heard| heard.at.elapsed() < ALIVE) else {
            return Seen::Silent;
        };
        let Some(state) = &heard.state else { return Seen::Silent };
        let here = state.machines.iter().find(|local| local.id == *machine);
        here.map_or(Seen::Absent, |local| Seen::Here(local.clone()))
    }

    /// What the machine uses there: percent of one CPU between the last two reports, and the instance as it was reported.
    pub fn usage(&self, host: &HostId, machine: &MachineId) -> Option<(Option<f64>, LocalMachine)> {
        let inner = self.inner();
        let heard = inner.reports.get(host).filter(|heard| heard.at.elapsed() < ALIVE)?;
        let local = heard.state.as_ref()?.machines.iter().find(|local| local.id == *machine)?;
        let percent = heard.meters.get(machine).and_then(|meter| meter.percent());
        Some((percent, local.clone()))
    }

    /// All instances and migrations of the hosts that are alive.
    pub fn all(&self) -> Vec<(HostId, Vec<LocalMachine>, Vec<LocalMigration>)> {
        let inner = self.inner();
        let alive = inner.reports.iter().filter(|(_, heard)| heard.at.elapsed() < ALIVE);
        alive
            .filter_map(|(id, heard)| {
                let state = heard.state.as_ref()?;
                Some((id.clone(), state.machines.clone(), state.migrations.clone()))
            })
            .collect()
    }

    /// An answer of the host about one machine is newer than its last report.
    pub fn learn(&self, host: &HostId, local: LocalMachine) {
        if let Some(state) = self.inner().reports.get_mut(host).and_then(|heard| heard.state.as_mut()) {
            state.machines.retain(|known| known.id != local.id);
            state.machines.push(local);
        }
        self.heard.notify_one();
    }

    /// The host was asked and has nothing of the machine in this epoch or an older one.
    pub fn forget(&self, host: &HostId, machine: &MachineId, epoch: Epoch) {
        if let Some(state) = self.inner().reports.get_mut(host).and_then(|heard| heard.state.as_mut()) {
            state.machines.retain(|known| known.id != *machine || known.epoch > epoch);
        }
        self.heard.notify_one();
    }

    /// The host was asked to finish the migration, and did.
    pub fn forget_migration(&self, host: &HostId, migration: &MigrationId) {
        if let Some(state) = self.inner().reports.get_mut(host).and_then(|heard| heard.state.as_mut()) {
            state.migrations.retain(|known| known.id != *migration);
        }
    }

    /// The host's state, asked now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(&self, host: &Host) -> Result<HostState> {
        let state: HostState =
            self.client(host)?.with_timeout(Duration::from_secs(5)).get("/v1/state").await?;
        self.report(&host.id, Some(state.clone()));
        Ok(state)
    }

    /// A client to the host daemon; they share connections.
    ///
    /// # Errors
    /// Certificates.
    pub fn client(&self, host: &Host) -> Result<Client> {
        let mut inner = self.inner();
        let known = inner.clients.get(&host.id).filter(|(address, _)| *address == host.api);
        if let Some((_, client)) = known {
            return Ok(client.clone());
        }
        let client = Client::to_host(&self.identity, &host.id, host.api)
            .map_err(|error| Failure::new(Kind::Internal, error.to_string()))?;
        inner.clients.insert(host.id.clone(), (host.api, client.clone()));
        Ok(client)
    }
}
