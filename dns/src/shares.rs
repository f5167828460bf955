//! Places that many want: so many in all, and so many of them for one, so that nobody who takes all it gets leaves none for others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places, given out by key. Cheap to clone; clones give out the same places.
#[derive(Debug)]
pub struct Shares<K>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// `most` places in all, `most_of_one` of them for one key.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        let taken = Mutex::new(Taken { total: 0, by_key: HashMap::new() });
        Self(Arc::new(Inner { most, most_of_one, taken }))
    }

    /// A place; none when all are taken, or all that this one may have.
    pub fn take(&self, key: K) -> Option<Share<K>> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = taken.by_key.get(&key).copied().unwrap_or_default();
        if taken.total >= self.0.most || of_one >= self.0.most_of_one {
            return None;
        }
        taken.total += 1;
        taken.by_key.insert(key.clone(), of_one + 1);
        Some(Share { shares: self.clone(), key })
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash + Clone> {
    shares: Shares<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        if let Some(count) = taken.by_key.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_takes_its_share_and_leaves_the_rest_to_others() {
        let shares = Shares::new(3, 2);
        let held: Vec<_> = (0..5).filter_map(|_| shares.take("loud")).collect();
        assert_eq!(held.len(), 2);
        let other = shares.take("quiet");
        assert!(other.is_some() && shares.take("third").is_none(), "all are taken");
        drop(held);
        assert!(shares.take("third").is_some());
        drop(other);
        assert_eq!(shares.taken(), 0);
        assert!(shares.0.taken.lock().unwrap().by_key.is_empty(), "nobody is remembered");
    }
}
