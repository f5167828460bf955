//! What one account's people may have open at once, and how fast they may move bytes, through this gateway.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::id::AccountId;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

/// Bytes that go at once before the rate counts, as time: short answers never wait.
const BURST: Duration = Duration::from_secs(1);

/// What each account may.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountLimits {
    /// Sessions and forwarded connections at once.
    #[serde(default = "sessions")]
    pub sessions: usize,
    /// Bytes a second, of all of them and both directions together; as fast as it goes when it is not set.
    #[serde(default)]
    pub bytes_per_second: Option<NonZeroU64>,
}

fn sessions() -> usize {
    512
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self { sessions: sessions(), bytes_per_second: None }
    }
}

/// An account has all it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("account {0} has {1} sessions and forwarded connections open, which is the most; close some")]
pub struct TooMany(AccountId, usize);

/// Counts what is open, by account.
#[derive(Debug)]
pub struct Accounts {
    limits: AccountLimits,
    open: Mutex<HashMap<AccountId, Open>>,
}

#[derive(Debug)]
struct Open {
    places: usize,
    purse: Purse,
}

/// Above this many remembered accounts, those that have nothing open and nothing to wait for are forgotten.
const REMEMBERED: usize = 1024;

/// One session's place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    accounts: Arc<Accounts>,
    account: AccountId,
    purse: Purse,
}

/// What the bytes of one account's connections are paid from: the same for all that holds it. Clones are the same purse.
#[derive(Debug, Clone, Default)]
pub struct Purse(Option<Arc<Pace>>);

/// When the bytes paid for so far will have gone at the rate (a leaky bucket, kept as its time of being empty).
#[derive(Debug)]
struct Pace {
    rate: NonZeroU64,
    empty_at: Mutex<Instant>,
}

impl Accounts {
    /// Nothing is open.
    pub fn new(limits: AccountLimits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default() })
    }

    /// Takes a place for one session of `account`.
    ///
    /// # Errors
    /// There is none left.
    pub fn enter(self: &Arc<Self>, account: &AccountId) -> Result<Place, TooMany> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen(&mut open, account);
        if seen.places >= self.limits.sessions {
            return Err(TooMany(account.clone(), seen.places));
        }
        seen.places += 1;
        Ok(Place { accounts: Arc::clone(self), account: account.clone(), purse: seen.purse.clone() })
    }

    /// What `account`'s bytes are paid from, for connections that take no place: those of its machines' web and shared ports.
    pub fn purse(&self, account: &AccountId) -> Purse {
        if self.limits.bytes_per_second.is_none() {
            return Purse(None);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.seen(&mut open, account).purse.clone()
    }

    fn seen<'a>(&self, open: &'a mut HashMap<AccountId, Open>, account: &AccountId) -> &'a mut Open {
        if open.len() >= REMEMBERED && !open.contains_key(account) {
            let now = Instant::now();
            open.retain(|_, open| open.places > 0 || open.purse.is_needed(1, now));
        }
        let new = || Open { places: 0, purse: Purse::new(self.limits.bytes_per_second) };
        open.entry(account.clone()).or_insert_with(new)
    }
}

impl Place {
    /// What this session's bytes are paid from.
    pub fn purse(&self) -> &Purse {
        &self.purse
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.accounts.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = open.get_mut(&self.account) {
            seen.places -= 1;
            // What is still to be waited for must not be forgotten by closing and coming again.
            if seen.places == 0 && !seen.purse.is_needed(2, Instant::now()) {
                open.remove(&self.account);
            }
        }
    }
}

impl Purse {
    fn new(rate: Option<NonZeroU64>) -> Self {
        Self(rate.map(|rate| Arc::new(Pace { rate, empty_at: Mutex::new(Instant::now()) })))
    }

    /// Nothing is ever waited for.
    pub fn is_free(&self) -> bool {
        self.0.is_none()
    }

    /// Pays for `bytes`: when they may go, if not now.
    pub fn due(&self, bytes: usize) -> Option<Instant> {
        self.0.as_ref()?.due(bytes, Instant::now())
    }

    /// Waits until `bytes` more may go.
    pub async fn pay(&self, bytes: usize) {
        if let Some(due) = self.due(bytes) {
            sleep_until(due).await;
        }
    }

    /// There is something to wait for, or somebody has it but the `known` ones.
    fn is_needed(&self, known: usize, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|pace| Arc::strong_count(pace) > known || !pace.is_idle(now))
    }
}

impl Pace {
    /// When they may go, if not now.
    fn due(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.rate);
        let mut empty_at = self.empty_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*empty_at).max(now);
        *empty_at = due + takes;
        let waits = due.saturating_duration_since(now);
        (waits > BURST).then(|| now + (waits - BURST))
    }

    fn is_idle(&self, now: Instant) -> bool {
        *self.empty_at.lock().unwrap_or_else(PoisonError::into_inner) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(sessions: usize, rate: u64) -> Arc<Accounts> {
        Accounts::new(AccountLimits { sessions, bytes_per_second: NonZeroU64::new(rate) })
    }

    #[test]
    fn an_account_has_its_share_and_gets_it_back() {
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let accounts = accounts(2, 0);
        let held = [accounts.enter(&ann).unwrap(), accounts.enter(&ann).unwrap()];
        assert!(accounts.enter(&ann).unwrap_err().to_string().contains("has 2 sessions"));
        assert!(accounts.enter(&bob).is_ok());
        drop(held);
        assert!(accounts.enter(&ann).is_ok());
        assert!(accounts.open.lock().unwrap().is_empty(), "nothing is remembered of who has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_go_at_the_accounts_rate_whatever_session_or_connection_they_are_of() {
        let accounts = accounts(9, 1000);
        let ann = "ann".parse().unwrap();
        let (one, web) = (accounts.enter(&ann).unwrap(), accounts.purse(&ann));
        let begun = Instant::now();
        for _ in 0..10 {
            one.purse().pay(500).await;
            web.pay(500).await;
        }
        // 10,000 bytes at 1,000 a second; the last second's worth and what is in flight need not be waited for.
        let took = begun.elapsed().as_secs_f64();
        assert!((8.0..=9.5).contains(&took), "{took} s");
        drop((one, web));
        let again = accounts.enter(&ann).unwrap();
        let begun = Instant::now();
        again.purse().pay(1000).await;
        again.purse().pay(1).await;
        assert!(begun.elapsed() > Duration::from_millis(500), "coming again buys nothing");
    }
}
