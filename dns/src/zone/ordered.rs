//! An ordered map whose copies share what they have in common: a million entries, one of which changes while others are read.
//!
//! Two levels: leaves of at most [`FULL`] entries, each shared until it is changed, and one row of them. A copy costs a
//! counter a leaf, a change the copy of one leaf; readers never wait and see one moment.

use std::borrow::Borrow;
use std::sync::Arc;

/// A leaf of so many entries is split.
const FULL: usize = 96;

/// What leaves are filled to when all is made at once: some are added before the first is split.
const FILL: usize = 72;

/// The map.
#[derive(Debug, Clone)]
pub struct Ordered<K, V> {
    leaves: Vec<Leaf<K, V>>,
    len: usize,
}

/// Never empty.
#[derive(Debug, Clone)]
struct Leaf<K, V> {
    /// A copy of its first key: to find a leaf, no leaf is touched.
    first: K,
    items: Arc<Items<K, V>>,
}

/// Keys apart from values, so that a search touches few cache lines.
#[derive(Debug, Clone, Default)]
struct Items<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self { leaves: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Ordered<K, V> {
    /// All at once, in any order; of equal keys the last counts.
    pub fn from_unsorted(mut entries: Vec<(K, V)>) -> Self {
        entries.sort_by(|one, two| one.0.cmp(&two.0));
        let mut map = Self::default();
        let mut entries = entries.into_iter().peekable();
        let mut items = Items { keys: Vec::with_capacity(FILL), values: Vec::with_capacity(FILL) };
        while let Some((key, value)) = entries.next() {
            if entries.peek().is_some_and(|next| next.0 == key) {
                continue;
            }
            items.keys.push(key);
            items.values.push(value);
            map.len += 1;
            if items.keys.len() == FILL {
                let full = Items { keys: Vec::with_capacity(FILL), values: Vec::with_capacity(FILL) };
                map.leaves.extend(Leaf::new(std::mem::replace(&mut items, full)));
            }
        }
        items.keys.shrink_to_fit();
        items.values.shrink_to_fit();
        map.leaves.extend(Leaf::new(items));
        map
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What is at `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let items = &self.leaves.get(self.leaf_of(key)?)?.items;
        items.values.get(items.position(key).ok()?)
    }

    /// Puts `value` at `key`, in place of what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.leaf_of(&key).unwrap_or(0);
        let Some(leaf) = self.leaves.get_mut(index) else {
            self.leaves.extend(Leaf::new(Items { keys: vec![key], values: vec![value] }));
            self.len += 1;
            return None;
        };
        let items = Arc::make_mut(&mut leaf.items);
        match items.position(&key) {
            Ok(at) => return items.values.get_mut(at).map(|old| std::mem::replace(old, value)),
            Err(at) => {
                // Exactly: doubling would leave half of the memory unused.
                items.keys.reserve_exact(1);
                items.values.reserve_exact(1);
                items.keys.insert(at, key.clone());
                items.values.insert(at, value);
                self.len += 1;
                if at == 0 {
                    leaf.first = key;
                }
            }
        }
        if items.keys.len() > FULL {
            let upper =
                Items { keys: items.keys.split_off(FULL / 2), values: items.values.split_off(FULL / 2) };
            items.keys.shrink_to_fit();
            items.values.shrink_to_fit();
            if let Some(upper) = Leaf::new(upper) {
                self.leaves.insert(index + 1, upper);
            }
        }
        None
    }

    /// Takes what is at `key` away.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let index = self.leaf_of(key)?;
        let leaf = self.leaves.get_mut(index)?;
        let at = leaf.items.position(key).ok()?;
        let items = Arc::make_mut(&mut leaf.items);
        items.keys.remove(at);
        let removed = items.values.remove(at);
        self.len -= 1;
        match items.keys.first() {
            Some(first) => leaf.first = first.clone(),
            None => {
                self.leaves.remove(index);
            }
        }
        Some(removed)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.leaves.iter().flat_map(|leaf| leaf.items.keys.iter().zip(&leaf.items.values))
    }

    /// Entries in order from `key` on, itself included.
    pub fn iter_from<'a, Q: Ord + ?Sized>(
        &'a self,
        key: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V, Q>
    where
        K: Borrow<Q>,
    {
        let index = self.leaf_of(key).unwrap_or(0);
        let skipped = self.leaves.get(index).map_or(0, |leaf| match leaf.items.position(key) {
            Ok(at) | Err(at) => at,
        });
        let leaves = self.leaves.get(index..).unwrap_or_default();
        leaves.iter().flat_map(|leaf| leaf.items.keys.iter().zip(&leaf.items.values)).skip(skipped)
    }

    /// The leaf that `key` is in, if it is in any; none below the first.
    fn leaf_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        self.leaves.partition_point(|leaf| leaf.first.borrow() <= key).checked_sub(1)
    }
}

impl<K: Clone, V> Leaf<K, V> {
    fn new(items: Items<K, V>) -> Option<Self> {
        let first = items.keys.first()?.clone();
        Some(Self { first, items: Arc::new(items) })
    }
}

impl<K: Ord, V> Items<K, V> {
    fn position<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.keys.binary_search_by(|known| known.borrow().cmp(key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_behaves_as_the_standard_ordered_map(
            start in prop::collection::vec((any::<u16>(), any::<u8>()), 0..600),
            changes in prop::collection::vec((0u16..2000, prop::option::of(any::<u8>())), 0..600),
        ) {
            let mut model: BTreeMap<u16, u8> = start.iter().copied().collect();
            let mut map = Ordered::from_unsorted(start);
            let before = map.clone();
            let model_before = model.clone();
            for (key, change) in changes {
                match change {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.iter_from(&key).next(), model.range(key..).next());
            }
            prop_assert!(map.iter().eq(model.iter()));
            prop_assert_eq!(map.len(), model.len());
            prop_assert!(before.iter().eq(model_before.iter()), "an older copy stays as it was");
        }
    }
}
