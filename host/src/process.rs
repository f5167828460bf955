//! A monitor's process: started so that it outlives this daemon, found again after a restart, watched without being its parent.
//!
//! Invariant: **a monitor holds an exclusive `flock` on its machine's `run.lock` from before its first instruction until its
//! process is gone.** The lock is its standard input, so no cooperation is needed, and it is the kernel that keeps two
//! monitors of one machine from living on one host, and that tells a restarted daemon whether one lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, HostError, Result};
use crate::layout::MachineDir;

/// The largest log that is kept of the start before.
const MAX_KEPT_LOG: u64 = 1 << 20;

/// A process, named so that a later one with the same pid is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

/// How a monitor ended, as far as can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// It is gone; only its parent would have heard how, and that was an earlier run of this daemon.
    Unseen,
}

/// A monitor that was started by this daemon, or found again.
#[derive(Debug)]
pub struct Running {
    /// Which process.
    pub process: Process,
    child: Option<tokio::process::Child>,
    pidfd: AsyncFd<std::os::fd::OwnedFd>,
}

/// One lock is open at a time in this process: a fork for another machine would carry it along until its exec, and for so
/// long it would look as if a monitor lived.
static OPEN_LOCK: Mutex<()> = Mutex::new(());

/// The right to start a monitor of one machine. Held for an instant: it is taken, then given to a monitor or let go.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    _only: MutexGuard<'static, ()>,
}

impl RunLock {
    /// Takes the lock of a machine; none when a monitor of it lives.
    pub fn take(dir: &MachineDir) -> Result<Option<Self>> {
        let path = dir.lock();
        let only = OPEN_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .doing(|| format!("open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file, _only: only })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(HostError::internal(format!("lock {}: {e}", path.display()))),
        }
    }
}

/// Starts `binary` with `args` for the machine whose lock is given, detached: own session, own process group, output to the log.
pub fn spawn(lock: RunLock, dir: &MachineDir, binary: &Path, args: &[&std::ffi::OsStr]) -> Result<Running> {
    let log = open_log(dir).doing(|| format!("open {}", dir.log().display()))?;
    let err = log.try_clone().doing(|| format!("open {} twice", dir.log().display()))?;
    let RunLock { file, _only } = lock;
    let mut command = std::process::Command::new(binary);
    command
        .args(args)
        .current_dir(dir.path())
        .stdin(Stdio::from(file))
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(err));
    // SAFETY: between fork and exec only `setsid` runs, which is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(false);
    let child = command.spawn().doing(|| format!("start the monitor {}", binary.display()))?;
    // Closes this process's copy of the lock, before another may be opened.
    drop(command);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.ok_or_else(|| HostError::internal("the monitor was gone before it could be watched"))?;
    // A child that ended stays a zombie until it is waited for: its pid is not taken by another meanwhile.
    let process = Process { pid, started: started_at(pid).unwrap_or(0) };
    Ok(Running { process, child: Some(child), pidfd: open_pidfd(pid)? })
}

/// Finds the living monitor of a machine again, by its record or by who holds the lock; none when none lives.
pub fn adopt(dir: &MachineDir, recorded: Option<Process>) -> Result<Option<Running>> {
    if RunLock::take(dir)?.is_some() {
        return Ok(None);
    }
    let holder = match recorded {
        Some(process) if started_at(process.pid) == Some(process.started) => Some(process),
        // The daemon died between the start and its record.
        Some(_) | None => holder_of(&dir.lock())?,
    };
    let Some(process) = holder else {
        return Err(HostError::internal(format!(
            "{} is locked, but no process holds it as its standard input: someone else locked it",
            dir.lock().display()
        )));
    };
    let pidfd = open_pidfd(process.pid)?;
    // Between the look and the opening it may have ended and its pid been taken.
    if started_at(process.pid) != Some(process.started) {
        return Ok(None);
    }
    Ok(Some(Running { process, child: None, pidfd }))
}

impl Running {
    /// Waits until the process is gone.
    pub async fn exited(&mut self) -> Exit {
        if let Some(child) = &mut self.child {
            return match child.wait().await {
                Ok(status) => exit_of(status),
                Err(_) => Exit::Unseen,
            };
        }
        // A pidfd becomes readable when its process ends; an error here means that it is not pollable any more.
        let _ = self.pidfd.ready(Interest::READABLE).await;
        Exit::Unseen
    }

    /// A handle to end it with, whoever else waits for it.
    pub fn killer(&self) -> Result<Killer> {
        let fd = self.pidfd.get_ref().try_clone();
        Ok(Killer(fd.doing(|| format!("duplicate the pidfd of process {}", self.process.pid))?))
    }
}

/// Ends exactly one process, never a later one with its pid.
#[derive(Debug)]
pub struct Killer(std::os::fd::OwnedFd);

impl Killer {
    /// SIGKILL. Done as well when it is gone already.
    pub fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(HostError::internal(format!("kill the monitor: {e}"))),
        }
    }
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unseen,
    }
}

fn open_pidfd(pid: i32) -> Result<AsyncFd<std::os::fd::OwnedFd>> {
    let named = Pid::from_raw(pid).ok_or_else(|| HostError::internal("a process has pid 0"))?;
    let fd = pidfd_open(named, PidfdFlags::NONBLOCK).doing(|| format!("open a pidfd of process {pid}"))?;
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.doing(|| format!("watch process {pid}"))
}

/// Field 22 of `/proc/PID/stat`; none when there is no such process. The name (field 2) may hold spaces and brackets.
fn started_at(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// The process whose standard input is the file at `path`.
fn holder_of(path: &Path) -> Result<Option<Process>> {
    let lock = fs::metadata(path).doing(|| format!("look at {}", path.display()))?;
    let processes = fs::read_dir("/proc").doing(|| "list /proc".to_owned())?;
    let pids = processes.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/fd/0"))
            .is_ok_and(|f| f.dev() == lock.dev() && f.ino() == lock.ino())
    };
    Ok(pids.filter(holds).find_map(|pid| Some(Process { pid, started: started_at(pid)? })))
}

/// A fresh log; the one before is kept beside it unless it is large.
fn open_log(dir: &MachineDir) -> io::Result<File> {
    if fs::metadata(dir.log()).is_ok_and(|old| old.len() <= MAX_KEPT_LOG) {
        fs::rename(dir.log(), dir.previous_log())?;
    }
    OpenOptions::new().create(true).append(true).truncate(false).open(dir.log()).and_then(|file| {
        if file.metadata()?.len() > MAX_KEPT_LOG {
            file.set_len(0)?;
        }
        Ok(file)
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use mashines_fleet::id::MachineId;

    use super::*;
    use crate::layout::Layout;

    fn machine_dir(state: &Path) -> MachineDir {
        let dir = Layout::new(state).machine(&MachineId::random());
        fs::create_dir_all(dir.path()).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_second_monitor_cannot_start_while_the_first_lives() {
        let state = tempfile::tempdir().unwrap();
        let dir = machine_dir(state.path());
        let lock = RunLock::take(&dir).unwrap().unwrap();
        let mut first = spawn(lock, &dir, Path::new("/bin/sleep"), &[OsStr::new("60")]).unwrap();
        assert!(RunLock::take(&dir).unwrap().is_none());
        first.killer().unwrap().kill().unwrap();
        assert_eq!(first.exited().await, Exit::Signal(9));
        assert!(RunLock::take(&dir).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_monitor_without_a_record_is_found_by_its_lock() {
        let state = tempfile::tempdir().unwrap();
        let dir = machine_dir(state.path());
        let lock = RunLock::take(&dir).unwrap().unwrap();
        let mut started = spawn(lock, &dir, Path::new("/bin/sleep"), &[OsStr::new("60")]).unwrap();
        let mut found = adopt(&dir, None).unwrap().unwrap();
        assert_eq!(found.process, started.process);
        // A record of a process that is long gone does not lead to a stranger.
        let stale = Process { pid: 1, started: u64::MAX };
        assert_eq!(adopt(&dir, Some(stale)).unwrap().unwrap().process, started.process);
        found.killer().unwrap().kill().unwrap();
        assert_eq!(found.exited().await, Exit::Unseen);
        started.exited().await;
        assert!(adopt(&dir, Some(found.process)).unwrap().is_none());
    }

    #[tokio::test]
    async fn an_exit_code_is_heard() {
        let state = tempfile::tempdir().unwrap();
        let dir = machine_dir(state.path());
        let lock = RunLock::take(&dir).unwrap().unwrap();
        let args = [OsStr::new("-c"), OsStr::new("echo gone >&2; exit 3")];
        let mut started = spawn(lock, &dir, Path::new("/bin/sh"), &args).unwrap();
        assert_eq!(started.exited().await, Exit::Code(3));
        assert_eq!(fs::read_to_string(dir.log()).unwrap(), "gone\n");
    }
}
