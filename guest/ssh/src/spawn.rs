//! Processes that lead a session of their own, so that all that they start can be ended with them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::program::Program;

/// How long processes have between the polite signals and the end.
const GRACE: Duration = Duration::from_secs(2);

/// The command for a program in a directory, with no environment yet.
pub fn command(program: &Program, home: &Path) -> Command {
    let mut command = Command::new(&program.file);
    command.arg0(&program.name).args(&program.arguments).env_clear();
    command.current_dir(if home.is_dir() { home } else { Path::new("/") });
    command
}

/// Starts it between pipes.
pub fn with_pipes(mut command: Command) -> io::Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    lead(&mut command, false);
    command.spawn()
}

/// Starts it at a terminal.
pub fn at_terminal(mut command: Command, terminal: OwnedFd) -> io::Result<Child> {
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    lead(&mut command, true);
    command.spawn()
}

fn lead(command: &mut Command, has_terminal: bool) {
    let begin = move || {
        rustix::process::setsid()?;
        if has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin().as_fd())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called: these are two bare system calls, without a
    // lock or an allocation.
    unsafe {
        command.pre_exec(begin);
    }
}

/// The process group that a child leads.
pub fn group(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// Ends a child whose client has gone, and all of its group.
pub async fn end(mut child: Child) {
    let Some(group) = group(&child) else { return };
    for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
        // The group may be gone already.
        let _ = kill_process_group(group, signal);
    }
    let ended = timeout(GRACE, child.wait()).await;
    let _ = kill_process_group(group, Signal::KILL);
    if ended.is_err() {
        let _ = child.wait().await;
    }
}
