//! A machine's monitor seen from outside the host daemon: its process, its spec, its control socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mashines_vmm::api::{MachineSpec, Phase, Reply, Request, Status};

use crate::daemons::Fleet;
use crate::netns::Place;

/// One running `mashines-vmm`.
pub struct Monitor {
    /// Its process.
    pub pid: i32,
    /// What it was started with.
    pub spec: MachineSpec,
    socket: PathBuf,
}

/// All monitors of a place. One that ends while we look is left out.
pub fn of(fleet: &Fleet, place: Place) -> Result<Vec<Monitor>> {
    let pids = fleet.monitors(place)?;
    Ok(pids.into_iter().filter_map(|pid| Monitor::of_process(pid).ok()).collect())
}

impl Monitor {
    fn of_process(pid: i32) -> Result<Self> {
        let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let words: Vec<&str> = cmdline.split('\0').collect();
        let after = |flag: &str| {
            let at = words.iter().position(|w| *w == flag)?;
            words.get(at + 1).map(PathBuf::from)
        };
        let spec = std::fs::read(after("--spec").context("the monitor has no --spec")?)?;
        let socket = after("--socket").context("the monitor has no --socket")?;
        Ok(Self { pid, spec: serde_json::from_slice(&spec)?, socket })
    }

    /// Asks its control socket for its status.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => bail!("the monitor answered {other:?} to status"),
        }
    }

    /// Stops its vCPUs for a while.
    pub fn pause_for(&self, pause: Duration) -> Result<()> {
        self.ask(&Request::Pause)?;
        std::thread::sleep(pause);
        self.ask(&Request::Resume).map(drop)
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream);
        writeln!(reader.get_mut(), "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Reply::Error { error, .. } => bail!("the monitor refused {request:?}: {error}"),
            reply => Ok(reply),
        }
    }

    /// Makes it wait at the start of a phase, or lets it go on.
    pub fn hold(&self, phase: Phase, hold: bool) -> Result<()> {
        let name = serde_json::to_value(phase)?;
        let name = name.as_str().context("a phase is a word")?;
        let file = self.spec.state_dir.join(format!("hold-{name}"));
        if hold {
            std::fs::write(file, "")?;
        } else {
            let _ = std::fs::remove_file(file);
        }
        Ok(())
    }
}
