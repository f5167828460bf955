//! The server as a machine runs it, and OpenSSH's own programs as its clients.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../../tests/support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mashines_guest::Config;
use mashines_guest::config::HostKey;
pub use support::free_port;
use tempfile::TempDir;

/// A client that takes longer than this hangs.
const PATIENCE: &str = "60";

/// A server and everything to enter it; all of it ends with it.
pub struct Stage {
    pub dir: TempDir,
    pub port: u16,
    server: Child,
}

pub struct Output {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// What it wrote, when it ended well.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "err: {}\nout: {}", self.err, self.text());
        self.text()
    }
}

impl Stage {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// A server whose account has the key `ann`, whose CA is `ca` and whose host key is certified by `ca`.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ann", "stranger", "ca", "other_ca", "host"] {
            keygen(&["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &at(&dir, name)]);
        }
        keygen(&[
            "-q",
            "-s",
            &at(&dir, "ca"),
            "-I",
            "host",
            "-h",
            "-n",
            "127.0.0.1,machine",
            &at(&dir, "host.pub"),
        ]);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let mut config = Config::new("m", "quiet-otter");
        config.ssh_authorized_keys = vec![read("ann.pub")];
        config.ssh_user_ca = Some(read("ca.pub"));
        config.ssh_host_keys = vec![HostKey {
            kind: "ed25519".into(),
            private_pem: read("host"),
            public: read("host.pub"),
            certificate: Some(read("host-cert.pub")),
        }];
        config.env.insert("FLY_MACHINE_ID".into(), "m".into());
        change(&mut config);
        std::fs::write(dir.path().join("config"), serde_json::to_vec(&config).unwrap()).unwrap();
        let port = free_port();
        std::fs::write(dir.path().join("known"), format!("@cert-authority * {}", read("ca.pub"))).unwrap();
        let server = server(&dir, port).spawn().unwrap();
        let stage = Self { dir, port, server };
        stage.wait();
        stage
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn path(&self, name: &str) -> String {
        at(&self.dir, name)
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The key with a certificate of `ca` for `principals`, good for `validity`; its name.
    pub fn certify(&self, ca: &str, principals: &str, validity: &str, more: &[&str]) -> String {
        let name = format!("certified{}", free_port());
        keygen(&["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &self.path(&name)]);
        let (ca, public) = (self.path(ca), self.path(&format!("{name}.pub")));
        let fixed = ["-q", "-s", &ca, "-I", "test", "-n", principals, "-V", validity];
        keygen(&[&fixed[..], more, &[&public]].concat());
        name
    }

    fn options(&self, key: &str) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known"));
        let options = [
            "-F",
            "none",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            &known,
            "-o",
            "GlobalKnownHostsFile=none",
            "-o",
            "LogLevel=INFO",
        ];
        let mut options: Vec<String> = options.map(str::to_owned).to_vec();
        options.extend(["-i".to_owned(), self.path(key)]);
        options
    }

    /// `ssh` with a key, before the destination.
    pub fn client(&self, program: &str, key: &str) -> Command {
        let mut command = Command::new("timeout");
        command.env_remove("SSH_AUTH_SOCK").args(["-k", "1", PATIENCE, program]).args(self.options(key));
        command.args([if program == "ssh" { "-p" } else { "-P" }, &self.port.to_string()]);
        command
    }

    /// `ssh …` as a line for programs that start it themselves, with the account's key and without the destination.
    pub fn line(&self) -> String {
        let client = self.client("ssh", "ann");
        let words: Vec<_> = client.get_args().skip(3).map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// `ssh` as root with the account's key.
    pub fn ssh(&self, arguments: &[&str]) -> Output {
        self.ssh_as("ann", "root", arguments)
    }

    pub fn ssh_as(&self, key: &str, user: &str, arguments: &[&str]) -> Output {
        let mut command = self.client("ssh", key);
        let (options, words): (Vec<&str>, Vec<&str>) =
            arguments.iter().partition(|word| word.starts_with('-'));
        command.args(options).arg(format!("{user}@127.0.0.1")).args(words);
        finish(command, b"")
    }

    /// A command that stays, with a line of its output read, which says that it has begun.
    pub fn stay(&self, options: &[&str], line: &str) -> (Child, String) {
        let mut command = Command::new("ssh");
        command.args(self.options("ann")).args(["-p", &self.port.to_string()]).args(options);
        command.arg("root@127.0.0.1").arg(line).env_remove("SSH_AUTH_SOCK");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        (child, first.trim().to_owned())
    }

    /// A batch of OpenSSH's sftp.
    pub fn sftp(&self, batch: &str) -> Output {
        let mut command = self.client("sftp", "ann");
        command.args(["-q", "-b", "-", "root@127.0.0.1"]);
        finish(command, batch.as_bytes())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _gone = self.server.kill();
        let _gone = self.server.wait();
    }
}

fn server(dir: &TempDir, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mashines-guest-ssh"));
    command.args(["serve", &at(dir, "config"), &format!("127.0.0.1:{port}")]).stdin(Stdio::null());
    command
}

fn at(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn keygen(arguments: &[&str]) {
    let output = Command::new("ssh-keygen").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn finish(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A program need not read all of it.
        let _gone = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(124), "it hangs: {command:?}\n{err}");
    Output { code: output.status.code(), out: output.stdout, err }
}

/// Bytes that no compression and no repetition hides a fault in.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Waits until a process is gone.
pub fn ends(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A memory figure of a process in KiB, of `/proc/PID/status`.
pub fn memory_kib(pid: u32, figure: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

impl Stage {
    /// Another server at the same port; its words can be read.
    pub fn second(&self) -> Child {
        let mut command = server(&self.dir, self.port);
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The first server ends.
    pub fn stop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    pub fn server_pid(&self) -> u32 {
        self.server.id()
    }
}
