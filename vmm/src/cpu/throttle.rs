//! Takes CPU time away from the guest while a migration cannot keep up with its writes.
//!
//! As QEMU does it: the vCPUs run for a slice, then sleep so long that the wanted share of time is lost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::vcpu::Vcpu;

/// How long vCPUs run between two sleeps.
const SLICE: Duration = Duration::from_millis(5);

/// The highest share that is taken, in percent.
const MOST: u8 = 99;

/// The brake of one machine.
#[derive(Default)]
pub struct Throttle {
    percent: Arc<AtomicU8>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Throttle {
    /// Takes `percent` of the time away; 0 ends it.
    ///
    /// # Errors
    /// When `percent` is above 99 or no thread can be made.
    pub fn set(&self, percent: u8, vcpus: &Arc<Vec<Vcpu>>) -> Result<()> {
        ensure!(percent <= MOST, "a throttle of {percent} %: at most {MOST} % can be taken away");
        self.percent.store(percent, Ordering::Release);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if percent > 0 && thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let (percent, vcpus) = (Arc::clone(&self.percent), Arc::clone(vcpus));
            let body = move || brake(&percent, &vcpus);
            let started = thread::Builder::new().name("throttle".into()).spawn(body);
            *thread = Some(started.context("start the throttle's thread")?);
        }
        Ok(())
    }
}

fn brake(percent: &AtomicU8, vcpus: &[Vcpu]) {
    loop {
        let taken = u32::from(percent.load(Ordering::Acquire));
        if taken == 0 {
            return;
        }
        let sleep = SLICE * taken / (100 - taken);
        for vcpu in vcpus {
            vcpu.doze(sleep);
        }
        thread::sleep(SLICE + sleep);
    }
}
