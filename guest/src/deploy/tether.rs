//! Ties that the kernel holds: a child that dies with its parent, a lock that an ancestor opened.
//!
//! All of this crate's `unsafe` about processes is here. What a push starts must end with it, however it ends; so nothing relies on
//! anybody cleaning up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// The child gets SIGKILL when the thread that spawned it ends. Spawn from a thread that outlives the child.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl(2) is called, which is a bare system call and allocates nothing.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) }
}

/// Lets children inherit the descriptor.
pub fn share(file: &impl AsFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(io::Error::from)
}

/// Takes over a descriptor that an ancestor [`share`]d, and shares it no further.
pub fn inherit(fd: RawFd) -> io::Result<File> {
    if fd < 3 || !std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists() {
        return Err(io::Error::other(format!("descriptor {fd} was not inherited")));
    }
    // SAFETY: it is open (checked above), it is none of the standard three, and nobody in this process uses it: our own files are opened
    // after this, at start-up, and the number came from the ancestor that left it open for us.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from)?;
    Ok(File::from(owned))
}
