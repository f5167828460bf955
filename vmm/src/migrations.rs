//! The migrations of this instance, as the control socket asks for them: at most one at a time, and nothing else may stop
//! or start the guest while one is under way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};

use crate::api::{MigrateIn, MigrateOut, MigrationStatus, State};
use crate::migrate::{Incoming, Instance, Outgoing};
use crate::vm::Vm;

/// The current or last migration.
#[derive(Default)]
pub struct Migrations(Mutex<Option<Side>>);

enum Side {
    Out(Outgoing),
    In(Incoming),
}

impl Side {
    fn is_finished(&self) -> bool {
        match self {
            Self::Out(out) => out.is_finished(),
            Self::In(incoming) => incoming.is_finished(),
        }
    }
}

impl Migrations {
    fn lock(&self) -> MutexGuard<'_, Option<Side>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its progress, and whether anything of it is at work still.
    #[must_use]
    pub fn status(&self) -> (Option<MigrationStatus>, bool) {
        let side = self.lock();
        let status = side.as_ref().map(|side| match side {
            Side::Out(out) => out.status(),
            Side::In(incoming) => incoming.status(),
        });
        (status, side.as_ref().is_some_and(|side| !side.is_finished()))
    }

    /// Runs `act` only while no migration is under way, and keeps one from starting meanwhile.
    ///
    /// # Errors
    /// When one is under way; or `act`'s own.
    pub fn unless_migrating<T>(&self, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let side = self.lock();
        ensure!(
            side.as_ref().is_none_or(Side::is_finished),
            "{what}: a migration is under way; wait for its end or cancel it"
        );
        act()
    }

    /// Starts to move the machine away.
    ///
    /// # Errors
    /// When another migration is under way, the machine does not run here, or the request makes no sense.
    pub fn start_out(&self, vm: &Arc<Vm>, request: MigrateOut) -> Result<()> {
        let mut side = self.lock();
        ensure!(side.as_ref().is_none_or(Side::is_finished), "migrate-out: another migration is under way");
        let phase = *vm.phase();
        ensure!(
            matches!(phase.state, State::Running | State::Paused),
            "migrate-out: the machine is {:?}, so it is not here to be moved",
            phase.state
        );
        let instance = Instance { epoch: phase.epoch, ..Instance::from(&vm.spec) };
        *side = Some(Side::Out(Outgoing::start(Arc::clone(vm) as _, request, instance)?));
        Ok(())
    }

    /// Waits for the machine to come.
    ///
    /// # Errors
    /// When this instance is not one that waits, or waits already.
    pub fn start_in(&self, vm: &Arc<Vm>, request: MigrateIn) -> Result<SocketAddr> {
        let mut side = self.lock();
        ensure!(side.as_ref().is_none_or(Side::is_finished), "migrate-in: a migration is waited for already");
        let state = vm.phase().state;
        ensure!(state == State::Incoming, "migrate-in: the machine is {state:?}; start with --incoming");
        let incoming = Incoming::listen(Arc::clone(vm) as _, request, Instance::from(&vm.spec))?;
        let address = incoming.address();
        *side = Some(Side::In(incoming));
        Ok(address)
    }

    /// Gives up the outgoing migration.
    ///
    /// # Errors
    /// When there is none, or the machine is handed over.
    pub fn cancel(&self) -> Result<()> {
        match &*self.lock() {
            Some(Side::Out(out)) if !out.is_finished() => out.cancel(),
            _ => bail!("migrate-cancel: no outgoing migration is under way"),
        }
    }

    /// The authority's verdict on a prepared instance.
    ///
    /// # Errors
    /// When this is no such instance.
    pub fn resolve(&self, run: bool) -> Result<()> {
        match &*self.lock() {
            Some(Side::In(incoming)) => incoming.resolve(run),
            _ => bail!("resolve: this instance does not wait for a verdict"),
        }
    }
}
