//! How much of a service one machine takes at once (`concurrency` of its owner).
//!
//! Up to `soft_limit` all go on. Between the two limits they wait, first come first served, for one that ends. At `hard_limit` (those that wait
//! counted) the next are refused at once: a queue that only grows helps nobody.
//!
//! At a port with the handler `http` it is requests that are counted, whatever the owner's `type` is: a client's connection that rests
//! costs the machine nothing. At other ports it is connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::id::MachineId;
use mashines_fleet::record::services::{Concurrency, Service};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long one waits for a place.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A service of a machine.
type Which = (MachineId, u16);

/// The two limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    soft: usize,
    hard: usize,
}

impl Limits {
    /// What the owner said, within what the edge allows.
    fn of(told: Option<&Concurrency>, most: usize) -> Self {
        let number = |limit: Option<u32>| limit.and_then(|limit| usize::try_from(limit).ok());
        let hard = told.and_then(|told| number(told.hard_limit)).unwrap_or(most).min(most);
        let soft = told.and_then(|told| number(told.soft_limit)).unwrap_or(hard).min(hard);
        Self { soft, hard }
    }
}

#[derive(Debug)]
struct Room {
    limits: Limits,
    /// As many as go on at once.
    free: Arc<Semaphore>,
    /// Those that go on and those that wait.
    there: AtomicUsize,
}

/// A place of one request or connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _there: There,
}

#[derive(Debug)]
struct There(Arc<Room>);

impl Drop for There {
    fn drop(&mut self) {
        self.0.there.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// At the hard limit.
    #[error("it has {0} at once already, which is the most")]
    Full(usize),
    /// No place became free.
    #[error("{0} are under way, and none of them ended within {PATIENCE:?}")]
    Late(usize),
}

/// The places of all services.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<Which, Arc<Room>>>);

/// Above this many rooms, empty ones are forgotten.
const REMEMBERED: usize = 4096;

impl Places {
    /// Takes a place in a service of a machine; `most` is what the edge allows any service.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub async fn enter(&self, machine: &MachineId, service: &Service, most: usize) -> Result<Place, NoPlace> {
        let limits = Limits::of(service.concurrency.as_ref(), most);
        let room = self.room((machine.clone(), service.internal_port), limits);
        let before = room.there.fetch_add(1, Ordering::Relaxed);
        let there = There(Arc::clone(&room));
        if before >= limits.hard {
            return Err(NoPlace::Full(limits.hard));
        }
        let free = Arc::clone(&room.free);
        let permit = match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => permit,
            // In a box: most find a place at once.
            Err(_none) => match Box::pin(timeout(PATIENCE, free.acquire_owned())).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => return Err(NoPlace::Late(limits.soft)),
            },
        };
        Ok(Place { _permit: permit, _there: there })
    }

    /// A service's room. When its owner changed the limits it is a new one: who is in the old one ends there.
    fn room(&self, which: Which, limits: Limits) -> Arc<Room> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = rooms.get(&which).filter(|room| room.limits == limits) {
            return Arc::clone(room);
        }
        if rooms.len() >= REMEMBERED {
            rooms.retain(|_, room| room.there.load(Ordering::Relaxed) > 0);
        }
        let room = Arc::new(Room {
            limits,
            free: Arc::new(Semaphore::new(limits.soft)),
            there: AtomicUsize::new(0),
        });
        rooms.insert(which, Arc::clone(&room));
        room
    }
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::services::{ConcurrencyKind, standard};

    use super::*;

    fn service(soft: u32, hard: u32) -> Service {
        let limits =
            Concurrency { kind: ConcurrencyKind::Requests, soft_limit: Some(soft), hard_limit: Some(hard) };
        Service { concurrency: Some(limits), ..standard().remove(0) }
    }

    #[tokio::test(start_paused = true)]
    async fn some_go_on_some_wait_and_the_rest_is_refused() {
        let (places, machine) = (Arc::new(Places::default()), MachineId::random());
        let service = service(2, 3);
        let enter = || places.enter(&machine, &service, 100);
        let first = enter().await.unwrap();
        let second = enter().await.unwrap();
        let waiting = tokio::spawn({
            let (places, machine, service) = (Arc::clone(&places), machine.clone(), service.clone());
            async move { places.enter(&machine, &service, 100).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(enter().await.unwrap_err(), NoPlace::Full(3));
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        let third = enter().await.unwrap();
        assert_eq!(enter().await.unwrap_err(), NoPlace::Late(2), "it waits for as long as anybody does");
        drop((second, third));
        assert!(enter().await.is_ok());
    }

    #[tokio::test]
    async fn who_sets_no_limit_has_the_edges() {
        let (places, machine, service) = (Places::default(), MachineId::random(), standard().remove(0));
        let enter = || places.enter(&machine, &service, 2);
        let held = [enter().await.unwrap(), enter().await.unwrap()];
        assert_eq!(enter().await.unwrap_err(), NoPlace::Full(2));
        drop(held);
    }
}
