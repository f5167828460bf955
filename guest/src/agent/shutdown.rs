//! Switching the machine off in order.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

use crate::log;

static PREPARED: AtomicBool = AtomicBool::new(false);
static ENDING: AtomicBool = AtomicBool::new(false);

/// How long processes have between the polite signal and the end, where no init of the image takes care of that.
const GRACE: Duration = Duration::from_secs(3);

/// Notes that the machine goes off; it does after the answer is out.
pub fn prepare() {
    PREPARED.store(true, Ordering::SeqCst);
}

/// Whether processes are being ended: none is started any more.
pub fn has_begun() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Goes off when [`prepare`] was called.
pub fn begin_if_prepared() {
    if !PREPARED.swap(false, Ordering::SeqCst) {
        return;
    }
    if !ask_systemd() {
        log::note("no systemd to ask: ending all processes and switching off");
        end_all();
    }
}

fn ask_systemd() -> bool {
    // As systemctl itself tells whether systemd is process 1 (sd_booted(3)).
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let asked = Command::new("systemctl").args(["--no-block", "poweroff"]).stdin(Stdio::null()).output();
    asked.is_ok_and(|output| output.status.success())
}

fn end_all() {
    ENDING.store(true, Ordering::SeqCst);
    // -1 is everyone but process 1 and this one.
    let everyone = Pid::from_raw(-1);
    let _ = kill(everyone, Signal::SIGTERM);
    let deadline = GRACE.as_millis() / 50;
    for _ in 0..deadline {
        if others() == 0 {
            break;
        }
        sleep(Duration::from_millis(50));
    }
    let _ = kill(everyone, Signal::SIGKILL);
    sync();
    make_read_only();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    log::console(format_args!("the kernel refused to power off: {errno}"));
}

/// Emergency remount (`Documentation/admin-guide/sysrq.rst`): file systems end clean.
fn make_read_only() {
    let _ = fs::write("/proc/sysrq-trigger", "u");
    sleep(Duration::from_millis(200));
}

/// User processes other than process 1 and this one: those with a command line.
fn others() -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let own = std::process::id();
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| {
        pid > 1 && pid != own && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    })
    .count()
}
