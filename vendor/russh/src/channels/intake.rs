//! What has arrived for a channel and nobody has read yet.
//!
//! The window that the peer is granted covers what was *read*, not what arrived, so that a reader who stalls holds back the
//! writer of its own channel. The session's loop then has nothing to wait for and goes on serving the other channels, and the
//! window adjustments in the other direction, which the reader itself may be waiting for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// Shared by a channel's reading half and the session's loop.
#[derive(Debug, Default)]
pub struct Intake {
    /// Bytes that wait in the channel's queue.
    unread: AtomicUsize,
    /// The reading half is gone: what arrives is dropped, and so counts as read.
    gone: AtomicBool,
    /// The loop withholds window until fewer bytes than this are unread; 0 when it withholds none.
    wake_below: AtomicUsize,
    /// The loop's own, there when window was withheld for the first time.
    wake: OnceLock<Arc<Notify>>,
}

impl Intake {
    /// The loop is about to queue that many bytes.
    pub(crate) fn arrived(&self, length: usize) {
        self.unread.fetch_add(length, Ordering::SeqCst);
    }

    /// The reader took that many bytes.
    pub(crate) fn taken(&self, length: usize) {
        let before = self.unread.fetch_sub(length, Ordering::SeqCst);
        if before.saturating_sub(length) < self.wake_below.load(Ordering::SeqCst) {
            self.notify();
        }
    }

    /// Nobody will read any more.
    pub(crate) fn abandon(&self) {
        self.gone.store(true, Ordering::SeqCst);
        if self.is_withheld() {
            self.notify();
        }
    }

    pub(crate) fn unread(&self) -> usize {
        if self.gone.load(Ordering::SeqCst) {
            return 0;
        }
        self.unread.load(Ordering::SeqCst)
    }

    /// Window is withheld: the reader wakes the loop once fewer than `below` bytes are unread.
    pub(crate) fn withhold(&self, below: usize, wake: &Arc<Notify>) {
        self.wake.get_or_init(|| Arc::clone(wake));
        self.wake_below.store(below, Ordering::SeqCst);
    }

    /// Window was granted.
    pub(crate) fn granted(&self) {
        self.wake_below.store(0, Ordering::SeqCst);
    }

    pub(crate) fn is_withheld(&self) -> bool {
        self.wake_below.load(Ordering::SeqCst) > 0
    }

    fn notify(&self) {
        if let Some(wake) = self.wake.get() {
            wake.notify_one();
        }
    }
}
