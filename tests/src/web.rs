//! Clients of `https://SLUG.mashine.dev`: curl, the WebSocket and gRPC of `tests/clients/web.py`, a browser.

use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::browser::Browser;
use crate::netns::{Place, Topology};
use crate::run::run;

/// A visitor who trusts one root.
pub struct Visitor {
    topology: Topology,
    root: PathBuf,
}

/// What a stream says at its end.
#[derive(Clone, Debug, Deserialize)]
pub struct Told {
    /// Messages.
    pub count: u64,
    /// The longest time without one.
    pub largest_gap_ms: u64,
}

/// Something that goes on until it is ended.
pub struct Ongoing(Child);

impl Visitor {
    /// One on the internet.
    pub fn new(topology: &Topology, root: &Path) -> Self {
        Self { topology: topology.clone(), root: root.to_owned() }
    }

    /// `curl` with these words: what it prints.
    pub fn curl(&self, words: &[&str]) -> Result<String> {
        run(self.curl_command().args(words))
    }

    fn curl_command(&self) -> Command {
        let mut curl = self.topology.command(Place::Client, "curl");
        curl.args(["--silent", "--show-error", "--max-time", "300", "--cacert"]).arg(&self.root);
        curl
    }

    /// A WebSocket that says something now and then and wants it back.
    pub fn websocket(&self, url: &str) -> Result<Ongoing> {
        self.python(&["websocket", url, &self.root.to_string_lossy()])
    }

    /// A gRPC call that answers with one message after another.
    pub fn grpc(&self, target: &str) -> Result<Ongoing> {
        self.python(&["grpc", target, &self.root.to_string_lossy()])
    }

    /// A download, looked at as it comes.
    pub fn download(&self, url: &str) -> Result<Ongoing> {
        self.python(&["download", url, &self.root.to_string_lossy()])
    }

    /// A browser with this page open.
    pub fn browser(&self, url: &str) -> Result<Browser> {
        Browser::open(&self.topology, &self.root, url)
    }

    fn python(&self, words: &[&str]) -> Result<Ongoing> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/web.py");
        // In the lab the checkout is elsewhere.
        let script = if Path::new(script).exists() { script } else { "/src/tests/clients/web.py" };
        let mut python = self.topology.command(Place::Client, "python3");
        let child = python
            .arg(script)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Ongoing(child.spawn().context("cannot start python3")?))
    }

    /// Server-sent events.
    pub fn events(&self, url: &str) -> Result<Events> {
        let mut curl = self.curl_command();
        // They go on for as long as the moves take.
        let curl = curl
            .args(["--no-buffer", "--http2", "--max-time", "1800", url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = curl.stderr(Stdio::inherit()).spawn().context("cannot start curl")?;
        let output = child.stdout.take().context("no output")?;
        Ok(Events { ongoing: Ongoing(child), lines: BufReader::new(output).lines(), last: 0 })
    }
}

impl Ongoing {
    /// Whether it is still under way.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Ends it: what it says of itself.
    pub fn told(mut self) -> Result<Told> {
        drop(self.0.stdin.take());
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().context("no output")?.read_to_string(&mut out)?;
        self.0.stderr.take().context("no error output")?.read_to_string(&mut err)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "a client of the web door ended with {status}: {err}");
        serde_json::from_str(&out).with_context(|| format!("the client printed {out:?}"))
    }
}

/// Server-sent events that count.
pub struct Events {
    ongoing: Ongoing,
    lines: Lines<BufReader<ChildStdout>>,
    last: u64,
}

impl Events {
    /// Reads so many more: each is one more than the last.
    pub fn read(&mut self, wanted: u64) -> Result<()> {
        let end = self.last + wanted;
        while self.last < end {
            let line =
                self.lines.next().with_context(|| format!("the events ended after {}", self.last))??;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            self.last += 1;
            ensure!(data == self.last.to_string(), "event {} was {data:?}", self.last);
        }
        Ok(())
    }

    /// Whether they go on.
    pub fn go_on(&mut self) -> Result<bool> {
        self.ongoing.goes_on()
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
