//! What it takes to drive other people's clients: where they are, keys in their formats, and something for them to talk to.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use mashines_gateway::Config;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::{Output, Stage, finish, free_port};

/// The program, or a panic that names the Debian package it is in.
pub fn tool(program: &str, package: &str) -> Command {
    need(program, package);
    let mut command = Command::new(program);
    command.kill_on_drop(true);
    command
}

/// Panics with what to install when the program is missing.
pub fn need(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    assert!(
        folders.any(|folder| folder.join(program).is_file()),
        "{program} is not installed: apt-get install {package}"
    );
}

/// A script of `tests/clients`, run by Python with a module of PyPI that it needs.
pub async fn python(module: &str, script: &str, arguments: &[String]) -> Command {
    let mut command = tool("python3", "python3");
    let there = finish(module_check(module), b"").await;
    assert_eq!(
        there.code,
        Some(0),
        "python3 has no module {module}: pip install {module}; scripts/test does it"
    );
    let script = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    command.arg(script).args(arguments);
    command
}

/// `python3 -m MODULE`.
pub async fn python_module(module: &str) -> Command {
    let there = finish(module_check(module), b"").await;
    assert_eq!(
        there.code,
        Some(0),
        "python3 has no module {module}: pip install {module}; scripts/test does it"
    );
    let mut command = tool("python3", "python3");
    command.args(["-m", module]);
    command
}

fn module_check(module: &str) -> Command {
    let mut check = tool("python3", "python3");
    check.args(["-c", &format!("import {module}")]);
    check
}

/// Tests open connections faster than people.
pub fn hurried(config: &mut Config) {
    config.ssh_limits.per_source_per_second = 10_000;
    config.ssh_limits.per_source = 10_000;
}

/// Runs it, and wants it to end well.
pub async fn succeed(command: Command, input: &[u8]) -> Output {
    let shown = format!("{:?}", command.as_std());
    let output = finish(command, input).await;
    assert_eq!(
        output.code,
        Some(0),
        "{shown}\nerr: {}\nout: {}",
        output.err,
        output.text().chars().take(4000).collect::<String>()
    );
    output
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

/// A server that reads to the end of the sending and answers what it heard. Its port.
pub async fn hearer() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(hear(stream));
        }
    });
    port
}

/// The same at a unix socket.
pub fn hearer_at(path: &std::path::Path) {
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(hear(stream));
        }
    });
}

async fn hear(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut heard = Vec::new();
    if stream.read_to_end(&mut heard).await.is_ok() {
        let _gone = stream.write_all(format!("heard {}", String::from_utf8_lossy(&heard)).as_bytes()).await;
    }
}

/// Says something to a hearer and wants its answer.
pub async fn say(stream: impl AsyncRead + AsyncWrite + Unpin, word: &str) -> String {
    ask(stream, word).await.unwrap()
}

/// The same, where the connection may be refused.
pub async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, word: &str) -> std::io::Result<String> {
    let talk = async {
        stream.write_all(word.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(20), talk).await.expect("no answer")
}

/// Connects to a port of this host that is about to open.
pub async fn reach(port: u16) -> TcpStream {
    for _ in 0..200 {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody listens on port {port}");
}

/// Starts a client that stays.
pub fn stay(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// A connection of ssh that several clients share, by its option.
pub struct Master {
    pub option: String,
    _process: Child,
}

impl Master {
    pub async fn open(stage: &Stage, more: &[&str]) -> Self {
        let socket = stage.path("control");
        let option = format!("ControlPath={}", socket.display());
        let options = [&["-M", "-N", "-o", &option], more].concat();
        let process = stay(stage.ssh_with("ann", "web", &options, &[]));
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { option, _process: process }
    }
}

/// An ssh-agent with a key of the stage's in it; ends when it is dropped.
pub struct Agent {
    pub socket: PathBuf,
    _process: Child,
}

impl Agent {
    pub async fn with(stage: &Stage, keys: &[PathBuf]) -> Self {
        let socket = stage.path(&format!("agent{}", free_port()));
        let mut agent = tool("ssh-agent", "openssh-client");
        let process = agent.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        // The file is there before anybody listens at it.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut add = tool("ssh-add", "openssh-client");
        add.arg("-q").args(keys).env("SSH_AUTH_SOCK", &socket);
        succeed(add, b"").await;
        Self { socket, _process: process }
    }
}

impl Stage {
    /// The gateway's port, as clients want it.
    pub fn port(&self) -> String {
        self.gateway.port().to_string()
    }

    /// `SHA256:…` of the gateway's host key.
    pub fn fingerprint(&self) -> String {
        let key = russh::keys::load_secret_key(self.path("gateway/host_key"), None).unwrap();
        key.public_key().fingerprint(russh::keys::HashAlg::Sha256).to_string()
    }

    /// A line for `known_hosts`.
    pub fn known_host(&self) -> String {
        let key = russh::keys::load_secret_key(self.path("gateway/host_key"), None).unwrap();
        format!("[127.0.0.1]:{} {}\n", self.gateway.port(), key.public_key().to_openssh().unwrap())
    }

    /// `ssh` with all its options as one string, for programs that start it themselves.
    pub fn ssh_line(&self, key: &str) -> String {
        format!("ssh {} -p {}", self.options(key).join(" "), self.port())
    }

    /// `ssh` at its usual log level, with more options; what it runs is still to be said.
    pub fn loud_with(&self, key: &str, user: &str, options: &[&str]) -> Command {
        let mut ssh = tool("ssh", "openssh-client");
        // The first value of an option counts.
        ssh.args(["-o", "LogLevel=INFO"]).args(self.options(key)).args(["-p", &self.port()]).args(options);
        ssh.arg(format!("{user}@127.0.0.1"));
        ssh
    }
}
