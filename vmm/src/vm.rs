//! One machine: KVM, RAM, vCPUs, devices, put together; and how it starts, stops and goes on.
//!
//! ```text
//! Vm::new(spec) ──boot()──► run() ⇄ pause()         a machine of its own
//!      └────────────────── load() ──► run()          the destination of a migration, or a snapshot
//! ```
//!
//! Order when stopping: vCPUs, then devices. When going on: clock, then devices, then vCPUs (a vCPU that runs before its
//! clock is right may spin for minutes; a queue that nobody kicks stays full).

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};

use tracing::error;

use crate::api::{MachineSpec, State};
use crate::bus::Bus;
use crate::console_ring::ConsoleRing;
use crate::cpu::cpuid::{self, CpuidTable};
use crate::cpu::msr;
use crate::cpu::state::StateShape;
use crate::cpu::throttle::Throttle;
use crate::cpu::vcpu::Vcpu;
use crate::devices::{Shelf, irqfd};
use crate::dirty::DirtyLog;
use crate::memory::GuestRam;
use crate::power::{Exit, Power};
use crate::sections::ClockState;
use crate::serial::Com1;
use crate::virtio::block::{Block, DiskFile};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::net::{Frames, Net};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::{acpi, boot, layout, memory};

/// A machine.
pub struct Vm {
    pub(crate) spec: MachineSpec,
    pub(crate) fd: Arc<VmFd>,
    pub(crate) ram: GuestRam,
    pub(crate) vcpus: Arc<Vec<Vcpu>>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) console: ConsoleRing,
    pub(crate) shape: StateShape,
    pub(crate) supported: CpuidTable,
    cpuid: Mutex<CpuidTable>,
    pub(crate) tsc_khz: u32,
    /// The clock that a load brought and [`Vm::start_clock`] has not set yet.
    pub(crate) clock: Mutex<Option<ClockState>>,
    pub(crate) dirty: DirtyLog,
    pub(crate) throttle: Throttle,
    pub(crate) disks: Vec<Arc<DiskFile>>,
    pub(crate) nets: Vec<(Arc<MmioTransport>, Arc<Frames>)>,
    places: Vec<acpi::MmioDevice>,
    phase: Mutex<Phase>,
    exits: Sender<Exit>,
}

/// Where the machine stands and in which epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) state: State,
    pub(crate) epoch: u64,
}

impl Vm {
    /// Everything but the guest's first instruction. The state is `Incoming`. The receiver tells why the machine ends.
    ///
    /// # Errors
    /// Names what could not be made.
    pub fn new(spec: MachineSpec) -> Result<(Self, Receiver<Exit>)> {
        ensure!((1..=8).contains(&spec.vcpus), "{} vCPUs: a machine has 1 to 8", spec.vcpus);
        let kvm = Kvm::new().context("open /dev/kvm (is KVM loaded, and may this user open it?)")?;
        let fd = Arc::new(create_vm(&kvm)?);
        let ram = memory::map(spec.memory_mib)?;
        memory::register(&fd, &ram, false)?;
        let dirty = DirtyLog::new(Arc::clone(&fd), ram.clone());
        let (exits, receiver) = channel();
        let console = ConsoleRing::default();
        let Built { virtio, places, disks, nets } = build_devices(&spec, &fd, &ram)?;
        let bus = Arc::new(Bus {
            com1: Mutex::new(Com1::new(irqfd(&fd, layout::COM1_GSI)?, console.clone())?),
            power: Mutex::new(Power::new(Arc::clone(&fd), exits.clone())),
            virtio,
        });
        let supported = cpuid::supported(&kvm)?;
        let cpuid = cpuid::baseline(&supported, spec.vcpus);
        let mut cpus = Vec::new();
        for id in 0..spec.vcpus {
            let vcpu = fd.create_vcpu(u64::from(id)).with_context(|| format!("KVM_CREATE_VCPU {id}"))?;
            vcpu.set_cpuid2(&cpuid.for_vcpu(id)?).with_context(|| format!("KVM_SET_CPUID2 of vCPU {id}"))?;
            cpus.push(vcpu);
        }
        let first = cpus.first().context("a machine without vCPUs")?;
        let shape = StateShape {
            msrs: msr::saved(&kvm, first)?,
            xsave_size: usize::try_from(fd.check_extension_int(Cap::Xsave2)).unwrap_or(0),
        };
        let tsc_khz = first.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
        let vcpus = (0u8..)
            .zip(cpus)
            .map(|(id, vcpu)| Vcpu::spawn(id, vcpu, Arc::clone(&bus), exits.clone()))
            .collect::<Result<Vec<_>>>()?;
        let phase = Mutex::new(Phase { state: State::Incoming, epoch: spec.epoch });
        let vm = Self {
            spec,
            fd,
            ram,
            vcpus: Arc::new(vcpus),
            bus,
            console,
            shape,
            supported,
            cpuid: Mutex::new(cpuid),
            clock: Mutex::new(None),
            tsc_khz,
            dirty,
            throttle: Throttle::default(),
            places,
            disks,
            nets,
            phase,
            exits,
        };
        Ok((vm, receiver))
    }

    /// Loads the kernel and sets the first vCPU to it. [`Vm::run`] follows.
    ///
    /// # Errors
    /// When the kernel, an initrd or the command line will not do.
    pub fn boot(&self) -> Result<()> {
        let spec = &self.spec;
        self.lock_disks()?;
        let entry = boot::load(&self.ram, &spec.kernel, &spec.initrd, &spec.cmdline)?;
        acpi::write(&self.ram, spec.vcpus, &self.places)?;
        let arguments = (0..spec.vcpus).collect();
        crate::cpu::vcpu::on_each(&self.vcpus, arguments, move |vcpu, id| {
            msr::set_at_boot(vcpu)?;
            if id == 0 { boot::enter_kernel(vcpu, entry) } else { Ok(()) }
        })?;
        self.phase().state = State::Paused;
        Ok(())
    }

    /// Opens the devices' gates, then lets the vCPUs run.
    pub(crate) fn start_all(&self) {
        self.bus.power.lock().unwrap_or_else(PoisonError::into_inner).drive_sci();
        for device in &self.bus.virtio {
            device.open();
        }
        for vcpu in self.vcpus.iter() {
            vcpu.run();
        }
        // Only now: the guest need not wait while the devices look at what they missed.
        for device in &self.bus.virtio {
            device.catch_up();
        }
    }

    /// Parks the vCPUs, then quiesces the devices.
    pub(crate) fn stop_all(&self) {
        for vcpu in self.vcpus.iter() {
            vcpu.ask_to_park();
        }
        for vcpu in self.vcpus.iter() {
            vcpu.wait_until_parked();
        }
        for device in &self.bus.virtio {
            device.quiesce();
        }
    }

    /// Stops the guest. Idempotent.
    ///
    /// # Errors
    /// When the machine is in a state that has nothing to pause.
    pub fn pause(&self) -> Result<()> {
        let mut phase = self.phase();
        match phase.state {
            State::Running => self.stop_all(),
            State::Paused => {}
            State::Incoming | State::Prepared | State::HandedOver | State::Stopped => {
                anyhow::bail!("pause: the machine is {:?}, not running", phase.state)
            }
        }
        phase.state = State::Paused;
        Ok(())
    }

    /// Lets the guest run. Idempotent.
    ///
    /// # Errors
    /// When this instance must not run.
    pub fn resume(&self) -> Result<()> {
        let mut phase = self.phase();
        match phase.state {
            State::Running => {}
            State::Paused => {
                self.start_clock()?;
                self.excuse_pause()?;
                self.start_all();
            }
            State::Incoming | State::Prepared | State::HandedOver | State::Stopped => {
                anyhow::bail!("resume: the machine is {:?} and must not run here", phase.state)
            }
        }
        phase.state = State::Running;
        Ok(())
    }

    /// Makes all disk writes durable.
    pub fn flush(&self) {
        for disk in &self.disks {
            if let Err(error) = disk.sync() {
                error!(disk = disk.id(), %error, "the last writes may not be durable");
            }
        }
    }

    /// Takes the locks of all disks: this process runs the machine.
    ///
    /// # Errors
    /// When another process holds one.
    pub(crate) fn lock_disks(&self) -> Result<()> {
        self.disks.iter().try_for_each(|disk| disk.lock())
    }

    /// Where the machine stands.
    pub(crate) fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest's CPU looks like.
    pub(crate) fn cpuid(&self) -> MutexGuard<'_, CpuidTable> {
        self.cpuid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.bus.power.lock().unwrap_or_else(PoisonError::into_inner).press();
    }

    /// Makes the process end, as if the guest had brought it about.
    pub fn end(&self, why: Exit) {
        drop(self.exits.send(why));
    }

    /// The serial console's last bytes.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.console.contents()
    }

    /// CPU time of all vCPU threads.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.vcpus.iter().map(Vcpu::cpu_time).sum()
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    let version = kvm.get_api_version();
    ensure!(version == 12, "/dev/kvm speaks API version {version}, the monitor needs 12");
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(crate::num::index(layout::KVM_TSS)).context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
    Ok(vm)
}

/// The devices and the handles that others than their threads need.
struct Built {
    virtio: Vec<Arc<MmioTransport>>,
    places: Vec<acpi::MmioDevice>,
    disks: Vec<Arc<DiskFile>>,
    nets: Vec<(Arc<MmioTransport>, Arc<Frames>)>,
}

fn build_devices(spec: &MachineSpec, vm: &VmFd, ram: &GuestRam) -> Result<Built> {
    let mut shelf = Shelf::new(vm, ram);
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let file = Arc::new(DiskFile::open(disk)?);
        shelf.add(&disk.id, Box::new(Block::new(Arc::clone(&file))))?;
        disks.push(file);
    }
    let mut nets = Vec::new();
    for (number, net) in spec.nets.iter().enumerate() {
        let device = Net::new(net)?;
        let frames = device.frames();
        nets.push((shelf.add(&format!("net{number}"), Box::new(device))?, frames));
    }
    if let Some(vsock) = &spec.vsock {
        shelf.add("vsock", Box::new(Vsock::new(vsock)?))?;
    }
    shelf.add("rng", Box::new(Rng))?;
    let (virtio, places) = shelf.finish();
    Ok(Built { virtio, places, disks, nets })
}
