//! Processes that init starts, becomes or ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mashines_guest::Config;
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::agent::{AGENT_CONFIG, AGENT_DIRECTORY, AGENT_PROGRAM};
use crate::log;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Ends the machine: writes everything out and switches the power off.
pub fn power_off() -> ! {
    sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    log::console(format_args!("the kernel refused to power off: {errno}"));
    // Process 1 must not end: that would be a kernel panic.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

/// Copies this program and what it must know into the /run of the root at `root`.
pub fn leave_agent(root: &str, config: &Config) -> Result<()> {
    let root = root.trim_end_matches('/');
    let directory = format!("{root}{AGENT_DIRECTORY}");
    fs::create_dir_all(&directory).with_context(|| format!("making {directory}"))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("closing {directory}"))?;
    let program = format!("{root}{AGENT_PROGRAM}");
    fs::copy("/proc/self/exe", &program).with_context(|| format!("copying the agent to {program}"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {program} executable"))?;
    let path = format!("{root}{AGENT_CONFIG}");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let json = serde_json::to_vec(&config.clone().without_secrets())
        .context("writing the agent's configuration as JSON")?;
    file.as_mut()
        .map_err(|error| error.kind().into())
        .and_then(|file: &mut File| file.write_all(&json))
        .with_context(|| format!("writing {path}"))
}

/// Starts the agent. It lives in /run, which the image's init keeps, and outlives this program.
pub fn start_agent() -> Result<()> {
    Command::new(AGENT_PROGRAM)
        .arg("agent")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .process_group(0)
        .spawn()
        .map(drop)
        .with_context(|| format!("starting the agent {AGENT_PROGRAM}"))
}

/// Becomes the image's init.
pub fn become_init() -> Result<Infallible> {
    let candidates =
        ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init"];
    let Some(init) = candidates.into_iter().find(|path| Path::new(path).exists()) else {
        bail!(
            "the image has no init (looked for {}); set init_exec to run a single process",
            candidates.join(", ")
        );
    };
    let error = Command::new(init).env_clear().env("PATH", PATH).env("TERM", "linux").exec();
    Err(error).with_context(|| format!("executing the image's {init}"))
}

/// Runs one command line in place of an init, reaps what it leaves behind, and powers off when it ends.
pub fn supervise(command: &str, env: &BTreeMap<String, String>) -> Result<Infallible> {
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("exec {command}")])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(env)
        .spawn()
        .with_context(|| format!("starting '{command}' by the image's /bin/sh"))?;
    let main =
        Pid::from_raw(i32::try_from(child.id()).context("a process id beyond the kernel's own range")?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, 0)) if pid == main => power_off(),
            Ok(WaitStatus::Exited(pid, code)) if pid == main => {
                bail!("'{command}' ended with exit code {code}")
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                bail!("'{command}' was ended by {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => bail!("waiting for '{command}': {errno}"),
        }
    }
}

/// Process 1 of a machine without an image: reaps, and does nothing else.
pub fn reap_for_ever() -> Result<Infallible> {
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => sleep(Duration::from_secs(1)),
        }
    }
}

/// Runs a program of the image, when it has it, and returns its exit code. Its output goes to the console only when it fails.
pub fn image_program(name: &str, arguments: &[&str]) -> Result<Option<i32>> {
    let Some(program) = find(name) else { return Ok(None) };
    let output = Command::new(&program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running the image's {program}"))?;
    if !output.status.success() {
        for text in [&output.stdout, &output.stderr] {
            String::from_utf8_lossy(text)
                .lines()
                .for_each(|line| log::console(format_args!("{name}: {line}")));
        }
    }
    match output.status.code() {
        Some(code) => Ok(Some(code)),
        None => bail!("the image's {program} was ended by a signal ({})", output.status),
    }
}

fn find(name: &str) -> Option<String> {
    PATH.split(':').map(|directory| format!("{directory}/{name}")).find(|path| Path::new(path).is_file())
}
