//! What the requests of one HTTP/2 connection are doing: nothing, waiting for a machine, or waiting for a client that does not read.
//!
//! Over HTTP/1 the kernel tells (`TCP_USER_TIMEOUT`); over HTTP/2 a client can keep a connection alive with pings and give a request's
//! answer no window, for as long as it likes, while the request holds a place of its machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// One connection's requests.
#[derive(Debug, Clone)]
pub struct Rest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    requests: Mutex<Requests>,
}

#[derive(Debug)]
struct Requests {
    open: Vec<Weak<AtomicU64>>,
    /// When the last one ended.
    since: Instant,
}

/// One request, until its answer has gone.
#[derive(Debug)]
pub struct Busy {
    rest: Rest,
    /// When the client was given a part of the answer that it has not asked beyond; milliseconds of the connection's life. 0: it waits.
    given: Arc<AtomicU64>,
}

impl Rest {
    /// A connection begins.
    pub fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Inner { began: now, requests: Mutex::new(Requests { open: Vec::new(), since: now }) }))
    }

    /// A request begins.
    pub fn busy(&self) -> Busy {
        let given = Arc::new(AtomicU64::new(0));
        self.lock().open.push(Arc::downgrade(&given));
        Busy { rest: self.clone(), given }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Requests> {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether there has been no request for that long.
    pub fn longer_than(&self, most: Duration) -> bool {
        let requests = self.lock();
        requests.open.is_empty() && requests.since.elapsed() >= most
    }

    /// Whether the client has taken nothing of some answer for that long.
    pub fn stalled(&self, most: Duration) -> bool {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        let now = self.now_ms();
        let given =
            |request: &Weak<AtomicU64>| request.upgrade().map_or(0, |given| given.load(Ordering::Relaxed));
        self.lock().open.iter().map(given).any(|given| given > 0 && now.saturating_sub(given) >= most)
    }
}

impl Busy {
    /// The client has a part of the answer, and is to ask for the next one.
    pub fn gave(&self) {
        self.given.store(self.rest.now_ms().max(1), Ordering::Relaxed);
    }

    /// The client asks for the next part.
    pub fn asked(&self) {
        self.given.store(0, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut requests = self.rest.lock();
        let own = Arc::downgrade(&self.given);
        requests.open.retain(|request| !request.ptr_eq(&own));
        requests.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_when_its_last_request_has_ended() {
        let rest = Rest::new();
        let busy = rest.busy();
        sleep(MINUTE * 5).await;
        assert!(!rest.longer_than(MINUTE));
        drop(busy);
        assert!(!rest.longer_than(MINUTE));
        sleep(MINUTE).await;
        assert!(rest.longer_than(MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_may_be_silent_and_a_client_may_not_be_deaf() {
        let rest = Rest::new();
        let (silent, deaf) = (rest.busy(), rest.busy());
        silent.gave();
        silent.asked();
        deaf.gave();
        sleep(MINUTE / 2).await;
        deaf.asked();
        sleep(MINUTE * 5).await;
        assert!(!rest.stalled(MINUTE), "both wait for the machine");
        deaf.gave();
        sleep(MINUTE).await;
        assert!(rest.stalled(MINUTE));
    }
}
