//! Time across a save and a load: the guest's clocks go on as if it had merely not been scheduled.
//!
//! A [`Stamp`] ties a host's TSC to the wall clock. On the same boot of the same host (a snapshot, a lab of namespaces) the
//! TSC offset stays right by itself. Between hosts the elapsed time comes from the wall clocks, which NTP keeps within
//! milliseconds; the guest's clocks never go back, because a negative elapsed time counts as 0.

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The host's boot id.
    pub boot_id: [u8; 16],
    /// The wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The host's TSC at that moment.
    pub host_tsc: u64,
}

impl Stamp {
    /// This moment on this host.
    #[must_use]
    pub fn now() -> Self {
        // SAFETY: RDTSC has no memory effects and every x86-64 CPU has it.
        let host_tsc = unsafe { _rdtsc() };
        Self { boot_id: boot_id(), realtime_ns: realtime_ns(), host_tsc }
    }
}

/// The wall clock in nanoseconds since 1970.
#[must_use]
pub fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn boot_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
    })
}

/// What lies between a save and its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockShift {
    same_boot: bool,
    elapsed_ns: u64,
    /// Source's TSC minus destination's, modulo 2^64.
    tsc_difference: u64,
}

impl ClockShift {
    /// From `saved` to `now`.
    #[must_use]
    pub fn between(saved: &Stamp, now: &Stamp) -> Self {
        Self {
            same_boot: saved.boot_id == now.boot_id && saved.boot_id != [0; 16],
            elapsed_ns: now.realtime_ns.saturating_sub(saved.realtime_ns),
            tsc_difference: saved.host_tsc.wrapping_sub(now.host_tsc),
        }
    }

    /// The guest's TSC offset here, when it was `offset` there.
    #[must_use]
    pub fn tsc_offset(&self, offset: u64, khz: u32) -> u64 {
        if self.same_boot {
            return offset;
        }
        offset.wrapping_add(self.tsc_difference).wrapping_add(self.elapsed_cycles(khz))
    }

    /// The elapsed time in cycles of a TSC of `khz`.
    #[must_use]
    pub fn elapsed_cycles(&self, khz: u32) -> u64 {
        let cycles = u128::from(self.elapsed_ns) * u128::from(khz) / 1_000_000;
        u64::try_from(cycles).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(host: u8, realtime_ns: u64, host_tsc: u64) -> Stamp {
        Stamp { boot_id: [host; 16], realtime_ns, host_tsc }
    }

    #[test]
    fn on_the_same_boot_the_offset_stays() {
        let shift = ClockShift::between(&stamp(1, 1_000, 5_000), &stamp(1, 9_000, 99_000));
        assert_eq!(shift.tsc_offset(42, 2_000_000), 42);
    }

    #[test]
    fn between_hosts_the_guest_tsc_advances_by_the_elapsed_time() {
        let (saved, now) = (stamp(1, 1_000_000_000, 10_000_000), stamp(2, 1_500_000_000, 777));
        let khz = 2_000_000;
        let offset = 123u64;
        let guest_before = saved.host_tsc + offset;
        let guest_after =
            now.host_tsc.wrapping_add(ClockShift::between(&saved, &now).tsc_offset(offset, khz));
        assert_eq!(guest_after - guest_before, 1_000_000_000); // 0.5 s at 2 GHz
    }

    #[test]
    fn a_wall_clock_that_is_behind_does_not_take_the_guest_back() {
        let shift = ClockShift::between(&stamp(1, 2_000, 0), &stamp(2, 1_000, 0));
        assert_eq!(shift.elapsed_cycles(1_000_000), 0);
    }
}
