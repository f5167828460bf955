//! Holds a device's thread back while the machine is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Closed at first: a device does nothing before the machine runs.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: AtomicBool::new(true), lock: Mutex::new(()), opened: Condvar::new() }
    }
}

impl Gate {
    /// Whether work must stop. Devices look between two requests.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// From now on nobody passes. Who passed before is still inside: take the device's lock to wait for them.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Lets the waiting pass.
    pub fn open(&self) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(false, Ordering::Release);
        drop(guard);
        self.opened.notify_all();
    }

    /// Waits until the gate is open.
    pub fn pass(&self) {
        if !self.is_closed() {
            return;
        }
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(guard, |()| self.is_closed()));
    }
}
