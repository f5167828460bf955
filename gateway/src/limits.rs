//! How many connections one source and all together may hold, and how fast one source may open them.
//!
//! The same counter stands before each public door. A source is an IPv4 address or an IPv6 /64, which one client owns.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What one door allows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    pub total: usize,
    /// Connections at once from one source.
    pub per_source: usize,
    /// New connections a second from one source, on average; twice as many in a burst.
    pub per_source_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 4096, per_source: 128, per_source_per_second: 16 }
    }
}

impl Limits {
    /// Port 22's, where a login costs nothing of the rate. ssh-audit's check for the DHEat attack complains of 20 greetings a second over
    /// 1.5 s: with the burst, this is 19.
    pub fn of_ssh() -> Self {
        Self { per_source_per_second: 8, ..Self::default() }
    }

    /// The same without a rate, for a door behind another one that has it.
    pub fn without_rate(self) -> Self {
        Self { per_source_per_second: u32::MAX, ..self }
    }
}

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The door is full.
    #[error("the gateway is full ({0} connections); try again in a minute")]
    Full(usize),
    /// The source holds too many.
    #[error("your address holds {0} connections already; close some")]
    TooMany(usize),
    /// The source opens them too fast.
    #[error("your address opens more than {0} connections a second; slow down")]
    TooFast(u32),
}

/// Counts connections of one door.
#[derive(Debug)]
pub struct Door {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    sources: HashMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    open: usize,
    /// Token bucket: connections that may be opened now.
    tokens: f64,
    filled: Instant,
}

/// Above this many remembered sources, those without a connection and with a full bucket are forgotten.
const REMEMBERED: usize = 16_384;

/// A place of one connection, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    door: Arc<Door>,
    source: IpAddr,
}

impl Door {
    /// A door with those limits.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    /// Takes a place for a connection from `ip` at `now`.
    pub fn enter(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Result<Slot, Refusal> {
        let source = network_of(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= self.limits.total {
            return Err(Refusal::Full(counts.total));
        }
        let rate = f64::from(self.limits.per_source_per_second);
        if counts.sources.len() >= REMEMBERED {
            counts.sources.retain(|_, s| s.open > 0 || s.refill(rate, now) < rate * 2.0);
        }
        let seen =
            counts.sources.entry(source).or_insert(Source { open: 0, tokens: rate * 2.0, filled: now });
        if seen.open >= self.limits.per_source {
            return Err(Refusal::TooMany(seen.open));
        }
        if seen.refill(rate, now) < 1.0 {
            return Err(Refusal::TooFast(self.limits.per_source_per_second));
        }
        seen.tokens -= 1.0;
        seen.open += 1;
        counts.total += 1;
        Ok(Slot { door: Arc::clone(self), source })
    }
}

impl Source {
    fn refill(&mut self, rate: f64, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(rate * 2.0);
        self.filled = now;
        self.tokens
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.door.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Some(source) = counts.sources.get_mut(&self.source) {
            source.open = source.open.saturating_sub(1);
        }
    }
}

/// A client of IPv6 owns a /64.
pub(crate) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn door() -> Arc<Door> {
        Door::new(Limits { total: 5, per_source: 3, per_source_per_second: 2 })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_has_its_share_and_no_more() {
        let (door, now) = (door(), Instant::now());
        let held: Vec<_> = (0..3).map(|n| door.enter(ip(&format!("2001:db8::{n}")), now).unwrap()).collect();
        assert_eq!(door.enter(ip("2001:db8::ffff"), now).unwrap_err(), Refusal::TooMany(3), "same /64");
        let other = door.enter(ip("2001:db8:0:1::1"), now).unwrap();
        let mapped = door.enter(ip("::ffff:192.0.2.1"), now).unwrap();
        assert_eq!(door.enter(ip("198.51.100.1"), now).unwrap_err(), Refusal::Full(5));
        drop((held, other, mapped));
        assert_eq!(door.counts.lock().unwrap().total, 0);
    }

    #[test]
    fn a_source_that_opens_and_closes_fast_is_slowed_down() {
        let (door, now) = (door(), Instant::now());
        for _ in 0..4 {
            drop(door.enter(ip("192.0.2.1"), now).unwrap());
        }
        assert_eq!(door.enter(ip("192.0.2.1"), now).unwrap_err(), Refusal::TooFast(2));
        assert!(door.enter(ip("192.0.2.1"), now + Duration::from_millis(600)).is_ok());
    }
}
