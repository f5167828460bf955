//! A fleet of real processes on loopback: control, and entries that answer names. Each can be killed alone and started again.

// Each test program uses a part of it.
#![allow(dead_code)]

pub mod asked;
#[path = "../../../tests/support/mod.rs"]
mod support;
pub mod unbound;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::AUTHORIZATION;
use mashines_fleet::pki::{Identity, PeerName, anonymous_client_config};
use mashines_fleet::rpc::Client;
use serde_json::Value;
pub use support::{PATIENCE, eventually, free_port};

/// A process that is killed with this value, and tells what it said when the test failed.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn();
        let program = command.get_program().to_string_lossy().into_owned();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"));
        Self { child, log }
    }
}

impl Drop for Process {
    /// SIGKILL, at whatever it is doing.
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(40).collect();
            eprintln!("--- end of {}:", self.log.display());
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A box of the fleet: its configuration, its state, and its process while it runs.
pub struct Node {
    directory: PathBuf,
    process: Option<Process>,
}

impl Node {
    fn new(directory: PathBuf, config: &str) -> Self {
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("mashinesd.toml"), config).unwrap();
        Self { directory, process: None }
    }

    /// Runs a command of `mashinesd` to its end; what it printed.
    fn command(&self, arguments: &[&str]) -> String {
        let output = self.mashinesd(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mashinesd {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn mashinesd(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mashinesd"));
        command.args(arguments).arg("--config").arg(self.directory.join("mashinesd.toml"));
        command
    }

    /// Starts it, or starts it again.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.directory.display());
        self.process = Some(Process::start(&mut self.mashinesd(&["run"]), self.directory.join("log")));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        assert!(self.process.take().is_some(), "{} does not run", self.directory.display());
    }

    /// Its copy of the records on disk; null while there is none.
    pub fn kept(&self) -> Value {
        let files = std::fs::read_dir(self.directory.join("state")).into_iter().flatten().flatten();
        let is_copy = |name: &str| name.starts_with("replica-") && name.ends_with(".json");
        let copy = files
            .map(|file| file.path())
            .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_copy));
        let text = copy.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        let file: Value = serde_json::from_slice(&text).unwrap_or_default();
        file["view"].clone()
    }

    /// The revision that its copy of the records on disk has; 0 while there is none.
    pub fn kept_revision(&self) -> u64 {
        self.kept()["revision"].as_u64().unwrap_or_default()
    }

    /// A client of control with this box's certificate.
    pub fn client(&self, url: &str) -> Client {
        Client::to_control(&Identity::load(&self.directory.join("state/pki")).unwrap(), url).unwrap()
    }

    /// Whether it has what opens the keys of zones.
    pub fn has_secret(&self) -> bool {
        self.directory.join("state/entry.key").exists()
    }
}

/// Control and entries, not started.
pub struct Fleet {
    pub control: Node,
    pub servers: Vec<Node>,
    /// Where the servers answer.
    pub addresses: Vec<SocketAddr>,
    /// The API, as the first account.
    pub api: Client,
    /// Control's address.
    pub url: String,
}

/// What every configuration begins with; `roles` as TOML.
fn head(at: &Path, id: &str, roles: &str, url: &str) -> String {
    format!(
        "id = \"{id}\"\nregion = \"lab\"\nroles = [{roles}]\nstate_dir = \"{}\"\nunderlay = \"127.0.0.1\"\n\
         control_urls = [\"{url}\"]\n",
        at.join(id).join("state").display()
    )
}

impl Fleet {
    /// Founds a fleet with control running and `names` entries that have joined. `zones`: TOML of `[[fleet.zones]]`; `settings`: more of `[control]`.
    pub async fn found(at: &Path, names: &[&str], zones: &str, settings: &str) -> Self {
        let url = format!("https://127.0.0.1:{}", free_port());
        let name_servers: Vec<String> = names
            .iter()
            .map(|name| format!("{{ name = \"{name}.mashine.dev\", addresses = [\"127.0.0.1\"] }}"))
            .collect();
        let founding = format!(
            "{}[fleet]\ndomain = \"mashine.dev\"\nprefix = \"2001:db8:160::/48\"\nname_servers = [{}]\n{zones}\n\
             [control]\nlisten = \"{}\"\n{settings}\n",
            head(at, "control", "\"control\"", &url),
            name_servers.join(", "),
            url.trim_start_matches("https://"),
        );
        let mut control = Node::new(at.join("control"), &founding);
        let token = control.command(&["init"]);
        control.start();
        let ca = std::fs::read_to_string(control.directory.join("state/pki/ca.pem")).unwrap();
        let tls = anonymous_client_config(&ca).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let api = Client::new(tls, &url, PeerName::control().server_name().unwrap())
            .with_header(AUTHORIZATION, bearer);
        let until = Instant::now() + PATIENCE;
        while let Err(error) = api.get::<Value>("/v1/fleet/zones").await {
            assert!(Instant::now() < until, "control does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut fleet = Self { control, servers: Vec::new(), addresses: Vec::new(), api, url };
        for name in names {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let sections = format!(
                "[gateway]\nssh_listen = [\"127.0.0.1:0\"]\n\
                 [dns]\nlisten = [\"{address}\"]\nthreads = 1\nresponses_per_second = 0\nidentity = \"{name}\"\n"
            );
            let server = fleet.join(at, name, "\"entry\"", &sections);
            fleet.servers.push(server);
            fleet.addresses.push(address);
        }
        fleet
    }

    /// A box that has joined, not started. `roles` and `sections` as TOML.
    pub fn join(&self, at: &Path, name: &str, roles: &str, sections: &str) -> Node {
        let node = Node::new(at.join(name), &format!("{}{sections}", head(at, name, roles, &self.url)));
        let token = self.control.command(&["token", "join"]);
        node.command(&["join", "--control", &self.url, "--token", &token]);
        node
    }
}
