//! Running a command for the host.
//!
//! The command gets its own process group, and all of the group is killed when the time is over or the asker has gone: a
//! command that leaves its children behind with its pipes open cannot hold the connection longer than that, and nothing runs on
//! for nobody.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mashines_guest::protocol::{Bytes, DEFAULT_TIMEOUT_MS, Exec, ExecResult, MAX_OUTPUT, MAX_TIMEOUT_MS};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long output is waited for after the command itself has ended (a child in the background may keep the pipe).
const DRAIN: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

/// Runs it to its end, to the end of its time, or until `asker_gone` says so.
pub fn run(
    request: &Exec,
    machine_env: &BTreeMap<String, String>,
    asker_gone: impl Fn() -> bool,
) -> Result<ExecResult> {
    let mut command = command(request)?;
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .envs(machine_env)
        .envs(&request.env)
        .current_dir(if std::path::Path::new("/root").is_dir() { "/root" } else { "/" })
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
    let timeout = Duration::from_millis(request.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS).min(MAX_TIMEOUT_MS));
    feed(&mut child, request.stdin.0.clone());
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (status, timed_out) = wait(&mut child, timeout, asker_gone)?;
    let until = Instant::now() + DRAIN;
    let (stdout, stdout_cut) = received(&stdout, until);
    let (stderr, stderr_cut) = received(&stderr, until);
    Ok(ExecResult {
        exit_code: status.code().unwrap_or(-1),
        exit_signal: status.signal().unwrap_or(0),
        stdout: Bytes(stdout),
        stderr: Bytes(stderr),
        truncated: stdout_cut || stderr_cut,
        timed_out,
    })
}

fn command(request: &Exec) -> Result<Command> {
    match (&request.command, &request.cmd) {
        (Some(words), None) => {
            let Some((program, arguments)) = words.split_first() else { bail!("'command' is an empty list") };
            let mut command = Command::new(program);
            command.args(arguments);
            Ok(command)
        }
        (None, Some(line)) => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", line]);
            Ok(command)
        }
        (None, None) | (Some(_), Some(_)) => {
            bail!("exec takes either 'command' (a list) or 'cmd' (a shell line)")
        }
    }
}

fn feed(child: &mut Child, input: Vec<u8>) {
    if let Some(mut stdin) = child.stdin.take() {
        // A command need not read all of its input.
        thread::spawn(move || stdin.write_all(&input));
    }
}

/// Reads a pipe to its end in the background, keeping the first [`MAX_OUTPUT`] bytes; the rest is read and dropped, so that
/// the command is not held up.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            let mut kept = 0;
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                // One byte more than the most, as the mark of "there was more".
                let keep = length.min(MAX_OUTPUT + 1 - kept);
                kept += keep;
                if keep > 0 && sender.send(buffer[..keep].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

fn received(chunks: &Receiver<Vec<u8>>, until: Instant) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut unfinished = false;
    loop {
        match chunks.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(chunk) => bytes.extend(chunk),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                unfinished = true;
                break;
            }
        }
    }
    let cut = bytes.len() > MAX_OUTPUT;
    bytes.truncate(MAX_OUTPUT);
    (bytes, cut || unfinished)
}

fn wait(child: &mut Child, timeout: Duration, asker_gone: impl Fn() -> bool) -> Result<(ExitStatus, bool)> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the command")? {
            return Ok((status, false));
        }
        if Instant::now() >= deadline {
            return Ok((kill_group(child)?, true));
        }
        if asker_gone() {
            kill_group(child)?;
            bail!("the asker went away before the command ended; the command was killed");
        }
        thread::sleep(POLL);
    }
}

fn kill_group(child: &mut Child) -> Result<ExitStatus> {
    let group =
        Pid::from_raw(i32::try_from(child.id()).context("a process id beyond the kernel's own range")?);
    // The group may be gone already; the child itself is killed either way.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.kill();
    child.wait().context("waiting for the killed command")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(cmd: &str) -> Exec {
        Exec { cmd: Some(cmd.into()), ..Exec::default() }
    }

    fn stays() -> bool {
        false
    }

    #[test]
    fn exit_code_output_input_and_environment_are_the_commands_own() {
        let mut request = sh("cat; echo $A $B >&2; exit 3");
        request.stdin = Bytes(b"in".to_vec());
        request.env.insert("B".into(), "over".into());
        let machine = BTreeMap::from([("A".into(), "a".into()), ("B".into(), "b".into())]);
        let result = run(&request, &machine, stays).unwrap();
        assert_eq!((result.exit_code, result.exit_signal), (3, 0));
        assert_eq!(result.stdout.0, b"in");
        assert_eq!(result.stderr.0, b"a over\n");
        assert!(!result.truncated && !result.timed_out);
    }

    #[test]
    fn a_signal_is_told_apart_from_an_exit_code() {
        let result = run(&sh("kill -15 $$"), &BTreeMap::new(), stays).unwrap();
        assert_eq!((result.exit_code, result.exit_signal), (-1, 15));
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let start = Instant::now();
        let mut request = sh("sleep 60 & sleep 60");
        request.timeout_ms = Some(100);
        let result = run(&request, &BTreeMap::new(), stays).unwrap();
        assert!(result.timed_out && start.elapsed() < Duration::from_secs(5));
        assert_eq!(result.exit_signal, 9);
    }

    #[test]
    fn output_beyond_the_cap_is_cut_and_said_to_be() {
        let result = run(&sh("head -c 1000000 /dev/zero"), &BTreeMap::new(), stays).unwrap();
        assert_eq!(result.stdout.0.len(), MAX_OUTPUT);
        assert!(result.truncated);
        assert_eq!(result.exit_code, 0);
    }

    #[test]
    fn a_command_dies_with_its_asker() {
        let start = Instant::now();
        let error = run(&sh("sleep 60"), &BTreeMap::new(), || start.elapsed() > Duration::from_millis(50))
            .unwrap_err();
        assert!(error.to_string().contains("went away") && start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn neither_or_both_forms_of_a_command_are_refused() {
        assert!(run(&Exec::default(), &BTreeMap::new(), stays).is_err());
        let both = Exec { command: Some(vec!["true".into()]), ..sh("true") };
        assert!(run(&both, &BTreeMap::new(), stays).is_err());
    }
}
