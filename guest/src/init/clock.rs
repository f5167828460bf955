//! The wall clock, set once to the host's.
//!
//! The kernel starts it right, and loses up to a second before its clock source is up: until then it counts ticks, of which a slow or
//! busy host delivers fewer. From then on kvm-clock keeps pace with the host, over migrations too.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::log;

/// The host's clock as KVM offers it (`ptp_kvm`).
const HOST_CLOCK: &str = "/dev/ptp0";

/// Sets it. A host that does not offer its clock is noted and passed over.
pub fn set() {
    if let Err(error) = take_over() {
        log::note(format_args!("the wall clock stays as it is: {error:#}"));
    }
}

fn take_over() -> Result<()> {
    let device = File::open(HOST_CLOCK).with_context(|| format!("opening {HOST_CLOCK}"))?;
    let now = clock_gettime(clock_of(&device)).with_context(|| format!("reading {HOST_CLOCK}"))?;
    clock_settime(ClockId::CLOCK_REALTIME, now).context("setting the wall clock")
}

/// The dynamic clock behind a descriptor: `FD_TO_CLOCKID` of the kernel's `tools/testing/selftests/ptp/testptp.c`.
fn clock_of(device: &File) -> ClockId {
    ClockId::from_raw(!device.as_raw_fd() << 3 | 3)
}
