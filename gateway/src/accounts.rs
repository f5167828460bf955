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
    pace: Arc<Pace>,
}

/// One session's place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    accounts: Arc<Accounts>,
    account: AccountId,
    pace: Arc<Pace>,
}

/// When the bytes paid for so far will have gone at the rate (a leaky bucket, kept as its time of being empty).
#[derive(Debug)]
struct Pace {
    rate: Option<NonZeroU64>,
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
        let seen = open.entry(account.clone()).or_insert_with(|| Open {
            places: 0,
            pace: Arc::new(Pace { rate: self.limits.bytes_per_second, empty_at: Mutex::new(Instant::now()) }),
        });
        if seen.places >= self.limits.sessions {
            return Err(TooMany(account.clone(), seen.places));
        }
        seen.places += 1;
        Ok(Place { accounts: Arc::clone(self), account: account.clone(), pace: Arc::clone(&seen.pace) })
    }
}

impl Place {
    /// Waits until `bytes` more may go.
    pub async fn pay(&self, bytes: usize) {
        if let Some(due) = self.pace.due(bytes, Instant::now()) {
            sleep_until(due).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.accounts.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = open.get_mut(&self.account) {
            seen.places -= 1;
            // What is still to be waited for must not be forgotten by closing and coming again.
            if seen.places == 0 && seen.pace.is_idle(Instant::now()) {
                open.remove(&self.account);
            }
        }
    }
}

impl Pace {
    /// When they may go, if not now.
    fn due(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
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
    async fn bytes_go_at_the_accounts_rate_whatever_session_they_are_of() {
        let accounts = accounts(9, 1000);
        let ann = "ann".parse().unwrap();
        let (one, two) = (accounts.enter(&ann).unwrap(), accounts.enter(&ann).unwrap());
        let begun = Instant::now();
        for _ in 0..10 {
            one.pay(500).await;
            two.pay(500).await;
        }
        // 10,000 bytes at 1,000 a second; the last second's worth and what is in flight need not be waited for.
        let took = begun.elapsed().as_secs_f64();
        assert!((8.0..=9.5).contains(&took), "{took} s");
        drop((one, two));
        let again = accounts.enter(&ann).unwrap();
        let begun = Instant::now();
        again.pay(1000).await;
        again.pay(1).await;
        assert!(begun.elapsed() > Duration::from_millis(500), "coming again buys nothing");
    }
}
