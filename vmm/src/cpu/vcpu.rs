//! vCPU threads: run, park, do small jobs while parked.
//!
//! ```text
//!          run()                  park(): kicked, last exit completed
//!   ┌────────────────► Running ───────────────┐
//!   │                                          ▼
//! Parked ◄─────────────────────────────────  (jobs: save, load, …)
//! ```
//!
//! Invariants: a vCPU is created parked; jobs run only while it is parked; a parked vCPU has no exit half done (an `in` or a
//! memory read whose answer KVM has not taken yet), so that its registers are whole.

use std::collections::VecDeque;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::{self, Kickable};
use crate::bus::Bus;
use crate::power::Exit;

type Job = Box<dyn FnOnce(&VcpuFd) + Send>;

/// `KVM_SYSTEM_EVENT_RESET`; 1 is shutdown.
const SYSTEM_EVENT_RESET: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Park,
    End,
}

struct Inner {
    wanted: Wanted,
    parked: bool,
    /// The thread is no more; nothing can be asked of it.
    ended: bool,
    jobs: VecDeque<Job>,
}

/// What the others and the vCPU's thread share.
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The thread sleeps this long, once, in microseconds: a slice of throttling.
    sleep_us: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }
}

/// One vCPU and its thread.
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread, parked.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn spawn(id: u8, fd: VcpuFd, bus: Arc<Bus>, exits: Sender<Exit>) -> Result<Self> {
        let inner = Inner { wanted: Wanted::Park, parked: false, ended: false, jobs: VecDeque::new() };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            sleep_us: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        kick::install()?;
        let body = move || {
            let last_words = LastWords { id, shared: Arc::clone(&theirs), exits: exits.clone() };
            Runner { id, vcpu: Kickable::new(fd), shared: theirs, bus, exits, entered: false }.main();
            drop(last_words);
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(body)
            .with_context(|| format!("start the thread of vCPU {id}"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the guest run.
    pub fn run(&self) {
        self.shared.lock().wanted = Wanted::Run;
        self.shared.changed.notify_all();
    }

    /// Asks the thread to park, without waiting.
    pub fn ask_to_park(&self) {
        self.shared.lock().wanted = Wanted::Park;
        self.kick();
    }

    /// Waits for what [`Vcpu::ask_to_park`] asked.
    pub fn wait_until_parked(&self) {
        let mut inner = self.shared.lock();
        while !inner.parked {
            inner = self.shared.wait(inner);
        }
    }

    /// Hands a job to the parked thread.
    pub fn submit(&self, job: Job) {
        let mut inner = self.shared.lock();
        // A job for a dead thread is dropped, and with it the sender of its answer.
        if !inner.ended {
            inner.jobs.push_back(job);
        }
        drop(inner);
        self.shared.changed.notify_all();
    }

    /// Takes one slice of time away.
    pub fn doze(&self, slice: Duration) {
        let slice = u64::try_from(slice.as_micros()).unwrap_or(u64::MAX);
        self.shared.sleep_us.store(slice, Ordering::Release);
        self.kick();
    }

    /// CPU time of the thread, user and system.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.thread.as_ref().map_or(Duration::ZERO, |thread| thread_cpu_time(thread.as_pthread_t()))
    }

    fn kick(&self) {
        self.shared.changed.notify_all();
        if let Some(thread) = &self.thread {
            // An error means that the thread has ended, which is as good.
            drop(kick::kick(thread));
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.lock().wanted = Wanted::End;
        self.kick();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn thread_cpu_time(thread: libc::pthread_t) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the thread has not been joined (its handle is alive), and both out-parameters are ours.
    let result = unsafe {
        if libc::pthread_getcpuclockid(thread, &raw mut clock) == 0 {
            libc::clock_gettime(clock, &raw mut time)
        } else {
            -1
        }
    };
    if result != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Does the same on all parked vCPUs at once and collects the answers in their order.
///
/// # Errors
/// The first error of any vCPU, with its number.
pub fn on_each<A, T>(
    vcpus: &[Vcpu],
    arguments: Vec<A>,
    job: impl Fn(&VcpuFd, A) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>>
where
    A: Send + 'static,
    T: Send + 'static,
{
    let job = Arc::new(job);
    let answers: Vec<_> = vcpus
        .iter()
        .zip(arguments)
        .map(|(vcpu, argument)| {
            let (sender, receiver) = channel();
            let job = Arc::clone(&job);
            vcpu.submit(Box::new(move |fd| drop(sender.send(job(fd, argument)))));
            receiver
        })
        .collect();
    let collect = |(id, receiver): (usize, std::sync::mpsc::Receiver<Result<T>>)| {
        receiver
            .recv()
            .with_context(|| format!("the thread of vCPU {id} has ended"))?
            .with_context(|| format!("vCPU {id}"))
    };
    answers.into_iter().enumerate().map(collect).collect()
}

/// Whatever ends a vCPU's thread, nobody waits for it in vain: it counts as parked, its jobs are dropped, and if it
/// panicked the machine ends.
struct LastWords {
    id: u8,
    shared: Arc<Shared>,
    exits: Sender<Exit>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.parked = true;
        inner.ended = true;
        inner.jobs.clear();
        drop(inner);
        self.shared.changed.notify_all();
        if thread::panicking() {
            drop(self.exits.send(Exit::Failed(format!("the thread of vCPU {} panicked", self.id))));
        }
    }
}

/// The thread's side.
struct Runner {
    id: u8,
    vcpu: Kickable,
    shared: Arc<Shared>,
    bus: Arc<Bus>,
    exits: Sender<Exit>,
    /// The guest has run here, so that an exit may be half done.
    entered: bool,
}

impl Runner {
    fn main(mut self) {
        while self.ready() {
            if let Some(exit) = self.enter() {
                // The guest cannot go on; whoever reads the exit decides what follows.
                self.shared.lock().wanted = Wanted::Park;
                drop(self.exits.send(exit));
            }
        }
    }

    /// Waits until the guest may run; false when the thread shall end.
    fn ready(&mut self) -> bool {
        loop {
            // Before looking at what is wanted, and never after: see `kick`.
            self.vcpu.vcpu().set_kvm_immediate_exit(0);
            self.doze();
            if self.shared.lock().wanted == Wanted::Run {
                return true;
            }
            self.complete_last_exit();
            if !self.park() {
                return false;
            }
        }
    }

    /// Stands still and does jobs until the guest is wanted to run (true) or the thread to end (false).
    fn park(&mut self) -> bool {
        let mut inner = self.shared.lock();
        inner.parked = true;
        self.shared.changed.notify_all();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                drop(inner);
                job(self.vcpu.vcpu());
                inner = self.shared.lock();
                continue;
            }
            match inner.wanted {
                Wanted::End => return false,
                Wanted::Park => inner = self.shared.wait(inner),
                Wanted::Run => {
                    inner.parked = false;
                    return true;
                }
            }
        }
    }

    fn doze(&self) {
        let slice = self.shared.sleep_us.swap(0, Ordering::Acquire);
        if slice == 0 {
            return;
        }
        let inner = self.shared.lock();
        let running = |inner: &mut Inner| inner.wanted == Wanted::Run;
        drop(self.shared.changed.wait_timeout_while(inner, Duration::from_micros(slice), running));
    }

    /// KVM takes the answer to an `in` or a memory read at the start of the next `KVM_RUN`; with `immediate_exit` it
    /// does only that.
    fn complete_last_exit(&mut self) {
        if !self.entered {
            return;
        }
        let vcpu = self.vcpu.vcpu();
        vcpu.set_kvm_immediate_exit(1);
        drop(vcpu.run());
        vcpu.set_kvm_immediate_exit(0);
    }

    /// Runs the guest until the next exit; `Some` when it cannot go on.
    fn enter(&mut self) -> Option<Exit> {
        let id = self.id;
        self.entered = true;
        match self.vcpu.vcpu().run() {
            Ok(VcpuExit::IoIn(port, data)) => self.bus.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => self.bus.port_write(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => self.bus.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.bus.memory_write(address, data),
            Ok(VcpuExit::Shutdown) => return Some(Exit::TripleFault),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => return Some(Exit::Reset),
            Ok(VcpuExit::SystemEvent(_, _)) => return Some(Exit::PowerOff),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(other) => return Some(Exit::Failed(format!("vCPU {id}: KVM_RUN ended with {other:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Some(Exit::Failed(format!("vCPU {id}: KVM_RUN: {error}"))),
        }
        None
    }
}
