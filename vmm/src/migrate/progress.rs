//! What `status` says about a migration while it runs and after it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::figures::micros;
use crate::api::{Figures, MigrationStatus, Outcome, Phase};

/// A lock whose holder panicked is still a lock: what is behind it here is plain data.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Written by the migration, read by the control socket.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    status: Mutex<MigrationStatus>,
}

impl Progress {
    /// In [`Phase::Handshake`], without an outcome.
    #[must_use]
    pub fn new(migration_id: &str) -> Self {
        let status = MigrationStatus {
            migration_id: migration_id.to_owned(),
            phase: Phase::Handshake,
            outcome: None,
            figures: Figures::default(),
        };
        Self { started: Instant::now(), status: Mutex::new(status) }
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> MigrationStatus {
        let mut status = lock(&self.status).clone();
        if status.outcome.is_none() {
            status.figures.total_us = micros(self.started.elapsed());
        }
        status
    }

    pub(super) fn enter(&self, phase: Phase) {
        lock(&self.status).phase = phase;
    }

    pub(super) fn figures(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut lock(&self.status).figures);
    }

    /// The end: set once.
    pub(super) fn end(&self, outcome: Outcome) {
        let mut status = lock(&self.status);
        status.figures.total_us = micros(self.started.elapsed());
        status.outcome.get_or_insert(outcome);
    }
}
