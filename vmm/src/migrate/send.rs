//! Source: rounds of pages and blocks over the data streams.
//!
//! Each stream has its own connection and thread and takes the next batch of the round when it is free. A round is over
//! when every batch was written; the destination learns from [`Message::RoundEnd`] how many frames each stream carried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::frame::Encoder;
use super::link::{ALIVE, Link};
use super::machine::{DiskSide, RamRegion};
use super::packing::Chooser;
use super::region::PageRun;
use super::{disk, ram};
use crate::priority::Background;

/// What one frame carries.
#[derive(Clone, Debug)]
pub enum Batch {
    /// Runs of pages, at most [`ram::BATCH_PAGES`] in all.
    Pages(Vec<PageRun>),
    /// Blocks of one disk.
    Blocks {
        /// Its index.
        disk: usize,
        /// The first block.
        first: u64,
        /// How many.
        count: u32,
    },
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of frames of pages.
    pub ram_bytes: u64,
    /// Bytes of frames of blocks.
    pub disk_bytes: u64,
    /// All pages.
    pub pages: u64,
    /// Those that went as a flag.
    pub zero_pages: u64,
    /// Bytes of pages and blocks that went as data, before compression.
    pub content: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.ram_bytes += other.ram_bytes;
        self.disk_bytes += other.disk_bytes;
        self.pages += other.pages;
        self.zero_pages += other.zero_pages;
        self.content += other.content;
    }
}

/// Where batches take their bytes from.
pub struct Material {
    /// The guest's RAM.
    pub regions: Vec<RamRegion>,
    /// The disks.
    pub disks: Vec<Arc<dyn DiskSide>>,
    /// Whether they are compressed.
    pub packing: Chooser,
}

impl Material {
    /// Appends a batch's frame.
    ///
    /// # Errors
    /// When a disk cannot be read.
    pub fn encode(
        &self,
        batch: &Batch,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> Result<()> {
        match batch {
            Batch::Pages(runs) => ram::encode(&self.regions, runs, encoder, out, tally),
            Batch::Blocks { disk, first, count } => {
                disk::encode(&self.disks, (*disk, *first, *count), encoder, out, tally)
            }
        }
    }
}

/// A round's batches, taken one by one by whoever is free.
struct Round {
    batches: Vec<Batch>,
    next: AtomicUsize,
}

struct Done {
    stream: usize,
    result: Result<(u64, Tally)>,
}

/// The data streams.
pub struct Pool {
    jobs: Vec<Sender<Arc<Round>>>,
    threads: Vec<JoinHandle<()>>,
    done: Receiver<Done>,
    /// Frames that each stream has carried.
    counts: Vec<u64>,
}

impl Pool {
    /// Starts a thread for each link.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(links: Vec<Link>, material: &Arc<Material>) -> Result<Self> {
        let (report, done) = channel();
        let mut pool = Self { jobs: Vec::new(), threads: Vec::new(), done, counts: vec![0; links.len()] };
        for (stream, link) in links.into_iter().enumerate() {
            let (job, jobs) = channel();
            let (material, report) = (Arc::clone(material), report.clone());
            let work = move || work(stream, link, &material, &jobs, &report);
            let name = format!("migrate-out-{}", stream + 1);
            pool.threads
                .push(std::thread::Builder::new().name(name).spawn(work).context("starting a data stream")?);
            pool.jobs.push(job);
        }
        Ok(pool)
    }

    /// Sends a round and waits until it is written. `alive` is called while that takes long.
    ///
    /// # Errors
    /// The first error of a stream, or that of `alive`.
    pub fn round(&mut self, batches: Vec<Batch>, mut alive: impl FnMut() -> Result<()>) -> Result<Tally> {
        let round = Arc::new(Round { batches, next: AtomicUsize::new(0) });
        for job in &self.jobs {
            job.send(Arc::clone(&round)).ok().context("a data stream has ended")?;
        }
        let mut tally = Tally::default();
        let mut busy = self.jobs.len();
        while busy > 0 {
            match self.done.recv_timeout(ALIVE) {
                Ok(Done { stream, result }) => {
                    let (frames, part) =
                        result.with_context(|| format!("sending on data stream {}", stream + 1))?;
                    if let Some(count) = self.counts.get_mut(stream) {
                        *count += frames;
                    }
                    tally += part;
                    busy -= 1;
                }
                Err(RecvTimeoutError::Timeout) => alive()?,
                Err(RecvTimeoutError::Disconnected) => bail!("the data streams have ended"),
            }
        }
        Ok(tally)
    }

    /// Frames that each stream has carried since the start.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Ends the threads. Their sockets must be shut down before if they may be blocked.
    pub fn join(self) {
        drop(self.jobs);
        for thread in self.threads {
            // A stream that panicked has reported nothing, which failed its round already.
            let _ = thread.join();
        }
    }
}

fn work(
    stream: usize,
    mut link: Link,
    material: &Material,
    jobs: &Receiver<Arc<Round>>,
    report: &Sender<Done>,
) {
    let mut priority = Background::new();
    while let Ok(round) = jobs.recv() {
        let result = send(&mut link, material, &round, &mut priority);
        let failed = result.is_err();
        if report.send(Done { stream, result }).is_err() || failed {
            return;
        }
    }
    link.close();
}

fn send(
    link: &mut Link,
    material: &Material,
    round: &Round,
    priority: &mut Background,
) -> Result<(u64, Tally)> {
    let (mut frames, mut tally) = (0, Tally::default());
    while let Some(batch) = round.batches.get(round.next.fetch_add(1, Ordering::Relaxed)) {
        priority.go_on();
        let (packed, start, before) = (material.packing.next(), Instant::now(), tally.content);
        link.send_with(|encoder, out| {
            encoder.pack(packed);
            material.encode(batch, encoder, out, &mut tally)
        })?;
        material.packing.learn(packed, tally.content - before, start.elapsed());
        frames += 1;
    }
    Ok((frames, tally))
}
