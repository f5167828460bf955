//! As plain processes, for tests: where process 1 is no systemd. What fails is not started again, and no boot is outlived.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Activity, Runner, Unit};
use crate::deploy::place::Place;

const GRACE: Duration = Duration::from_secs(10);

/// Their process ids and logs are files of `run/`.
pub struct Children {
    directory: PathBuf,
}

impl Children {
    /// Below the place's directory.
    pub fn new(place: &Place) -> Self {
        Self { directory: place.base().join("run") }
    }

    fn spawn(&self, name: &str, arguments: &[&str]) -> Result<()> {
        fs::create_dir_all(&self.directory).context("making run/")?;
        let log = File::create(self.directory.join(format!("{name}.log"))).context("making a log")?;
        let child = Command::new(std::env::current_exe().context("finding this program")?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing a log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        fs::write(self.directory.join(format!("{name}.pid")), child.id().to_string()).context("writing a pid")
    }

    fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.directory.join(format!("{name}.pid"))).ok()?;
        let pid = Pid::from_raw(text.parse().ok()?);
        // Ended and not yet waited for is ended: the state stands behind the name in parentheses (proc(5)).
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (!stat.rsplit(')').next()?.trim_start().starts_with('Z')).then_some(pid)
    }
}

impl Runner for Children {
    fn start(&self, unit: &Unit) -> Result<()> {
        match self.pid(&unit.to_string()) {
            Some(_) => Ok(()),
            None => self.spawn(&unit.to_string(), &["deploy", "run", &unit.to_string()]),
        }
    }

    fn activity(&self, unit: &Unit) -> Result<Activity> {
        Ok(match self.pid(&unit.to_string()) {
            Some(_) => Activity::Running,
            None => Activity::Ended("it ended".to_owned()),
        })
    }

    fn stop(&self, units: &[Unit]) -> Result<()> {
        let started = Instant::now();
        for name in units.iter().map(Unit::to_string) {
            let mut signal = Signal::SIGTERM;
            while let Some(pid) = self.pid(&name) {
                let _ = killpg(pid, signal);
                if started.elapsed() > GRACE {
                    signal = Signal::SIGKILL;
                }
                sleep(Duration::from_millis(20));
            }
            let _ = fs::remove_file(self.directory.join(format!("{name}.pid")));
        }
        Ok(())
    }

    fn running(&self) -> Result<Vec<Unit>> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Ok(Vec::new()) };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let units = names.filter_map(|name| Unit::parse(name.strip_suffix(".pid")?));
        Ok(units.filter(|unit| self.pid(&unit.to_string()).is_some()).collect())
    }

    fn last_lines(&self, unit: &Unit, count: usize) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join(format!("{unit}.log"))).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    fn ensure_front(&self) -> Result<()> {
        match self.pid("front") {
            Some(_) => Ok(()),
            None => self.spawn("front", &["deploy", "front"]),
        }
    }
}
