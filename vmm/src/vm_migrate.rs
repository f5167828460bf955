//! A machine as live migration sees it: both sides' traits on [`Vm`], the disk's on [`DiskFile`].

use std::any::Any;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::api::State;
use crate::cpu::cpuid::{self, CpuidTable};
use crate::cpu::state::excuse_pause;
use crate::cpu::vcpu::on_each;
use crate::migrate::machine::{
    CpuDescription, Description, DestinationMachine, DirtyBitmap, DiskDescription, DiskSide, Harvest,
    NetFrame, RamRegion, Section, SourceMachine,
};
use crate::num::index;
use crate::power::Exit;
use crate::virtio::block::DiskFile;
use crate::virtio::net::Frames;
use crate::vm::Vm;

impl Vm {
    fn description(&self) -> Description {
        let disks = self.disks.iter().map(|disk| describe_disk(disk)).collect();
        let memory = self.ram.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect();
        // The table is behind a lock: taken once, given back before anything else is asked.
        let (vendor, cpuid) = {
            let table = self.cpuid();
            (table.vendor(), table.to_description())
        };
        Description {
            machine_id: self.spec.machine_id.clone(),
            vcpus: self.spec.vcpus,
            cpu: CpuDescription { vendor, cpuid, msrs: self.shape.msrs.clone(), tsc_khz: self.tsc_khz },
            memory,
            devices: self.device_descriptions(),
            disks,
        }
    }

    fn ram_regions(&self) -> Result<Vec<RamRegion>> {
        let describe = |region: &vm_memory::GuestRegionMmap<_>| {
            let mapping: Arc<dyn Any + Send + Sync> = region.get_mmap();
            let host = NonNull::new(region.as_ptr()).context("guest RAM mapped at address 0")?;
            // SAFETY: `mapping` is the very mapping that `host` points into, `len` bytes long and readable and writable; the
            // monitor accesses guest RAM through raw pointers and atomics only (vm-memory).
            unsafe { RamRegion::new(region.start_addr().raw_value(), host, index(region.len()), mapping) }
        };
        self.ram.iter().map(describe).collect()
    }

    fn disk_sides(&self) -> Vec<Arc<dyn DiskSide>> {
        self.disks.iter().map(|disk| Arc::clone(disk) as Arc<dyn DiskSide>).collect()
    }
}

impl SourceMachine for Vm {
    fn describe(&self) -> Result<Description> {
        Ok(self.description())
    }

    fn ram(&self) -> Result<Vec<RamRegion>> {
        self.ram_regions()
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSide>> {
        self.disk_sides()
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.dirty.start()
    }

    fn harvest(&self, dirty: &mut DirtyBitmap, why: Harvest) -> Result<()> {
        let words = self.dirty.harvest(why == Harvest::Round)?;
        for (region, words) in words.iter().enumerate() {
            dirty.or_words(region, words);
        }
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<()> {
        self.dirty.stop()
    }

    fn throttle(&self, percent: u8) -> Result<()> {
        self.throttle.set(percent, &self.vcpus)
    }

    fn pause(&self) -> Result<()> {
        Vm::pause(self)
    }

    fn resume(&self) -> Result<()> {
        for (_, frames) in &self.nets {
            frames.untake();
        }
        Vm::resume(self)
    }

    fn save(&self) -> Result<Vec<Section>> {
        let state = self.phase().state;
        ensure!(state == State::Paused, "save: the machine is {state:?}, not paused");
        self.save_sections()
    }

    fn take_frames(&self) -> Result<Vec<NetFrame>> {
        let handed_over = self.phase().state == State::HandedOver;
        let mut all = Vec::new();
        for (device, (_, frames)) in (0u16..).zip(&self.nets) {
            let taken = frames.take()?;
            all.extend(taken.into_iter().map(|bytes| NetFrame { device, bytes }));
            if handed_over {
                frames.forget_taken();
            }
        }
        Ok(all)
    }

    fn wait_for_frames(&self, longest: Duration) -> Result<()> {
        Frames::wait(self.nets.iter().map(|(_, frames)| frames.as_ref()), longest)
    }

    fn release(&self) -> Result<()> {
        self.phase().state = State::HandedOver;
        for (_, frames) in &self.nets {
            frames.forget_taken();
        }
        self.disks.iter().try_for_each(|disk| disk.unlock())
    }
}

impl DestinationMachine for Vm {
    fn describe(&self) -> Result<Description> {
        Ok(self.description())
    }

    fn check_compatible(&self, source: &Description) -> Result<()> {
        for theirs in &source.devices {
            let ours = self.device_descriptions().into_iter().find(|ours| ours.kind == theirs.kind);
            let ours = ours.with_context(|| format!("this machine has no {}", theirs.name))?;
            ensure!(
                ours.version == theirs.version,
                "the state of {} will have version {}, this monitor reads {}",
                theirs.name,
                theirs.version,
                ours.version
            );
        }
        if let Some(msr) = source.cpu.msrs.iter().find(|msr| !self.shape.msrs.contains(msr)) {
            bail!("the machine has MSR {msr:#x}, which this host's KVM does not know");
        }
        self.take_over_cpu(&source.cpu.cpuid)
    }

    fn ram(&self) -> Result<Vec<RamRegion>> {
        self.ram_regions()
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSide>> {
        self.disk_sides()
    }

    fn load(&self, sections: &[Section]) -> Result<()> {
        self.load_sections(sections)
    }

    fn inject_frames(&self, frames: Vec<NetFrame>) -> Result<()> {
        let running = self.phase().state == State::Running;
        for frame in frames {
            let net = self.nets.get(usize::from(frame.device));
            let (_, queue) =
                net.with_context(|| format!("a frame for net{}, which does not exist", frame.device))?;
            queue.inject([frame.bytes]);
        }
        if running {
            self.nets.iter().for_each(|(device, _)| device.wake());
        }
        Ok(())
    }

    fn prepared(&self) {
        self.phase().state = State::Prepared;
    }

    fn run(&self, epoch: u64) -> Result<Vec<(String, u64)>> {
        let mut spans = Vec::new();
        let mut since = Instant::now();
        let mut span = |name: &str| {
            let now = Instant::now();
            let micros = u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX);
            spans.push((name.to_owned(), micros));
            since = now;
        };
        let mut phase = self.phase();
        ensure!(
            matches!(phase.state, State::Prepared | State::Incoming),
            "run: the machine is {:?}, not prepared",
            phase.state
        );
        self.lock_disks()?;
        span("lock disks");
        self.start_clock()?;
        span("set clock");
        self.start_all();
        span("start devices and vCPUs");
        phase.state = State::Running;
        phase.epoch = epoch;
        Ok(spans)
    }

    fn discard(&self) {
        self.end(Exit::Discarded);
    }
}

impl Vm {
    /// The guest keeps the CPU it booted with, also where this host could offer more.
    pub(crate) fn take_over_cpu(&self, cpuid: &[[u32; 6]]) -> Result<()> {
        let table = CpuidTable::from_description(cpuid);
        if let Err(missing) = cpuid::compatible(&table, &self.supported) {
            bail!("this host's CPU cannot run the machine; it lacks: {}", missing.join(", "));
        }
        let ids = (0..self.spec.vcpus).collect();
        let theirs = table.clone();
        on_each(&self.vcpus, ids, move |vcpu, id: u8| {
            vcpu.set_cpuid2(&theirs.for_vcpu(id)?).context("KVM_SET_CPUID2")
        })?;
        *self.cpuid() = table;
        Ok(())
    }

    /// Tells the guest's watchdogs on every vCPU that it was paused.
    pub(crate) fn excuse_pause(&self) -> Result<()> {
        let nothing = self.vcpus.iter().map(|_| ()).collect();
        on_each(&self.vcpus, nothing, |vcpu, ()| {
            excuse_pause(vcpu);
            Ok(())
        })?;
        Ok(())
    }
}

fn describe_disk(disk: &DiskFile) -> DiskDescription {
    DiskDescription { id: disk.id().to_owned(), size_bytes: disk.size(), read_only: disk.read_only() }
}

fn at<T>(disk: &DiskFile, what: &str, offset: u64, result: io::Result<T>) -> Result<T> {
    result.with_context(|| format!("disk {}: {what} at {offset:#x}", disk.id()))
}

impl DiskSide for DiskFile {
    fn describe(&self) -> DiskDescription {
        describe_disk(self)
    }

    fn allocated_runs(&self) -> Result<Vec<Range<u64>>> {
        Ok(DiskFile::allocated_runs(self))
    }

    fn start_tracking(&self) -> Result<()> {
        DiskFile::start_tracking(self);
        Ok(())
    }

    fn take_dirty(&self) -> Result<Vec<Range<u64>>> {
        Ok(DiskFile::take_dirty(self))
    }

    fn stop_tracking(&self) {
        DiskFile::stop_tracking(self);
    }

    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        at(self, "read", offset, self.read(offset, buffer))
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        at(self, "write", offset, self.write(offset, bytes))
    }

    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        at(self, "zero", offset, self.write_zeroes(offset, length, true))
    }

    fn sync(&self) -> Result<()> {
        at(self, "sync", 0, DiskFile::sync(self))
    }
}
