//! What changed lately in a view, so that a projection of a million records costs what changed and not what there is.
//!
//! A trail is the last steps of a view, each with a number that no other step of this process has. Who has an older view finds its last step
//! in the trail of the newer one, and after it the keys of all that changed since. A view that is not an ancestor, or too old a one, has a last
//! step that is not there: then nothing is known, and both views have to be compared.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::Key;

/// Steps that are remembered: who looks more seldom compares views.
const STEPS: usize = 256;

/// Keys that are remembered, of all steps together.
const KEYS: usize = 16_384;

/// The last steps, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    steps: VecDeque<Arc<Step>>,
    keys: usize,
}

#[derive(Debug)]
struct Step {
    number: u64,
    keys: Box<[Key]>,
}

/// How a view came about is no part of what it says.
impl PartialEq for Trail {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Trail {
    /// One step more: these records are other ones now.
    pub(super) fn step(&mut self, keys: Vec<Key>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.keys += keys.len();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.steps.push_back(Arc::new(Step { number, keys: keys.into() }));
        // The newest stays, however large: it is what the next view is compared by.
        while self.steps.len() > STEPS || (self.keys > KEYS && self.steps.len() > 1) {
            let gone = self.steps.pop_front();
            self.keys -= gone.map_or(0, |step| step.keys.len());
        }
    }

    /// Which records changed after `before`; none: nobody knows.
    pub(super) fn since(&self, before: &Self) -> Option<BTreeSet<&Key>> {
        let last = before.steps.back()?.number;
        let at = self.steps.iter().rposition(|step| step.number == last)?;
        Some(self.steps.iter().skip(at + 1).flat_map(|step| step.keys.iter()).collect())
    }
}
