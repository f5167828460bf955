//! Processes that init starts, becomes or ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mashines_guest::{Config, words};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::agent::{AGENT_CONFIG, AGENT_DIRECTORY, AGENT_PROGRAM, SSH_CONFIG, SSH_PROGRAM};
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
    leave_program(Path::new("/proc/self/exe"), &format!("{root}{AGENT_PROGRAM}"))?;
    leave_config(&format!("{root}{AGENT_CONFIG}"), &config.clone().without_secrets())
}

/// Copies the SSH server at `server` and what it must know into the /run of the root at `root`, when the machine is of a single process
/// and the host sent the server along.
pub fn leave_ssh(server: &Path, root: &str, config: &Config) -> Result<()> {
    if !config.is_single_process() || !server.exists() {
        return Ok(());
    }
    let root = root.trim_end_matches('/');
    leave_program(server, &format!("{root}{SSH_PROGRAM}"))?;
    // It proves the machine's name, so it has the host key; the files are nothing to it.
    leave_config(&format!("{root}{SSH_CONFIG}"), &Config { files: Vec::new(), ..config.clone() })
}

fn leave_program(from: &Path, to: &str) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {to}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {to} executable"))
}

fn leave_config(path: &str, config: &Config) -> Result<()> {
    let json = serde_json::to_vec(config).with_context(|| format!("writing {path} as JSON"))?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&json)).with_context(|| format!("writing {path}"))
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
    let mut program = supervised(command, Path::new("/bin/sh"))?;
    let child = program
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(env)
        .spawn()
        .with_context(|| format!("starting '{command}' by {:?}", program.get_program()))?;
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

/// A command line by the image's shell, or by itself when the image has none.
fn supervised(command: &str, shell: &Path) -> Result<Command> {
    if shell.exists() {
        let mut by_shell = Command::new(shell);
        by_shell.args(["-c", &format!("exec {command}")]);
        return Ok(by_shell);
    }
    let words = words::split(command).context("the image has no /bin/sh, and init_exec")?;
    let Some((program, arguments)) = words.split_first() else { bail!("init_exec is empty") };
    let mut by_itself = Command::new(program);
    by_itself.args(arguments);
    Ok(by_itself)
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

#[cfg(test)]
mod tests {
    use super::*;
    use mashines_guest::config::{BUILTIN_BENCH, File, HostKey, NO_ROOT};

    fn left(change: impl FnOnce(&mut Config)) -> (tempfile::TempDir, bool) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/mashines")).unwrap();
        let server = root.path().join("server");
        fs::write(&server, "ELF").unwrap();
        let mut config = Config::new("m", "h");
        config.ssh_host_keys.push(HostKey {
            kind: "ed25519".into(),
            private_pem: "SECRET".into(),
            public: "q".into(),
            certificate: None,
        });
        config.files.push(File { path: "/f".into(), mode: 0o600, content_base64: "AA==".into() });
        change(&mut config);
        leave_ssh(&server, root.path().to_str().unwrap(), &config).unwrap();
        let is_there = root.path().join("run/mashines/ssh").exists();
        (root, is_there)
    }

    #[test]
    fn the_ssh_server_is_left_exactly_in_a_machine_of_a_single_process() {
        assert!(!left(|_| ()).1);
        let bench = |config: &mut Config| {
            config.root.device = NO_ROOT.into();
            config.init_exec = Some(BUILTIN_BENCH.into());
        };
        assert!(!left(bench).1);
        let (root, is_there) = left(|config| config.init_exec = Some("/app".into()));
        assert!(is_there);
        let path = root.path().join("run/mashines/ssh.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let told: Config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(told.ssh_host_keys[0].private_pem, "SECRET");
        assert!(told.files.is_empty());
    }

    #[test]
    fn a_host_that_sends_no_ssh_server_boots_the_machine_all_the_same() {
        let mut config = Config::new("m", "h");
        config.init_exec = Some("/app".into());
        leave_ssh(Path::new("/no/such/server"), "/no/such/root", &config).unwrap();
    }

    #[test]
    fn without_a_shell_the_words_are_the_program_and_its_arguments() {
        let words = |command: &Command| -> Vec<String> {
            let all = std::iter::once(command.get_program()).chain(command.get_args());
            all.map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let none = Path::new("/no/such/shell");
        assert_eq!(words(&supervised("'/app' 'a b'", none).unwrap()), ["/app", "a b"]);
        assert!(supervised("", none).is_err() && supervised("'", none).is_err());
        let shell = supervised("'/app'", Path::new("/")).unwrap();
        assert_eq!(words(&shell), ["/", "-c", "exec '/app'"]);
    }
}
