//! The last changes of a zone, for secondaries that have a serial of a while ago (RFC 1995).
//!
//! In memory: after a restart a secondary gets the whole zone once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::copy::{Difference, Wire, ZoneCopy};

/// Changes that are kept.
const MOST_STEPS: usize = 1000;

/// Bytes of records that are kept.
const MOST_BYTES: usize = 16 << 20;

/// One change.
#[derive(Debug)]
pub struct Step {
    from: u32,
    /// The SOA before and after.
    soa: (Wire, Wire),
    difference: Difference,
    bytes: usize,
}

/// The zone now, and how it came to that.
#[derive(Debug, Clone)]
pub struct Published {
    copy: Arc<ZoneCopy>,
    steps: VecDeque<Arc<Step>>,
    bytes: usize,
}

/// What a secondary with some serial gets.
#[derive(Debug)]
pub enum Since {
    /// It is up to date: the SOA tells it so.
    Nothing,
    /// These records, between the newest SOA at the beginning and at the end.
    Changes(Vec<Wire>),
    /// All of it.
    Everything,
}

impl Published {
    /// The first version that is known.
    pub fn first(copy: Arc<ZoneCopy>) -> Self {
        Self { copy, steps: VecDeque::new(), bytes: 0 }
    }

    /// With a newer version.
    pub fn then(&self, copy: Arc<ZoneCopy>) -> Self {
        let difference = copy.since(&self.copy);
        let (Some(before), Some(after)) = (self.copy.soa(), copy.soa()) else { return Self::first(copy) };
        let bytes = difference.removed.iter().chain(&difference.added).map(|record| record.len()).sum();
        let soa = (Arc::clone(before), Arc::clone(after));
        let step = Step { from: self.copy.serial(), soa, difference, bytes };
        let mut next = Self { copy, steps: self.steps.clone(), bytes: self.bytes + bytes };
        next.steps.push_back(Arc::new(step));
        while next.steps.len() > MOST_STEPS || next.bytes > MOST_BYTES {
            let Some(oldest) = next.steps.pop_front() else { break };
            next.bytes -= oldest.bytes;
        }
        next
    }

    /// The zone.
    pub fn copy(&self) -> &Arc<ZoneCopy> {
        &self.copy
    }

    /// What a secondary with that serial lacks.
    pub fn since(&self, serial: u32) -> Since {
        // RFC 1982: one that is ahead of us has heard of another server what we are about to hear.
        let behind = self.copy.serial().wrapping_sub(serial);
        if behind == 0 || behind >= 1 << 31 {
            return Since::Nothing;
        }
        let Some(begin) = self.steps.iter().position(|step| step.from == serial) else {
            return Since::Everything;
        };
        let steps = || self.steps.iter().skip(begin);
        let count: usize =
            steps().map(|step| step.difference.removed.len() + step.difference.added.len() + 2).sum();
        if count > self.copy.len() {
            return Since::Everything;
        }
        let mut records = Vec::with_capacity(count);
        for step in steps() {
            records.push(Arc::clone(&step.soa.0));
            records.extend(step.difference.removed.iter().cloned());
            records.push(Arc::clone(&step.soa.1));
            records.extend(step.difference.added.iter().cloned());
        }
        Since::Changes(records)
    }
}
