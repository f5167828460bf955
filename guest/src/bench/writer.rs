//! A memory writer: rewrites so many MiB at so many MiB/s, and checks on every page that nothing but itself has changed it.
//!
//! Each page begins with a 64-bit tag made of its index and the round in which it was written, and repeats it to its end. Before
//! a page is rewritten its tag must be that of the round before: a page that a migration lost, or sent in an old version, is
//! counted as a mismatch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
const PAGES_PER_MIB: usize = (1 << 20) / PAGE;
const TICK: Duration = Duration::from_millis(5);

/// The most memory a writer takes, in MiB.
pub const MAX_MIB: usize = 64 * 1024;

/// The machine's one writer.
#[derive(Clone, Default)]
pub struct Writer {
    running: Arc<Mutex<Option<Running>>>,
}

struct Running {
    mib: usize,
    mib_per_s: u64,
    counters: Arc<Counters>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    pages: AtomicU64,
    mismatches: AtomicU64,
}

/// What the writer does and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// The memory it rewrites; 0 when none runs.
    pub mib: usize,
    /// The rate asked for.
    pub mib_per_s: u64,
    /// Pages written since it started.
    pub pages: u64,
    /// Words of pages that were not as it had left them.
    pub mismatches: u64,
}

impl Writer {
    /// Starts rewriting `mib` MiB at `mib_per_s` MiB/s, in place of what ran before.
    pub fn start(&self, mib: usize, mib_per_s: u64) -> Result<()> {
        if mib == 0 || mib > MAX_MIB || mib_per_s == 0 {
            bail!("a writer takes 1 to {MAX_MIB} MiB and at least 1 MiB/s");
        }
        let mut running = self.lock();
        stop(running.take());
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(mib * PAGES_PER_MIB * WORDS)
            .with_context(|| format!("{mib} MiB of memory"))?;
        let counters = Arc::new(Counters::default());
        let for_thread = Arc::clone(&counters);
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || write(memory, mib * PAGES_PER_MIB, mib_per_s, &for_thread))
            .context("starting the writer's thread")?;
        *running = Some(Running { mib, mib_per_s, counters, thread });
        Ok(())
    }

    /// Ends it; the last counters.
    pub fn stop(&self) -> Progress {
        let mut running = self.lock();
        let progress = progress(running.as_ref());
        stop(running.take());
        progress
    }

    /// What it does.
    pub fn progress(&self) -> Progress {
        progress(self.lock().as_ref())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // A thread that died while it held the lock leaves a whole `Option` behind.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn progress(running: Option<&Running>) -> Progress {
    running.map_or_else(Progress::default, |running| Progress {
        mib: running.mib,
        mib_per_s: running.mib_per_s,
        pages: running.counters.pages.load(Ordering::Relaxed),
        mismatches: running.counters.mismatches.load(Ordering::Relaxed),
    })
}

fn stop(running: Option<Running>) {
    if let Some(running) = running {
        running.counters.stop.store(true, Ordering::SeqCst);
        let _ = running.thread.join();
    }
}

fn write(mut memory: Vec<u64>, pages: usize, mib_per_s: u64, counters: &Counters) {
    memory.resize(pages * WORDS, 0);
    let rate = mib_per_s.saturating_mul(256);
    let (mut round, mut index) = (1_u64, 0_usize);
    let mut last = Instant::now();
    let mut owed_us = 0_u64;
    while !counters.stop.load(Ordering::SeqCst) {
        thread::sleep(TICK);
        // Time in which the machine did not run is not made up for: the rate is a rate, not a total.
        let elapsed = last.elapsed().min(TICK * 10);
        last = Instant::now();
        owed_us += u64::try_from(elapsed.as_micros()).unwrap_or(0) * rate;
        let due = owed_us / 1_000_000;
        owed_us %= 1_000_000;
        for _ in 0..due {
            // What is due at a rate that this machine cannot keep may take minutes to write.
            if counters.stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(page) = memory.get_mut(index * WORDS..(index + 1) * WORDS) else { return };
            let wrong = rewrite(page, index, round);
            counters.mismatches.fetch_add(wrong, Ordering::Relaxed);
            counters.pages.fetch_add(1, Ordering::Relaxed);
            index += 1;
            if index == pages {
                (index, round) = (0, round + 1);
            }
        }
    }
}

/// Rewrites a page for this round; returns how many of its words were not those of the round before.
fn rewrite(page: &mut [u64], index: usize, round: u64) -> u64 {
    let expected = if round == 1 { 0 } else { tag(index, round - 1) };
    let new = tag(index, round);
    let mut wrong = 0;
    for word in page {
        wrong += u64::from(*word != expected);
        *word = new;
    }
    wrong
}

/// No two pages and no two rounds share a tag (until 2^32 of either), and none is 0.
fn tag(index: usize, round: u64) -> u64 {
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    (index << 32) | (round & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_an_old_version_is_a_mismatch() {
        let mut page = vec![0; WORDS];
        assert_eq!(rewrite(&mut page, 7, 1), 0);
        let old = page.clone();
        assert_eq!(rewrite(&mut page, 7, 2), 0);
        page.copy_from_slice(&old);
        assert_eq!(rewrite(&mut page, 7, 3), u64::try_from(WORDS).unwrap());
    }

    #[test]
    fn the_writer_keeps_its_rate_and_its_memory_whole() {
        let writer = Writer::default();
        writer.start(1, 20).unwrap();
        thread::sleep(Duration::from_millis(300));
        let progress = writer.stop();
        assert!((200..3000).contains(&progress.pages), "{progress:?}");
        assert_eq!(progress.mismatches, 0);
        assert_eq!(writer.progress(), Progress::default());
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        let writer = Writer::default();
        assert!(writer.start(0, 1).is_err());
        assert!(writer.start(1, 0).is_err());
        assert!(writer.start(MAX_MIB + 1, 1).is_err());
    }
}
