//! The last bytes the guest wrote to its serial console.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// How much is kept, in bytes.
pub const CAPACITY: usize = 256 * 1024;

/// A ring of [`CAPACITY`] bytes; the oldest go first. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ConsoleRing(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleRing {
    /// All that is kept, oldest first.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().copied().collect()
    }
}

impl io::Write for ConsoleRing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = &bytes[bytes.len().saturating_sub(CAPACITY)..];
        let overflow = (ring.len() + tail.len()).saturating_sub(CAPACITY);
        ring.drain(..overflow);
        ring.extend(tail);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_bytes_and_no_more_than_its_capacity() {
        let mut ring = ConsoleRing::default();
        ring.write_all(&vec![b'a'; CAPACITY]).unwrap();
        ring.write_all(b"tail").unwrap();
        let seen = ring.contents();
        assert_eq!(seen.len(), CAPACITY);
        assert_eq!(&seen[CAPACITY - 5..], b"atail");
    }

    #[test]
    fn one_write_larger_than_the_ring_keeps_its_end() {
        let mut ring = ConsoleRing::default();
        let mut big = vec![0; CAPACITY];
        big.extend(b"end");
        ring.write_all(&big).unwrap();
        assert!(ring.contents().ends_with(b"end"));
        assert_eq!(ring.contents().len(), CAPACITY);
    }
}
