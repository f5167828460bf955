//! Compress or not: decided by what each has cost so far.
//!
//! Between two hosts the limit is the wire, or encryption where AES has no hardware; either way LZ4 pays as soon as pages
//! shrink. On a fast link with fast AES it does not. So both are timed, in bytes of *content* a second, and the better one is
//! used; every now and then the other is tried again, since guests change what they write.

use std::sync::Mutex;
use std::time::Duration;

use super::progress::lock;

/// Every so many frames the worse way is tried.
const PROBE: u64 = 16;
/// Less content than this tells nothing.
const TELLING: u64 = 32 << 10;

/// Shared by all streams of a migration.
#[derive(Debug, Default)]
pub struct Chooser {
    known: Mutex<Known>,
}

/// Picoseconds a byte of content, smoothed.
#[derive(Debug, Default)]
struct Known {
    plain: Option<u64>,
    packed: Option<u64>,
    frames: u64,
}

impl Known {
    fn packing_pays(&self) -> bool {
        match (self.plain, self.packed) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(plain), Some(packed)) => packed < plain,
        }
    }
}

impl Chooser {
    /// Whether to compress the next frame.
    #[must_use]
    pub fn next(&self) -> bool {
        let mut known = lock(&self.known);
        known.frames += 1;
        known.packing_pays() != known.frames.is_multiple_of(PROBE)
    }

    /// Whether compression is the better way, as far as is known. For frames that are no place to try things.
    #[must_use]
    pub fn best(&self) -> bool {
        lock(&self.known).packing_pays()
    }

    /// What sending `content` bytes has cost.
    pub fn learn(&self, packed: bool, content: u64, took: Duration) {
        if content < TELLING {
            return;
        }
        let cost = u64::try_from(took.as_nanos() * 1000 / u128::from(content)).unwrap_or(u64::MAX);
        let mut known = lock(&self.known);
        let place = if packed { &mut known.packed } else { &mut known.plain };
        *place = Some(place.map_or(cost, |old| old / 4 * 3 + cost / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(chooser: &Chooser, plain_ms: u64, packed_ms: u64) -> usize {
        let step = |_| {
            let packed = chooser.next();
            let took = Duration::from_millis(if packed { packed_ms } else { plain_ms });
            chooser.learn(packed, 1 << 20, took);
            packed
        };
        (0..100).map(step).filter(|packed| *packed).count()
    }

    #[test]
    fn the_cheaper_way_is_taken_and_the_other_tried_now_and_then() {
        let chooser = Chooser::default();
        let packed = train(&chooser, 20, 5);
        assert!((90..100).contains(&packed), "{packed}");
        assert!(chooser.best());
    }

    #[test]
    fn it_changes_its_mind_when_the_guest_does() {
        let chooser = Chooser::default();
        train(&chooser, 20, 5);
        let packed = train(&chooser, 1, 30);
        assert!(packed < 30, "{packed}");
        assert!(!chooser.best());
    }
}
