//! A bitmap of blocks that several threads set and one takes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::num::index;

/// One bit a block.
#[derive(Debug)]
pub struct BlockBitmap {
    words: Vec<AtomicU64>,
    blocks: u64,
}

impl BlockBitmap {
    /// All clear.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let words = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, blocks }
    }

    /// Whether a block is set. Blocks outside are not.
    #[must_use]
    pub fn get(&self, block: u64) -> bool {
        let word = self.words.get(index(block / 64));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (block % 64) & 1 == 1)
    }

    /// Sets or clears a range; what lies outside is ignored.
    pub fn fill(&self, blocks: Range<u64>, value: bool) {
        let mut block = blocks.start;
        let end = blocks.end.min(self.blocks);
        while block < end {
            let (word, bit) = (block / 64, block % 64);
            let count = (64 - bit).min(end - block);
            let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
            let word = &self.words[index(word)];
            if value {
                word.fetch_or(mask, Ordering::AcqRel);
            } else {
                word.fetch_and(!mask, Ordering::AcqRel);
            }
            block += count;
        }
    }

    /// How many blocks from `block` on have the same value as it, at most `limit`.
    #[must_use]
    pub fn run_length(&self, block: u64, limit: u64) -> u64 {
        let value = self.get(block);
        let mut length = 1;
        while length < limit && self.get(block + length) == value {
            length += 1;
        }
        length
    }

    /// The set blocks as ascending ranges.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        runs_of(self.words.iter().map(|word| word.load(Ordering::Acquire)))
    }

    /// The set blocks as ascending ranges; clears them.
    #[must_use]
    pub fn take(&self) -> Vec<Range<u64>> {
        runs_of(self.words.iter().map(|word| word.swap(0, Ordering::AcqRel)))
    }
}

fn runs_of(words: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (base, mut word) in (0u64..).step_by(64).zip(words) {
        while word != 0 {
            let start = u64::from(word.trailing_zeros());
            let count = u64::from((!(word >> start)).trailing_zeros()).min(64 - start);
            match runs.last_mut() {
                Some(last) if last.end == base + start => last.end += count,
                _ => runs.push(base + start..base + start + count),
            }
            let below = start + count;
            word = if below == 64 { 0 } else { word >> below << below };
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_exactly_the_blocks_set(fills in prop::collection::vec((0u64..300, 0u64..80, any::<bool>()), 0..30)) {
            let bitmap = BlockBitmap::new(250);
            let mut model = BTreeSet::new();
            for (start, len, value) in fills {
                bitmap.fill(start..start + len, value);
                for block in start..(start + len).min(250) {
                    if value { model.insert(block); } else { model.remove(&block); }
                }
            }
            let seen: BTreeSet<u64> = bitmap.runs().into_iter().flatten().collect();
            prop_assert_eq!(&seen, &model);
            let runs = bitmap.take();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            prop_assert!(bitmap.runs().is_empty());
        }
    }
}
