//! A machine in memory, either side, that fails on demand and notices two runners.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::frame::BLOCK_SIZE;
use super::machine::*;
use super::progress::lock;

/// RAM that is nobody else's.
pub fn memory(guest_address: u64, pages: usize) -> RamRegion {
    let words = (0..pages * PAGE_SIZE / 8).map(|_| AtomicU64::new(0));
    let mapping: Arc<Vec<AtomicU64>> = Arc::new(words.collect());
    let host = NonNull::new(mapping.as_ptr().cast::<u8>().cast_mut()).unwrap();
    // SAFETY: the vector lives as long as its Arc; atomics may be written through a shared pointer.
    unsafe { RamRegion::new(guest_address, host, pages * PAGE_SIZE, mapping) }.unwrap()
}

/// Counts who runs, over both sides.
#[derive(Default)]
pub struct Arena {
    runners: AtomicUsize,
    pub two_at_once: AtomicBool,
}

impl Arena {
    fn start(&self) {
        if self.runners.fetch_add(1, Ordering::SeqCst) > 0 {
            self.two_at_once.store(true, Ordering::SeqCst);
        }
    }

    pub fn runners(&self) -> usize {
        self.runners.load(Ordering::SeqCst)
    }
}

/// What a fake machine is made of.
#[derive(Clone)]
pub struct Shape {
    pub ram_pages: Vec<usize>,
    pub disk_blocks: Vec<u64>,
    /// Pages that the guest dirties a second.
    pub writes_per_second: u64,
    /// Over how many pages.
    pub working_set: usize,
    /// So many pages are written between two rounds, however fast these are; fewer when throttled.
    pub rewritten: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            ram_pages: vec![300, 200],
            disk_blocks: vec![64, 32],
            writes_per_second: 2000,
            working_set: 50,
            rewritten: 0,
        }
    }
}

struct Guest {
    running: bool,
    dirty: DirtyBitmap,
    rng: StdRng,
}

pub struct FakeMachine {
    arena: Arc<Arena>,
    shape: Shape,
    pub regions: Vec<RamRegion>,
    pub disks: Vec<Arc<FakeDisk>>,
    guest: Mutex<Guest>,
    throttle: AtomicU8,
    pub highest_throttle: AtomicU8,
    /// The tap's queue at the source; what the guest got at the destination.
    pub frames: Mutex<VecDeque<NetFrame>>,
    /// Methods that fail.
    pub failing: Mutex<BTreeSet<&'static str>>,
    pub calls: Mutex<Vec<&'static str>>,
    pub cpu: Mutex<CpuDescription>,
    pub logging: AtomicBool,
    gone: AtomicBool,
}

impl FakeMachine {
    pub fn new(arena: &Arc<Arena>, shape: &Shape) -> Arc<Self> {
        let at = |index: usize| u64::try_from(index).unwrap() << 30;
        let regions: Vec<_> =
            shape.ram_pages.iter().enumerate().map(|(i, &pages)| memory(at(i), pages)).collect();
        let disks =
            shape.disk_blocks.iter().enumerate().map(|(i, &blocks)| FakeDisk::new(i, blocks)).collect();
        let guest =
            Guest { running: false, dirty: DirtyBitmap::new(&regions), rng: StdRng::seed_from_u64(7) };
        Arc::new(Self {
            arena: Arc::clone(arena),
            shape: shape.clone(),
            regions,
            disks,
            guest: Mutex::new(guest),
            throttle: AtomicU8::new(0),
            highest_throttle: AtomicU8::new(0),
            frames: Mutex::default(),
            failing: Mutex::default(),
            calls: Mutex::default(),
            cpu: Mutex::default(),
            logging: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    /// Runs the guest: content everywhere, then a thread that goes on writing.
    pub fn boot(self: &Arc<Self>) {
        let mut guest = lock(&self.guest);
        for (index, region) in self.regions.iter().enumerate() {
            // Every third page stays zero.
            for page in (0..region.pages()).filter(|page| page % 3 != 0) {
                let byte = u8::try_from((page + index) % 255).unwrap() + 1;
                region.write_pages(page, &[byte; PAGE_SIZE]).unwrap();
            }
        }
        for disk in self.disks.iter().filter(|disk| !disk.read_only) {
            for block in (0..disk.blocks).step_by(4) {
                disk.guest_write(block, &[9; BLOCK_SIZE]);
            }
        }
        guest.running = true;
        self.arena.start();
        drop(guest);
        let machine = Arc::clone(self);
        std::thread::spawn(move || machine.write_for_ever());
    }

    pub fn power_off(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub fn is_running(&self) -> bool {
        lock(&self.guest).running
    }

    pub fn fail(&self, method: &'static str) {
        lock(&self.failing).insert(method);
    }

    pub fn called(&self, method: &str) -> usize {
        lock(&self.calls).iter().filter(|call| **call == method).count()
    }

    pub fn page(&self, region: usize, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.regions[region].read_pages(page, &mut bytes).unwrap();
        bytes
    }

    fn call(&self, method: &'static str) -> Result<()> {
        lock(&self.calls).push(method);
        ensure!(!lock(&self.failing).contains(method), "{method} failed on demand");
        Ok(())
    }

    fn write_for_ever(&self) {
        while !self.gone.load(Ordering::SeqCst) {
            let share = 100 - u64::from(self.throttle.load(Ordering::SeqCst));
            let burst = (self.shape.writes_per_second * share / 100 / 100).max(1);
            for _ in 0..burst {
                let mut guest = lock(&self.guest);
                if !guest.running {
                    break;
                }
                self.write_once(&mut guest);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write_once(&self, guest: &mut Guest) {
        let region = guest.rng.random_range(0..self.regions.len());
        let page = guest.rng.random_range(0..self.regions[region].pages().min(self.shape.working_set));
        // Pages turn to zero again, too.
        let byte = if guest.rng.random_ratio(1, 5) { 0 } else { guest.rng.random() };
        self.regions[region].write_pages(page, &[byte; PAGE_SIZE]).unwrap();
        guest.dirty.set(region, page);
        if guest.rng.random_ratio(1, 20) && !self.disks.is_empty() {
            let disk = &self.disks[guest.rng.random_range(0..self.disks.len())];
            if !disk.read_only {
                let block = guest.rng.random_range(0..disk.blocks);
                disk.guest_write(block, &[guest.rng.random::<u8>() % 3; BLOCK_SIZE]);
            }
        }
    }

    fn description(&self) -> Description {
        Description {
            machine_id: "machine".into(),
            vcpus: 2,
            cpu: lock(&self.cpu).clone(),
            memory: self.regions.iter().map(|r| (r.guest_address(), r.length() as u64)).collect(),
            devices: Vec::new(),
            disks: self.disks.iter().map(|disk| disk.describe()).collect(),
        }
    }

    fn start_running(&self) {
        let mut guest = lock(&self.guest);
        if !guest.running {
            guest.running = true;
            self.arena.start();
        }
    }
}

impl SourceMachine for FakeMachine {
    fn describe(&self) -> Result<Description> {
        self.call("describe")?;
        Ok(self.description())
    }

    fn ram(&self) -> Result<Vec<RamRegion>> {
        Ok(self.regions.clone())
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSide>> {
        self.disks.iter().map(|disk| Arc::clone(disk) as Arc<dyn DiskSide>).collect()
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.logging.store(true, Ordering::SeqCst);
        self.call("start_dirty_log")
    }

    fn harvest(&self, dirty: &mut DirtyBitmap, why: Harvest) -> Result<()> {
        self.call(if why == Harvest::Last { "last_harvest" } else { "harvest" })?;
        let mut guest = lock(&self.guest);
        for run in guest.dirty.runs(usize::MAX) {
            (run.page..run.page + run.count).for_each(|page| dirty.set(run.region, page));
        }
        guest.dirty.clear();
        if why == Harvest::Round {
            let share = 100 - usize::from(self.throttle.load(Ordering::SeqCst));
            (0..self.shape.rewritten * share / 100).for_each(|page| dirty.set(0, page));
        }
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<()> {
        self.logging.store(false, Ordering::SeqCst);
        self.call("stop_dirty_log")
    }

    fn throttle(&self, percent: u8) -> Result<()> {
        self.throttle.store(percent, Ordering::SeqCst);
        self.highest_throttle.fetch_max(percent, Ordering::SeqCst);
        self.call("throttle")
    }

    fn pause(&self) -> Result<()> {
        let mut guest = lock(&self.guest);
        if guest.running {
            guest.running = false;
            self.arena.runners.fetch_sub(1, Ordering::SeqCst);
        }
        drop(guest);
        self.call("pause")
    }

    fn resume(&self) -> Result<()> {
        self.call("resume")?;
        self.start_running();
        Ok(())
    }

    fn save(&self) -> Result<Vec<Section>> {
        self.call("save")?;
        // A device writes guest RAM while it is saved: the last harvest must see it.
        self.regions[0].write_pages(1, &[0xdd; PAGE_SIZE])?;
        lock(&self.guest).dirty.set(0, 1);
        Ok(vec![Section { kind: 1, version: 1, bytes: b"state".to_vec() }])
    }

    fn take_frames(&self) -> Result<Vec<NetFrame>> {
        self.call("take_frames")?;
        Ok(lock(&self.frames).drain(..).collect())
    }

    fn wait_for_frames(&self, longest: Duration) -> Result<()> {
        std::thread::sleep(longest.min(Duration::from_millis(1)));
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.call("release")
    }
}

impl DestinationMachine for FakeMachine {
    fn describe(&self) -> Result<Description> {
        Ok(self.description())
    }

    fn check_compatible(&self, source: &Description) -> Result<()> {
        self.call("check_compatible")?;
        let mine = lock(&self.cpu).vendor.clone();
        ensure!(source.cpu.vendor == mine, "the CPU is {}, here it is {mine}", source.cpu.vendor);
        Ok(())
    }

    fn ram(&self) -> Result<Vec<RamRegion>> {
        Ok(self.regions.clone())
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSide>> {
        SourceMachine::disks(self)
    }

    fn load(&self, sections: &[Section]) -> Result<()> {
        self.call("load")?;
        for section in sections {
            ensure!(section.kind == 1 && section.version == 1, "unknown section kind {}", section.kind);
        }
        Ok(())
    }

    fn inject_frames(&self, frames: Vec<NetFrame>) -> Result<()> {
        self.call("inject_frames")?;
        lock(&self.frames).extend(frames);
        Ok(())
    }

    fn prepared(&self) {
        lock(&self.calls).push("prepared");
    }

    fn run(&self, _epoch: u64) -> Result<Vec<(String, u64)>> {
        self.call("run")?;
        self.start_running();
        Ok(vec![("vcpus".into(), 1)])
    }

    fn discard(&self) {
        lock(&self.calls).push("discard");
    }
}

pub struct FakeDisk {
    id: String,
    pub blocks: u64,
    pub read_only: bool,
    inner: Mutex<DiskInner>,
    pub syncs: AtomicUsize,
}

#[derive(Default)]
struct DiskInner {
    content: BTreeMap<u64, Vec<u8>>,
    tracking: bool,
    dirty: BTreeSet<u64>,
}

impl FakeDisk {
    fn new(index: usize, blocks: u64) -> Arc<Self> {
        let inner = Mutex::default();
        Arc::new(Self {
            id: format!("disk{index}"),
            blocks,
            read_only: false,
            inner,
            syncs: AtomicUsize::new(0),
        })
    }

    fn guest_write(&self, block: u64, bytes: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.content.insert(block, bytes.to_vec());
        if inner.tracking {
            inner.dirty.insert(block);
        }
    }

    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.blocks).unwrap() * BLOCK_SIZE];
        self.read_blocks(0, &mut bytes).unwrap();
        bytes
    }
}

const BLOCK: u64 = BLOCK_SIZE as u64;

fn runs(blocks: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    blocks.map(|block| block * BLOCK..(block + 1) * BLOCK).collect()
}

impl DiskSide for FakeDisk {
    fn describe(&self) -> DiskDescription {
        DiskDescription { id: self.id.clone(), size_bytes: self.blocks * BLOCK, read_only: self.read_only }
    }

    fn allocated_runs(&self) -> Result<Vec<Range<u64>>> {
        Ok(runs(lock(&self.inner).content.keys().copied()))
    }

    fn start_tracking(&self) -> Result<()> {
        lock(&self.inner).tracking = true;
        Ok(())
    }

    fn take_dirty(&self) -> Result<Vec<Range<u64>>> {
        Ok(runs(std::mem::take(&mut lock(&self.inner).dirty).into_iter()))
    }

    fn stop_tracking(&self) {
        lock(&self.inner).tracking = false;
    }

    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inner = lock(&self.inner);
        for (block, bytes) in (offset / BLOCK..).zip(buffer.chunks_mut(BLOCK_SIZE)) {
            match inner.content.get(&block) {
                Some(content) => bytes.copy_from_slice(content),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.read_only {
            bail!("read-only");
        }
        let mut inner = lock(&self.inner);
        for (block, bytes) in (offset / BLOCK..).zip(bytes.chunks(BLOCK_SIZE)) {
            inner.content.insert(block, bytes.to_vec());
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let zeros = vec![0; usize::try_from(length)?];
        self.write_blocks(offset, &zeros)
    }

    fn sync(&self) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
