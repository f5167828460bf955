//! How the threads of a migration compete with the guest and with each other.
//!
//! While the guest runs, copying it must not take its CPU time: the guest comes first. While it stands still, nothing may come before
//! what ends that: starting a machine wakes a dozen threads, and each of them would rather run than let the waker go on; with two
//! CPUs the source heard 5 to 25 ms late that its machine runs, for 0.8 ms of work.
//!
//! Both do nothing where the process lacks the right (`CAP_SYS_NICE`).

/// The niceness of pre-copy: a third of the weight of a thread of the guest.
const NICE: libc::c_int = 5;

/// The current thread gives way to guests.
pub fn background() {
    // SAFETY: no pointers; process 0 is, on Linux, the current thread.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Gives the current thread real-time priority for the rest of its life, for threads that mostly wait. Threads it starts do not
/// inherit it.
pub fn urgent() {
    let parameter = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: thread 0 is the current one; the kernel reads one sched_param that outlives the call.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}
