//! Connections that have proved no key: how many there are, who goes when there are too many, how fast they may come.
//!
//! Invariants:
//! - Whoever comes gets a place, however many silent connections of however many sources there are: when all places are taken, the
//!   connection goes that has been silent for longest. Whoever has exchanged keys (and may be typing a passphrase) goes only when all have.
//! - One source has few places, and its connections are greeted at a bounded rate, so that nobody makes the gateway exchange keys
//!   all day (DHEat, CVE-2002-20001). Those that come faster wait for their greeting; those that would wait too long are told so.
//! - A login costs nothing of the rate: a hundred commands one after another are a hundred logins.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::limits::{Limits, Refusal, network_of};

/// Above this many remembered sources, those without a connection and with a full bucket are forgotten.
const REMEMBERED: usize = 16_384;

/// All of them.
#[derive(Debug)]
pub struct Strangers {
    limits: Limits,
    here: Mutex<Here>,
}

#[derive(Debug, Default)]
struct Here {
    /// By the order they came in; those that have not exchanged keys, and those that have.
    silent: BTreeMap<u64, CancellationToken>,
    spoken: BTreeMap<u64, CancellationToken>,
    sources: HashMap<IpAddr, Source>,
    next: u64,
}

#[derive(Debug)]
struct Source {
    open: usize,
    /// Greetings that are due at once; less than nothing when some wait.
    tokens: f64,
    filled: Instant,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Stranger {
    all: Arc<Strangers>,
    number: u64,
    source: IpAddr,
    /// How long its greeting has to wait.
    pub wait: Duration,
    /// Its place is needed for somebody who came later.
    pub replaced: CancellationToken,
}

impl Strangers {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, here: Mutex::default() })
    }

    /// A connection from `ip` at `now`.
    ///
    /// # Errors
    /// Its source has all the places it may have, or its greeting would come too late.
    pub fn enter(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Result<Stranger, Refusal> {
        let source = network_of(ip);
        let mut here = self.here();
        let rate = f64::from(self.limits.per_source_per_second);
        if here.sources.len() >= REMEMBERED {
            here.sources.retain(|_, s| s.open > 0 || s.refill(rate, now) < rate * 2.0);
        }
        let seen = here.sources.entry(source).or_insert(Source { open: 0, tokens: rate * 2.0, filled: now });
        if seen.open >= self.limits.per_source {
            return Err(Refusal::TooMany(seen.open));
        }
        if seen.refill(rate, now) < 1.0 - rate * 2.0 {
            return Err(Refusal::TooFast(self.limits.per_source_per_second));
        }
        seen.tokens -= 1.0;
        seen.open += 1;
        let wait = Duration::from_secs_f64((-seen.tokens / rate).max(0.0));
        if here.silent.len() + here.spoken.len() >= self.limits.total {
            let longest = here.silent.pop_first().or_else(|| here.spoken.pop_first());
            if let Some((_, replaced)) = longest {
                replaced.cancel();
            }
        }
        let (number, replaced) = (here.next, CancellationToken::new());
        here.next += 1;
        here.silent.insert(number, replaced.clone());
        Ok(Stranger { all: Arc::clone(self), number, source, wait, replaced })
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// It has exchanged keys, which somebody who only holds places does not.
    pub fn spoke(&self) {
        let mut here = self.all.here();
        if let Some(replaced) = here.silent.remove(&self.number) {
            here.spoken.insert(self.number, replaced);
        }
    }

    /// It is a stranger no longer.
    pub fn logged_in(self) {
        let mut here = self.all.here();
        let burst = f64::from(self.all.limits.per_source_per_second) * 2.0;
        if let Some(source) = here.sources.get_mut(&self.source) {
            source.tokens = (source.tokens + 1.0).min(burst);
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut here = self.all.here();
        here.silent.remove(&self.number);
        here.spoken.remove(&self.number);
        if let Some(source) = here.sources.get_mut(&self.source) {
            source.open = source.open.saturating_sub(1);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn strangers(total: usize) -> Arc<Strangers> {
        Strangers::new(Limits { total, per_source: 20, per_source_per_second: 2 })
    }

    fn ip(number: usize) -> IpAddr {
        format!("192.0.2.{number}").parse().unwrap()
    }

    #[test]
    fn who_comes_last_has_a_place_and_who_was_silent_for_longest_loses_it() {
        let (strangers, now) = (strangers(3), Instant::now());
        let here: Vec<_> = (0..3).map(|n| strangers.enter(ip(n), now).unwrap()).collect();
        here[0].spoke();
        let fourth = strangers.enter(ip(3), now).unwrap();
        let replaced = || here.iter().map(|s| s.replaced.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(replaced(), [false, true, false], "the first has exchanged keys");
        let more: Vec<_> = (4..6).map(|n| strangers.enter(ip(n), now).unwrap()).collect();
        assert_eq!(replaced(), [false, true, true]);
        for stranger in &more {
            stranger.spoke();
        }
        let _last = strangers.enter(ip(6), now).unwrap();
        assert_eq!(replaced(), [true, true, true], "all have: then it is the first");
        assert!(fourth.replaced.is_cancelled());
        drop((here, fourth, more));
    }

    #[test]
    fn greetings_of_one_source_are_spread_over_time_and_other_sources_do_not_wait() {
        let (strangers, now) = (strangers(100), Instant::now());
        let waits: Vec<u128> =
            (0..8).map(|_| strangers.enter(ip(1), now).unwrap().wait.as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 500, 1000, 1500, 2000]);
        assert_eq!(strangers.enter(ip(1), now).unwrap_err(), Refusal::TooFast(2));
        assert_eq!(strangers.enter(ip(2), now).unwrap().wait, Duration::ZERO);
        assert!(strangers.enter(ip(1), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn logins_cost_nothing_of_the_rate() {
        let (strangers, now) = (strangers(100), Instant::now());
        for _ in 0..100 {
            let stranger = strangers.enter(ip(1), now).unwrap();
            assert_eq!(stranger.wait, Duration::ZERO);
            stranger.logged_in();
        }
    }

    #[test]
    fn a_source_has_its_places_and_gives_them_back() {
        let strangers = Strangers::new(Limits { total: 100, per_source: 3, per_source_per_second: 50 });
        let now = Instant::now();
        let here: Vec<_> = (0..3).map(|_| strangers.enter(ip(1), now).unwrap()).collect();
        assert_eq!(strangers.enter(ip(1), now).unwrap_err(), Refusal::TooMany(3));
        drop(here);
        assert!(strangers.enter(ip(1), now).is_ok());
        let nobody = strangers.here();
        assert!(nobody.silent.is_empty() && nobody.spoken.is_empty());
    }
}
