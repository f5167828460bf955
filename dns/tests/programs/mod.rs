//! Other people's programs, each in a directory of its own on a port of its own, ended with the test.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::panic)]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub use support::{PATIENCE, eventually, free_port};

/// A program that runs; killed when dropped.
pub struct Peer {
    child: Child,
    pub directory: tempfile::TempDir,
    log: PathBuf,
    pub port: u16,
}

impl Peer {
    /// Starts it in a new directory, `prepare`d with its files; it is to listen at that port.
    pub fn start(program: &str, port: u16, prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments = prepare(directory.path());
        let log = directory.path().join("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"));
        Self { child, directory, log, port }
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from([127, 0, 0, 1]), self.port)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.log.display(), self.log());
        }
    }
}

/// Runs a program to its end: whether it was content, and all that it said.
pub fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// What `kdig` says, asked at an address.
pub fn kdig(at: SocketAddr, arguments: &[&str]) -> String {
    let (server, port) = (format!("@{}", at.ip()), at.port().to_string());
    let all = [&[server.as_str(), "-p", &port, "+timeout=3", "+retry=2"], arguments].concat();
    run("kdig", &all).1
}

/// The answers' data, a line each.
pub fn short(at: SocketAddr, arguments: &[&str]) -> Vec<String> {
    let said = kdig(at, &[arguments, &["+short"]].concat());
    let remark = |line: &&str| line.starts_with(';') || line.contains("WARNING");
    said.lines().filter(|line| !line.is_empty() && !remark(line)).map(str::to_owned).collect()
}
