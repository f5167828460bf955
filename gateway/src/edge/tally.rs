//! How many of something a machine has at once, with a bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by key.
#[derive(Debug)]
pub struct Tally<K: Eq + Hash + Clone>(Mutex<HashMap<K, usize>>);

/// One of them, given back when dropped.
#[derive(Debug)]
pub struct Held<K: Eq + Hash + Clone> {
    tally: Arc<Tally<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Tally<K> {
    /// Nothing is held.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// One more of `key`, unless there are `most` already.
    pub fn enter(self: &Arc<Self>, key: K, most: usize) -> Option<Held<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Held { tally: Arc::clone(self), key })
    }
}

impl<K: Eq + Hash + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        let mut counts = self.tally.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_bound_and_nothing_is_remembered_of_who_has_gone() {
        let tally = Tally::new();
        let held = [tally.enter("a", 2), tally.enter("a", 2)];
        assert!(held.iter().all(Option::is_some) && tally.enter("a", 2).is_none());
        assert!(tally.enter("b", 2).is_some());
        drop(held);
        assert!(tally.enter("a", 2).is_some());
        assert!(tally.0.lock().unwrap().is_empty());
    }
}
