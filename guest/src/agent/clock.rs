//! Who and how old this machine is.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use mashines_guest::protocol::Status;
use nix::time::{ClockId, clock_gettime};

/// Reads it all from the kernel.
pub fn status() -> Result<Status> {
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let hostname = nix::unistd::gethostname().context("asking for the hostname")?;
    Ok(Status {
        boot_id: fs::read_to_string(boot_id).with_context(|| format!("reading {boot_id}"))?.trim().to_owned(),
        uptime_ms: u64::try_from(read(ClockId::CLOCK_BOOTTIME)?.as_millis())?,
        wall_clock_ns: u64::try_from(read(ClockId::CLOCK_REALTIME)?.as_nanos())?,
        hostname: hostname.to_string_lossy().into_owned(),
    })
}

fn read(clock: ClockId) -> Result<Duration> {
    Ok(Duration::from(clock_gettime(clock).with_context(|| format!("reading the clock {clock}"))?))
}
