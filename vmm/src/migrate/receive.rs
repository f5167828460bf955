//! Destination: pages and blocks off the data streams.
//!
//! One thread a stream applies frames and counts them. A round is complete when each stream's count has reached what the
//! source announced; the source starts the next only then, so a later copy of a page can never be overtaken by an
//! earlier one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::frame::{Entry, Header, Message, content, unpack};
use super::link::Link;
use super::machine::{DiskSide, RamRegion};
use super::progress::lock;
use super::{disk, ram};
use crate::priority::Background;

/// Where pages and blocks go.
pub struct Target {
    /// The guest's RAM.
    pub regions: Vec<RamRegion>,
    /// The disks.
    pub disks: Vec<Arc<dyn DiskSide>>,
}

impl Target {
    /// Applies a message of pages or blocks whose data comes next on `link`. Returns whether blocks were written.
    ///
    /// # Errors
    /// When it is anything else, lies outside, or cannot be written.
    pub fn apply(
        &self,
        header: &Header,
        message: &Message,
        link: &mut Link,
        buffers: &mut Buffers,
    ) -> Result<bool> {
        match message {
            Message::Pages(entries) => {
                ram::apply(&self.regions, entries, buffers.read(header, entries, link)?).map(|()| false)
            }
            Message::Blocks(entries) => {
                disk::apply(&self.disks, entries, buffers.read(header, entries, link)?).map(|()| true)
            }
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Ready
            | Message::RoundEnd { .. }
            | Message::RoundDone { .. }
            | Message::Pausing
            | Message::Sections(_)
            | Message::NetFrames(_)
            | Message::Prepared(_)
            | Message::HandedOver
            | Message::Running(_)
            | Message::Bye
            | Message::Abort(_)
            | Message::Alive => {
                bail!("pages or blocks were due, not {}", name(message))
            }
        }
    }

    /// Makes what was written durable, all disks at once.
    ///
    /// # Errors
    /// Names the disk.
    pub fn sync(&self) -> Result<()> {
        let writable: Vec<_> = self.disks.iter().filter(|disk| !disk.describe().read_only).collect();
        let sync = |disk: &Arc<dyn DiskSide>| {
            disk.sync().with_context(|| format!("syncing disk {}", disk.describe().id))
        };
        let Some((first, others)) = writable.split_first() else { return Ok(()) };
        std::thread::scope(|scope| {
            let others: Vec<_> = others.iter().map(|disk| scope.spawn(move || sync(disk))).collect();
            let mut result = sync(first);
            for other in others {
                result =
                    result.and(other.join().unwrap_or_else(|_| bail!("syncing a disk ended in a panic")));
            }
            result
        })
    }
}

/// The data of one frame: as it came, and unpacked.
#[derive(Default)]
pub struct Buffers {
    wire: Vec<u8>,
    content: Vec<u8>,
}

impl Buffers {
    /// Reads a frame's data, unpacked. Its lengths were checked with its table.
    fn read(&mut self, header: &Header, entries: &[Entry], link: &mut Link) -> Result<&[u8]> {
        self.wire.resize(self.wire.len().max(header.data), 0);
        let wire = self.wire.get_mut(..header.data).unwrap_or_default();
        link.read_data(wire)?;
        if !header.packed {
            return Ok(wire);
        }
        let length = content(entries).context("a frame announces more than fits it")?;
        self.content.resize(self.content.len().max(length), 0);
        let content = self.content.get_mut(..length).unwrap_or_default();
        unpack(header.kind, wire, content)?;
        Ok(content)
    }
}

/// A message's name for error texts, without its content.
#[must_use]
pub fn name(message: &Message) -> String {
    let text = format!("{message:?}");
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

#[derive(Default)]
struct Arrived {
    counts: Vec<u64>,
    /// Blocks were written since the last question.
    blocks: bool,
    error: Option<String>,
}

/// The data streams.
pub struct Streams {
    arrived: Arc<(Mutex<Arrived>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Starts a thread for each link.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(links: Vec<Link>, target: &Arc<Target>) -> Result<Self> {
        let counts = vec![0; links.len()];
        let arrived = Arc::new((Mutex::new(Arrived { counts, ..Arrived::default() }), Condvar::new()));
        let mut threads = Vec::new();
        for (stream, mut link) in links.into_iter().enumerate() {
            let (arrived, target) = (Arc::clone(&arrived), Arc::clone(target));
            let work = move || {
                if let Err(error) = work(stream, &mut link, &target, &arrived) {
                    lock(&arrived.0).error.get_or_insert(format!("data stream {}: {error:#}", stream + 1));
                    arrived.1.notify_all();
                }
            };
            let name = format!("migrate-in-{}", stream + 1);
            threads
                .push(std::thread::Builder::new().name(name).spawn(work).context("starting a data stream")?);
        }
        Ok(Self { arrived, threads })
    }

    /// Waits until each stream has carried `counts` frames. Returns whether blocks were written since the last call.
    ///
    /// # Errors
    /// The first error of a stream; when they do not arrive within `patience`; when there are more streams or frames than
    /// the source says, since then the two sides disagree about what belongs to the round.
    pub fn wait(&self, counts: &[u64], patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut arrived = lock(&self.arrived.0);
        ensure!(counts.len() == arrived.counts.len(), "the source counts {} data streams", counts.len());
        loop {
            if arrived.counts.iter().zip(counts).all(|(have, want)| have >= want) {
                ensure!(arrived.counts == counts, "more frames arrived than the source says it sent");
                return Ok(std::mem::take(&mut arrived.blocks));
            }
            // Streams end in an error when the source closes them, so look at the counts first.
            if let Some(error) = &arrived.error {
                bail!("{error}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "a round did not arrive completely within {} s", patience.as_secs());
            arrived = self.arrived.1.wait_timeout(arrived, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the threads. Their sockets must be shut down before.
    pub fn join(self) {
        for thread in self.threads {
            // What a panicked stream has not counted was missed in its round already.
            let _ = thread.join();
        }
    }
}

fn work(stream: usize, link: &mut Link, target: &Target, arrived: &(Mutex<Arrived>, Condvar)) -> Result<()> {
    let mut priority = Background::new();
    let mut buffers = Buffers::default();
    // Between rounds a data stream is silent as long as the control connection lives; that one has the bound.
    link.socket().set_read_timeout(None)?;
    loop {
        let (header, message) = link.receive()?;
        priority.go_on();
        let blocks = target.apply(&header, &message, link, &mut buffers)?;
        let mut inner = lock(&arrived.0);
        inner.blocks |= blocks;
        if let Some(count) = inner.counts.get_mut(stream) {
            *count += 1;
        }
        drop(inner);
        arrived.1.notify_all();
    }
}
