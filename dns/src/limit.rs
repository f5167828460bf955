//! How much one may ask for: a bucket of tokens, and limits on answers to one network (response rate limiting).
//!
//! A forged source address makes a name server a weapon: so of equal answers to one network only so many a second leave, and
//! of those above it every second one is empty and truncated. A true client asks again over TCP, or shows a cookie and is not limited at all.

use std::hash::{Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use siphasher::sip::SipHasher13;

/// So many tokens a second, and as many at once (the generic cell rate algorithm, in one number).
#[derive(Debug)]
pub struct Bucket {
    start: Instant,
    /// Nanoseconds a token.
    cost: u64,
    burst: u64,
    /// When it will be full again, nanoseconds since `start`.
    full_at: AtomicU64,
}

impl Bucket {
    /// `per_second` tokens, at most a second's worth at once. None at all where it is 0.
    pub fn new(per_second: u32) -> Self {
        let cost = 1_000_000_000u64.checked_div(per_second.into()).unwrap_or(u64::MAX / 4);
        Self { start: Instant::now(), cost, burst: 1_000_000_000, full_at: AtomicU64::new(0) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self) -> bool {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX / 2);
        self.take_at(now)
    }

    fn take_at(&self, now: u64) -> bool {
        let spend = |full_at: u64| {
            let after = full_at.max(now).saturating_add(self.cost);
            (after - now <= self.burst).then_some(after)
        };
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// What is said, as far as limits go: equal answers are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Records, or that there are none of the type.
    Name,
    /// There is no such name; counted for the whole zone, since the names are made up.
    NoName,
    /// Another server knows.
    Referral,
    /// An error.
    Error,
}

/// What to do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Send,
    /// Send it empty and truncated: whoever is really there comes by TCP.
    Truncate,
    /// Say nothing.
    Drop,
}

/// Networks and answers that are counted at once; more of them share counters, the newest having the say.
const SLOTS: usize = 1 << 16;

/// Sixteenths of a millisecond in a second.
const SECOND: u64 = 16_000;

/// Bits of a slot that say when its bucket will be full again, in sixteenths of a millisecond; those above say whose it is.
const TIME_BITS: u32 = 40;

/// Response rate limiting. A fixed table without locks: a lost update of a race costs one answer more.
#[derive(Debug)]
pub struct ResponseLimit {
    start: Instant,
    cost: u64,
    key: (u64, u64),
    slots: Box<[AtomicU64]>,
    slipped: AtomicU64,
}

impl ResponseLimit {
    /// `per_second` equal answers to a network; no limit where it is 0.
    pub fn new(per_second: u32) -> Option<Self> {
        let cost = SECOND.checked_div(per_second.into())?.max(1);
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        let key = (rand::random(), rand::random());
        Some(Self { start: Instant::now(), cost, key, slots, slipped: AtomicU64::new(0) })
    }

    /// What to do with an answer of `class` about what `identity` is the hash of.
    pub fn judge(&self, client: IpAddr, class: Class, identity: u64) -> Verdict {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0) * 16 / 1000;
        self.judge_at(client, class, identity, now)
    }

    fn judge_at(&self, client: IpAddr, class: Class, identity: u64, now: u64) -> Verdict {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        network_of(client).hash(&mut hasher);
        (class, identity).hash(&mut hasher);
        let hash = hasher.finish();
        let slot = usize::try_from(hash).unwrap_or(0) % SLOTS;
        let Some(slot) = self.slots.get(slot) else { return Verdict::Send };
        let mask = (1 << TIME_BITS) - 1;
        let owner = hash & !mask;
        let was = slot.load(Ordering::Relaxed);
        let full_at = if was & !mask == owner { was & mask } else { 0 };
        let after = full_at.max(now) + self.cost;
        if after - now <= SECOND {
            slot.store(owner | after & mask, Ordering::Relaxed);
            return Verdict::Send;
        }
        if self.slipped.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            Verdict::Truncate
        } else {
            Verdict::Drop
        }
    }
}

/// What one client is assumed to have: an IPv4 /24, an IPv6 /56.
fn network_of(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => u128::from(ip) >> 72 | 1 << 100,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_seconds_worth_at_once_and_then_as_time_goes_by() {
        let bucket = Bucket::new(100);
        let taken = |at: u64| (0..1000).filter(|_| bucket.take_at(at)).count();
        assert_eq!(taken(0), 100);
        assert_eq!(taken(0), 0);
        assert_eq!(taken(500_000_000), 50);
        assert_eq!(taken(60_000_000_000), 100);
        assert!(!Bucket::new(0).take());
    }

    #[test]
    fn equal_answers_to_one_network_are_limited_and_others_are_not() {
        let limit = ResponseLimit::new(10).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let verdicts = |client: &str, class, identity| {
            (0..30).map(|_| limit.judge_at(ip(client), class, identity, 1000)).collect::<Vec<_>>()
        };
        let count = |of: &[Verdict], what| of.iter().filter(|v| **v == what).count();
        let first = verdicts("192.0.2.1", Class::NoName, 1);
        assert_eq!(count(&first, Verdict::Send), 10);
        assert_eq!(count(&first, Verdict::Truncate), 10, "every second one above the limit");
        assert_eq!(count(&verdicts("192.0.2.77", Class::NoName, 1), Verdict::Send), 0, "the same /24");
        assert_eq!(count(&verdicts("192.0.3.1", Class::NoName, 1), Verdict::Send), 10, "another network");
        assert_eq!(count(&verdicts("192.0.2.1", Class::Name, 1), Verdict::Send), 10, "another class");
        assert_eq!(count(&verdicts("192.0.2.1", Class::NoName, 2), Verdict::Send), 10, "another name");
        assert_eq!(
            limit.judge_at(ip("192.0.2.1"), Class::NoName, 1, 1000 + SECOND),
            Verdict::Send,
            "a second later"
        );
        assert!(ResponseLimit::new(0).is_none());
    }
}
