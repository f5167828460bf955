//! One command of a deployment: its lines stream to the report, its last ones are kept, and it dies with us.
//!
//! The command lives in a PID namespace of its own whose first process dies with `unshare`, which dies with us: whatever is killed when, the
//! kernel ends all of the build, daemons that it left in the background included. With its mount namespace go the mounts it made.

use std::collections::VecDeque;
use std::io::{PipeReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::hint;
use super::place::machine_name;
use super::release::Env;
use super::report::{Report, clean};
use super::tether;
use super::watch::{Stopped, Watch};

/// A line is kept up to so many bytes; the report cuts it shorter still.
const LONGEST: usize = 4096;
/// How many last lines a failure shows.
pub const TAIL: usize = 20;
const POLL: Duration = Duration::from_millis(100);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A deployment that did not come to its end.
#[derive(Debug)]
pub enum Failure {
    /// The person's to mend.
    Phase {
        /// The phase's name.
        phase: String,
        /// What happened.
        what: String,
        /// Its last lines.
        lines: Vec<String>,
        /// What to do.
        hint: Option<String>,
    },
    /// It was told to stop.
    Stopped(Stopped),
    /// Ours.
    Inner(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Inner(error)
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl Failure {
    /// A failure without output.
    pub fn plain(phase: &str, what: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Phase {
            phase: phase.to_owned(),
            what: what.into(),
            lines: Vec::new(),
            hint: hint.map(str::to_owned),
        }
    }

    /// In one sentence, for the record.
    pub fn summary(&self) -> String {
        match self {
            Self::Phase { phase, what, .. } => format!("{phase}: {what}"),
            Self::Stopped(stopped) => stopped.to_string(),
            Self::Inner(error) => format!("{error:#}"),
        }
    }

    /// In full: the phase, the last lines, the hint.
    pub fn tell(&self, report: &Report) {
        match self {
            Self::Phase { phase, what, lines, hint } => {
                report.trouble(&format!("{phase} failed: {what}"));
                if !lines.is_empty() {
                    report.trouble("its last lines:");
                    lines.iter().for_each(|line| report.trouble(&format!("    {line}")));
                }
                if let Some(hint) = hint {
                    report.trouble(&format!("hint: {}", hint.replace("MACHINE", &machine_name())));
                }
            }
            Self::Stopped(stopped) => report.trouble(&stopped.to_string()),
            Self::Inner(error) => report.trouble(&format!("the machine could not: {error:#}")),
        }
    }
}

/// Runs a shell command line as the phase `name`.
pub fn shell(
    name: &str,
    line: &str,
    directory: &Path,
    env: &Env,
    report: &Report,
    watch: &mut Watch,
) -> Result<(), Failure> {
    // The namespace's first process is a shell that waits: process 1 has no default signals, which the person's command should have.
    let wrapped = ["sh", "-c", r#"sh -e -c "$1"; exit $?"#, "sh", line];
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.arg("--").args(wrapped).current_dir(directory).env_clear();
    command.env("PATH", PATH).env("HOME", home()).env("LANG", "C.UTF-8").env("CI", "true").envs(env);
    let started = Instant::now();
    let (status, lines) = stream(&mut command, report, watch)?;
    if status.success() {
        return Ok(());
    }
    // unshare passes its child's signal on as its own.
    let code =
        status.code().or_else(|| std::os::unix::process::ExitStatusExt::signal(&status).map(|n| 128 + n));
    let what = format!(
        "`{}` ended with exit code {} after {:.1} s",
        line.lines().next().unwrap_or_default(),
        code.map_or("?".to_owned(), |code| code.to_string()),
        started.elapsed().as_secs_f64()
    );
    let hint = hint::of(&lines, code).map(str::to_owned);
    Err(Failure::Phase { phase: name.to_owned(), what, lines, hint })
}

/// Where programs keep their things.
pub fn home() -> &'static str {
    "/root"
}

/// Runs a command to its end or to ours, and gives its last lines.
fn stream(
    command: &mut Command,
    report: &Report,
    watch: &mut Watch,
) -> Result<(ExitStatus, Vec<String>), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let also = writer.try_clone().context("making a pipe")?;
    let mut child = tether::die_with_parent(command.stdin(Stdio::null()).stdout(also).stderr(writer))
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    // The command holds the writing ends; ours go, so that its end is the end of its output.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let lines = read_lines(reader);
    let mut tail = VecDeque::new();
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                report.detail(&line);
                tail.push_back(line);
                if tail.len() > TAIL {
                    tail.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(stopped) = watch.stopped() {
            let _ = child.kill();
            child.wait().with_context(|| format!("waiting for {program}"))?;
            return Err(stopped.into());
        }
    }
    // It may have closed its output and work on.
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {program}"))? {
            return Ok((status, tail.into()));
        }
        if let Some(stopped) = watch.stopped() {
            let _ = child.kill();
            child.wait().with_context(|| format!("waiting for {program}"))?;
            return Err(stopped.into());
        }
        thread::sleep(POLL / 10);
    }
}

/// Lines, and what a progress bar redraws with `\r`, cleaned.
fn read_lines(mut pipe: PipeReader) -> Receiver<String> {
    // Bounded: a build that writes faster than anybody reads waits, as it would at a terminal.
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        let mut line = Vec::new();
        let send = |line: &mut Vec<u8>| {
            let text = clean(&String::from_utf8_lossy(line));
            line.clear();
            text.is_empty() || sender.send(text).is_ok()
        };
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            for &byte in &buffer[..length] {
                if byte == b'\n' || byte == b'\r' {
                    if !send(&mut line) {
                        return;
                    }
                } else if line.len() < LONGEST {
                    line.push(byte);
                }
            }
        }
        send(&mut line);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<(), Failure> {
        shell("Build", line, Path::new("/"), &Env::new(), &Report::new(), &mut Watch::idle())
    }

    #[test]
    fn a_failure_has_the_phase_the_code_and_the_last_lines() {
        let Err(Failure::Phase { phase, what, lines, .. }) = run("seq 30; false; echo never") else {
            panic!()
        };
        assert_eq!(phase, "Build");
        assert!(what.contains("exit code 1"), "{what}");
        assert_eq!((lines.len(), lines[TAIL - 1].as_str()), (TAIL, "30"));
    }

    #[test]
    fn a_missing_program_has_a_hint() {
        let Err(Failure::Phase { hint: Some(hint), .. }) = run("no-such-program") else { panic!() };
        assert!(hint.contains("missing in the machine"), "{hint}");
    }

    #[test]
    fn what_a_build_leaves_in_the_background_ends_with_it() {
        let started = Instant::now();
        run("sleep 60 & echo $! > /dev/null").unwrap();
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
