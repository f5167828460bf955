//! Gets a vCPU thread out of `KVM_RUN`.
//!
//! A signal alone could arrive just before the ioctl and be lost. So its handler, which runs on the vCPU's own thread,
//! sets `immediate_exit` in that vCPU's `kvm_run` page: a `KVM_RUN` that begins later returns at once with `EINTR`. The
//! thread clears the flag before it looks at what is wanted of it; the wanted state is stored before the signal is
//! sent. So no wish is ever missed.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Once;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// This thread's `kvm_run` page, null on every other thread. Const-initialised and without a destructor, so that a
    /// signal handler may read it.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let page = RUN_PAGE.get();
    if !page.is_null() {
        // SAFETY: set by `Kickable::new` on this thread and reset before the vCPU (and its mapping) goes away; the kernel and
        // this thread are the only others who look at the byte.
        unsafe { ptr::write_volatile(&raw mut (*page).immediate_exit, 1) };
    }
}

/// Installs the handler, once in a process, before the first [`Kickable`].
///
/// # Errors
/// When the kernel refuses it.
pub fn install() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), on_kick));
    result.map_err(io::Error::from).context("install the signal handler that stops vCPUs")
}

/// A vCPU that belongs to the current thread and can be kicked.
#[derive(Debug)]
pub struct Kickable {
    vcpu: VcpuFd,
    /// Neither `Send` nor `Sync`: the run page is registered with one thread.
    _thread: std::marker::PhantomData<*mut ()>,
}

impl Kickable {
    /// Ties `vcpu` to the current thread.
    #[must_use]
    pub fn new(mut vcpu: VcpuFd) -> Self {
        RUN_PAGE.set(ptr::from_mut(vcpu.get_kvm_run()));
        Self { vcpu, _thread: std::marker::PhantomData }
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN_PAGE.set(ptr::null_mut());
    }
}

/// Kicks the thread of a [`Kickable`].
///
/// # Errors
/// When the thread is gone.
pub fn kick(thread: &JoinHandle<()>) -> io::Result<()> {
    thread.kill(SIGRTMIN()).map_err(io::Error::from)
}
