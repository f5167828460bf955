//! Named spans of time, for [`crate::api::Figures::spans`].

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Microseconds, saturating.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Measures what comes one after the other.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    last: Instant,
    spans: Vec<(String, u64)>,
}

impl Default for Stopwatch {
    fn default() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, spans: Vec::new() }
    }
}

impl Stopwatch {
    /// Ends the span that began with the one before (or with the start) and names it.
    pub fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.spans.push((name.to_owned(), micros(now - self.last)));
        self.last = now;
    }

    /// Adds spans measured elsewhere, each name behind `prefix`. They lie within spans of this watch.
    pub fn within(&mut self, prefix: &str, spans: impl IntoIterator<Item = (String, u64)>) {
        self.spans.extend(spans.into_iter().map(|(name, us)| (format!("{prefix}{name}"), us)));
    }

    /// Since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The spans so far, leaving none.
    pub fn take(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.spans)
    }
}

/// What the destination tells of its part of the blackout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `(name, microseconds)`.
    pub spans: Vec<(String, u64)>,
}

impl Report {
    /// The spans as a message's JSON.
    #[must_use]
    pub fn encode(spans: Vec<(String, u64)>) -> Vec<u8> {
        serde_json::to_vec(&Self { spans }).unwrap_or_default()
    }

    /// Figures are for people: a report that cannot be read is an empty one, not a failed migration.
    #[must_use]
    pub fn decode(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_default()
    }
}
