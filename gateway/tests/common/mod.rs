//! A gateway in this process, OpenSSH's `sshd` playing the machine, OpenSSH's `ssh` playing the person.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::daemon::Common;
use mashines_fleet::pki::{Ca, PeerName};
use mashines_fleet::view::{Batch, Change, View};
use mashines_gateway::{Config, Doors};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Everything a test needs; all of it ends with it.
pub struct Stage {
    pub directory: TempDir,
    pub gateway: SocketAddr,
    pub machine_port: u16,
    pub views: watch::Sender<Arc<View>>,
    sshd: Option<Child>,
    _shutdown: watch::Sender<bool>,
}

/// What a command of a client brought.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

pub fn put(key: &str, value: Value) -> Change {
    Change { key: key.to_owned(), value: Some(value) }
}

pub fn account(id: &str, keys: &[String]) -> Change {
    put(&format!("accounts/{id}"), json!({"id": id, "ssh_keys": keys, "private_prefix": "fd00::"}))
}

pub fn machine(id: u64, slug: &str, owner: &str, ipv6: Ipv6Addr, state: &str, port: Option<u16>) -> Change {
    let port = port.map(|port| json!({"entry": "entry1", "port": port}));
    let id = format!("{id:014x}");
    put(
        &format!("machines/{id}"),
        json!({
            "id": id, "slug": slug, "account": owner, "app": "web",
            "instance_id": "01J00000000000000000000000",
            "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
            "image_digest": "sha256:00", "desired": "started", "state": state, "place": null,
            "net": {"ipv6": ipv6, "private6": "fd00::9", "mac": "02:00:00:00:00:01", "ssh_port": port},
            "created_at": 0, "updated_at": 0,
        }),
    )
}

pub fn fleet_config() -> Change {
    let value = json!({
        "domain": "mashine.dev", "prefix": "2001:db8::/48", "name_servers": [],
        "ssh_ports": [2200, 2299], "ssh_ca": null,
    });
    put("config", value)
}

pub fn free_port() -> u16 {
    TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().port()
}

fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Stage {
    /// A gateway that knows ann's machine `web` (the sshd) and bob's `theirs`, and ann's stopped `off`.
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["ann", "bob", "stranger", "ca", "machine_host_key"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", at(name).to_str().unwrap()]);
        }
        let machine_port = free_port();
        let sshd = start_sshd(directory.path(), machine_port).await;
        certify(directory.path());

        let mut config: Config =
            serde_json::from_value(json!({"ssh_listen": ["127.0.0.1:0"], "machine_port": machine_port}))
                .unwrap();
        change(&mut config);
        let (views, view) = watch::channel(Arc::new(View::default()));
        let (shutdown, stop) = watch::channel(false);
        let identity = Ca::create("test").unwrap();
        let identity = identity.issue(&PeerName::host(&"entry1".parse().unwrap()), &[]).unwrap();
        let common = Common { state_dir: directory.path().to_owned(), identity, view, shutdown: stop };
        let doors = Doors::open(&config, &common).await.unwrap();
        let gateway = doors.ssh_addresses().unwrap()[0];
        let stage = Self { directory, gateway, machine_port, views, sshd: Some(sshd), _shutdown: shutdown };
        stage.publish(None);
        tokio::spawn(doors.serve(common));
        stage
    }

    /// Publishes the fleet, with `web`'s shared port.
    pub fn publish(&self, port: Option<u16>) {
        let key = |name: &str| {
            let line = std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
            line.trim().to_owned()
        };
        let nowhere = "2001:db8::dead".parse().unwrap();
        let mut view = View::default();
        let changes = vec![
            fleet_config(),
            account("ann", &[key("ann")]),
            account("bob", &[key("bob")]),
            machine(1, "web", "ann", Ipv6Addr::LOCALHOST, "started", port),
            machine(2, "theirs", "bob", "2001:db8::2".parse().unwrap(), "started", None),
            machine(3, "off", "ann", nowhere, "stopped", None),
        ];
        assert_eq!(view.apply(&Batch { revision: 1, changes }), []);
        self.views.send_replace(Arc::new(view));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn sshd_pid(&self) -> u32 {
        self.sshd.as_ref().unwrap().id().unwrap()
    }

    pub async fn stop_sshd(&mut self) {
        self.sshd.take().unwrap().kill().await.unwrap();
    }

    pub async fn start_sshd(&mut self) {
        self.sshd = Some(start_sshd(self.directory.path(), self.machine_port).await);
    }

    /// Options that every client program takes.
    pub fn options(&self, key: &str) -> Vec<String> {
        let key = self.path(key);
        [
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "IdentityAgent=none",
            "-o",
            &format!("IdentityFile={}", key.display()),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// `ssh` to the gateway, ready to be given more arguments.
    pub fn ssh(&self, key: &str, user: &str, more: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(key)).args(["-p", &self.gateway.port().to_string()]);
        command.args(more.iter().take_while(|a| a.starts_with('-') || a.contains('=') || a.contains(':')));
        command.arg(format!("{user}@127.0.0.1"));
        command.args(more.iter().skip_while(|a| a.starts_with('-') || a.contains('=') || a.contains(':')));
        command.kill_on_drop(true);
        command
    }
}

/// Runs a client program with `input`; a minute is an error.
pub async fn finish(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("is openssh-client installed?");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .expect("the client hangs")
        .unwrap();
    writing.abort();
    Output {
        code: output.status.code(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The platform's CA certifies the gateway's key, as control does.
fn certify(directory: &Path) {
    let key = directory.join("gateway/machines_key");
    std::fs::create_dir_all(directory.join("gateway")).unwrap();
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key.to_str().unwrap()]);
    let public = key.with_extension("pub");
    let ca = directory.join("ca");
    run(
        "ssh-keygen",
        &[
            "-q",
            "-s",
            ca.to_str().unwrap(),
            "-I",
            "gateway",
            "-n",
            "root",
            "-V",
            "-1m:+1d",
            public.to_str().unwrap(),
        ],
    );
}

async fn start_sshd(directory: &Path, port: u16) -> Child {
    // OpenSSH's privilege separation wants this directory.
    std::fs::create_dir_all("/run/sshd").unwrap();
    let at = |name: &str| directory.join(name).display().to_string();
    let config = format!(
        "Port {port}\nListenAddress ::1\nHostKey {}\nTrustedUserCAKeys {}\nAuthorizedKeysFile {}\n\
         PermitRootLogin yes\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\nAcceptEnv LANG MY_*\n\
         StrictModes no\nMaxStartups 100\nLogLevel ERROR\n",
        at("machine_host_key"),
        at("ca.pub"),
        at("ann.pub"),
    );
    std::fs::write(directory.join("sshd_config"), config).unwrap();
    let child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f", &at("sshd_config")])
        .kill_on_drop(true)
        .spawn()
        .expect("sshd is not installed: apt-get install openssh-server");
    for _ in 0..100 {
        if tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.is_ok() {
            return child;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("sshd did not start");
}
