//! The thread of a device: waits for kicks and for the device's own descriptors, and calls the device.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::mmio::MmioTransport;
use super::{FIRST_TOKEN, Wake};

/// The token of the transport's own wake-up; kicks have their queue's number.
const WAKE: u64 = 1 << 15;
/// How many events are taken at once.
const BATCH: usize = 16;

/// Starts the thread. It ends with the process.
///
/// # Errors
/// When epoll or the thread cannot be made.
pub fn start(transport: &Arc<MmioTransport>, name: &str) -> Result<()> {
    let poll = Arc::new(Epoll::new().with_context(|| format!("make an epoll for {name}"))?);
    // Edge-triggered: each kick is an event of its own, so the eventfd need not be read.
    let add = |fd, token| {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        poll.ctl(ControlOperation::Add, fd, event).with_context(|| format!("watch the queues of {name}"))
    };
    for (token, kick) in (0u64..).zip(transport.kicks()) {
        add(kick.as_raw_fd(), token)?;
    }
    add(transport.wake_fd().as_raw_fd(), WAKE)?;
    transport.attach(&poll)?;
    let transport = Arc::clone(transport);
    let body = move || run(&transport, &poll);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("start the thread of {name}"))?;
    Ok(())
}

fn run(transport: &MmioTransport, poll: &Epoll) {
    let mut events = [EpollEvent::default(); BATCH];
    let mut later = None;
    loop {
        transport.gate().pass();
        let count = match poll.wait(later.map_or(-1, millis), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return error!(%error, "a device's thread cannot wait for events; the device stands still");
            }
        };
        if count == 0 {
            later = transport.work(Wake::Late);
        }
        for event in &events[..count] {
            later = transport.work(wake_for(event.data()));
        }
    }
}

/// (A kick lost to a closed gate does not matter: opening it wakes for all.)
fn wake_for(token: u64) -> Wake {
    match token {
        FIRST_TOKEN.. => Wake::Source(token),
        WAKE => Wake::All,
        queue => Wake::Queue(crate::num::index(queue)),
    }
}

fn millis(duration: Duration) -> i32 {
    // Not too early: it would wait again, for nothing.
    i32::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}
