//! How the threads of a migration compete with the guest and with each other.
//!
//! While the guest runs, copying it must not take its CPU time: the guest comes first, save in the small rounds at the end, which are over at
//! once and tell how long the blackout will be. While it stands still, nothing may come before
//! what ends that: starting a machine wakes a dozen threads, and each of them would rather run than let the waker go on; with two
//! CPUs the source heard 5 to 25 ms late that its machine runs, for 0.8 ms of work.
//!
//! When it has just arrived it has its blackout to make good, with a queue of frames before it, and every daemon of the host is busy with
//! its arrival: for these moments its threads come before the daemons. Without it the guest had 30 % of a CPU in its first 300 ms.
//!
//! All of it does nothing where the process lacks the right (`CAP_SYS_NICE`).

use std::time::{Duration, Instant};

/// The niceness of pre-copy: a seventieth of the weight of a thread of the guest, so that the guest's packets do not wait for it …
const QUIET: libc::c_int = 19;
/// … until it has taken so long that the host seems full: then a third, for it shall come to an end.
const PUSHING: libc::c_int = 5;
/// How long that is.
const PATIENCE: Duration = Duration::from_secs(2);
/// The niceness of small rounds and of a machine that has just arrived: ten times the weight of other threads.
const FAVOURED: libc::c_int = -10;

/// A thread that copies a running guest, and gives way to guests.
#[derive(Debug)]
pub struct Background {
    since: Instant,
    nice: libc::c_int,
}

impl Background {
    /// The current thread, from now on.
    #[must_use]
    pub fn new() -> Self {
        renice(0, QUIET);
        Self { since: Instant::now(), nice: QUIET }
    }

    /// To be called now and then by the same thread.
    pub fn go_on(&mut self) {
        self.set(if self.since.elapsed() > PATIENCE { PUSHING } else { QUIET });
    }

    /// What comes is over soon, and the sooner it is over the less is left to do: it takes from the guest what the blackout would take, for
    /// as short a time, and so tells how long that will be.
    pub fn dash(&mut self) {
        self.set(FAVOURED);
    }

    fn set(&mut self, nice: libc::c_int) {
        if self.nice != nice {
            self.nice = nice;
            renice(0, nice);
        }
    }
}

/// The current thread does nothing but what a guest waits for, or soon will.
pub fn favoured() {
    renice(0, FAVOURED);
}

/// The current thread is like any other again.
pub fn ordinary() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: thread 0 is the current one; the kernel reads one sched_param that outlives the call.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameter) };
    renice(0, 0);
}

/// While it lives, all threads that this process had when it was made come before those of other processes.
#[derive(Debug)]
pub struct Favoured(());

impl Favoured {
    /// From now on.
    #[must_use]
    pub fn new() -> Self {
        renice_all(FAVOURED);
        Self(())
    }
}

impl Drop for Favoured {
    fn drop(&mut self) {
        renice_all(0);
    }
}

fn renice_all(nice: libc::c_int) {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        renice(thread, nice);
    }
}

/// Thread 0 is the current one.
fn renice(thread: libc::id_t, nice: libc::c_int) {
    // SAFETY: no pointers; the ids of PRIO_PROCESS are, on Linux, those of threads.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
}

/// Gives the current thread real-time priority until [`ordinary`], for threads that mostly wait. Threads it starts do not
/// inherit it.
pub fn urgent() {
    let parameter = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: thread 0 is the current one; the kernel reads one sched_param that outlives the call.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}
