//! A person's checkout, pushed to a machine, and what is served there.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::{Place, Topology};
use crate::person::Person;
use crate::run::run;

/// A checkout of a person.
#[derive(Clone, Debug)]
pub struct Checkout {
    topology: Topology,
    person: Person,
    directory: PathBuf,
}

impl Checkout {
    /// An empty one.
    pub fn new(topology: &Topology, person: &Person, name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("mashines-checkout-{name}"));
        let _none = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)?;
        let checkout = Self { topology: topology.clone(), person: person.clone(), directory };
        run(checkout.git().args(["init", "--quiet", "--initial-branch=main"]))?;
        Ok(checkout)
    }

    /// Commits these files, and the ones of before.
    pub fn commit(&self, files: &[(&str, &str)]) -> Result<()> {
        for (name, text) in files {
            let file = self.directory.join(name);
            std::fs::create_dir_all(file.parent().context("a file has a directory")?)?;
            std::fs::write(file, text)?;
        }
        run(self.git().args(["add", "--all"]))?;
        run(self.git().args(["commit", "--quiet", "--message", "change"])).map(drop)
    }

    /// Puts a file there, for the next commit.
    pub fn put(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let file = self.directory.join(name);
        std::fs::write(&file, bytes)?;
        Ok(std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode))?)
    }

    /// Begins a push to a machine; its words come from standard error.
    pub fn push(&self, slug: &str) -> Result<Child> {
        self.push_with(slug, &[])
    }

    /// The same for a checkout that has nothing in common with what was pushed before.
    pub fn force_push(&self, slug: &str) -> Result<Child> {
        self.push_with(slug, &["--force"])
    }

    fn push_with(&self, slug: &str, options: &[&str]) -> Result<Child> {
        let mut git = self.git();
        git.args(["push", "--progress"]).args(options);
        git.args([&format!("git@{}:{slug}", self.person.domain()), "main"]);
        git.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        git.spawn().context("cannot start git")
    }

    fn git(&self) -> Command {
        let mut git = self.topology.command(Place::Client, "git");
        git.args(["-c", "user.name=person", "-c", "user.email=person@example.org"]);
        git.arg("-C").arg(&self.directory).env("GIT_SSH_COMMAND", self.person.ssh_command());
        git
    }
}

/// What a push said, and whether it went well.
pub fn pushed(child: Child) -> Result<(bool, String)> {
    let output = child.wait_with_output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// One request to what a machine serves.
pub fn get(topology: &Topology, url: &str) -> Result<String> {
    let mut curl = topology.command(Place::Client, "curl");
    run(curl.args(["--silent", "--show-error", "--fail", "--max-time", "20", url]))
}

/// Requests one after another, until it is asked how many there were; the first that fails is the error.
pub struct Requests {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Requests {
    /// Begins.
    pub fn begin(topology: &Topology, url: &str) -> Self {
        let (topology, url, stop) = (topology.clone(), url.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut answered = 0;
            while !stopped.load(Ordering::Relaxed) {
                get(&topology, &url).with_context(|| format!("request {answered}"))?;
                answered += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(answered)
        });
        Self { stop, thread }
    }

    /// How many were answered.
    pub fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the requests' thread died"))?
    }
}
