//! Frames on their way to the guest: what came with a migration, then what the tap holds.
//!
//! Invariant: the guest gets every frame once and in order, whichever side delivers it. A frame that was read from the tap and found
//! no room in the guest stays at the head of the backlog; the source of a migration takes backlog and tap queue along; frames
//! taken for a migration that then failed go back to the head.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::LARGEST;
use super::tap::{self, Tap};

/// How many frames one [`Frames::take`] gives at most.
const TAKE: usize = 512;
/// How many frames the backlog holds; more come only from a hostile source.
const BACKLOG: usize = 65536;

/// The frames of one device, shared by its thread and a migration.
#[derive(Debug)]
pub struct Frames {
    tap: Arc<Tap>,
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    backlog: VecDeque<Vec<u8>>,
    taken: Vec<Vec<u8>>,
}

impl Frames {
    pub(super) fn new(tap: Arc<Tap>) -> Self {
        Self { tap, queues: Mutex::default() }
    }

    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame of the backlog.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        self.queues().backlog.pop_front()
    }

    /// A frame that found no room.
    pub(super) fn put_back(&self, frame: Vec<u8>) {
        self.queues().backlog.push_front(frame);
    }

    /// Everything that waits for the guest, at most a few hundred frames a call. The device is quiesced.
    ///
    /// # Errors
    /// When the tap cannot be read.
    pub fn take(&self) -> Result<Vec<Vec<u8>>> {
        let mut queues = self.queues();
        let mut frames: Vec<_> = queues.backlog.drain(..).collect();
        let mut buffer = vec![0; LARGEST];
        while frames.len() < TAKE {
            let read = self.tap.read(&mut buffer);
            match read.with_context(|| format!("read what waits in tap {}", self.tap.name()))? {
                Some(length) => frames.push(buffer[..length].to_vec()),
                None => break,
            }
        }
        queues.taken.extend(frames.iter().cloned());
        Ok(frames)
    }

    /// Waits until one of the taps holds a frame, at most so long.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait<'a>(all: impl IntoIterator<Item = &'a Self>, longest: Duration) -> Result<()> {
        let taps: Vec<_> = all.into_iter().map(|frames| frames.tap.as_raw_fd()).collect();
        tap::wait_readable(&taps, longest).context("wait for frames in the taps")
    }

    /// The migration failed: the guest gets here what was taken.
    pub fn untake(&self) {
        let mut queues = self.queues();
        for frame in std::mem::take(&mut queues.taken).into_iter().rev() {
            queues.backlog.push_front(frame);
        }
    }

    /// The frames taken are the destination's now.
    pub fn forget_taken(&self) {
        self.queues().taken.clear();
    }

    /// Adds frames that came with a migration, ahead of everything in the tap. Frames that cannot be frames are dropped.
    pub fn inject(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        let mut queues = self.queues();
        let sane = |frame: &Vec<u8>| (super::HEADER..=LARGEST).contains(&frame.len());
        queues.backlog.extend(frames.into_iter().filter(sane));
        queues.backlog.truncate(BACKLOG);
    }
}
