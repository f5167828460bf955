//! A gateway in this process, OpenSSH's `sshd` playing the machine, OpenSSH's `ssh` playing the person.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod clients;
pub mod edge;
#[path = "../../../../tests/support/mod.rs"]
pub mod support;

use axum::Router;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::daemon::Common;
use mashines_fleet::pki::{Ca, ClientCertificates, PeerName};
use mashines_fleet::rpc;
use mashines_fleet::view::{Batch, Change, View};
use mashines_gateway::{Config, Doors};
use serde_json::{Value, json};
pub use support::{free_port, free_ports};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Makes control's API; it is told the test's directory, where the CA's key is.
pub type Api<'a> = Box<dyn FnOnce(&Path) -> Router + 'a>;

/// Everything a test needs; all of it ends with it.
pub struct Stage {
    pub directory: TempDir,
    pub gateway: SocketAddr,
    /// Where SSH is ended, port 443's listeners last.
    pub every_address: Vec<SocketAddr>,
    pub machine_port: u16,
    pub views: watch::Sender<Arc<View>>,
    sshd: Option<Child>,
    control: Option<JoinHandle<()>>,
    shutdown: watch::Sender<bool>,
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

pub fn machine(id: u64, slug: &str, owner: &str, ipv6: Ipv6Addr, state: &str) -> Change {
    let id = format!("{id:014x}");
    put(
        &format!("machines/{id}"),
        json!({
            "id": id, "slug": slug, "account": owner, "app": "web",
            "instance_id": "01J00000000000000000000000",
            "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
            "image_digest": "sha256:00", "desired": "started", "state": state, "place": null,
            "net": {"ipv6": ipv6, "private6": "fd00::9", "mac": "02:00:00:00:00:01", "ssh_port": null},
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

pub fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Stage {
    /// A gateway that knows ann's machine `web` (the sshd) and bob's `theirs`, and ann's stopped `off`.
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::build(change, None).await
    }

    /// A gateway whose control is `api`; the certificate for machines is asked of it.
    pub async fn with_control(api: impl FnOnce(&Path) -> Router) -> Self {
        Self::build(|_| (), Some(Box::new(api))).await
    }

    pub async fn build(change: impl FnOnce(&mut Config), control: Option<Api<'_>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["ann", "bob", "stranger", "ca", "machine_host_key"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", at(name).to_str().unwrap()]);
        }
        // OpenSSH's own scripts use the two behind it, too.
        let machine_port = free_ports(3);
        let sshd = start_sshd(directory.path(), machine_port, "").await;

        let ca = Ca::create("test").unwrap();
        let mut config: Config =
            serde_json::from_value(json!({"ssh_listen": ["127.0.0.1:0"], "machine_port": machine_port}))
                .unwrap();
        change(&mut config);
        let control = match control {
            Some(api) => {
                let (url, task) = serve_control(&ca, api(directory.path())).await;
                config.control.push(url);
                Some(task)
            }
            None => {
                certify(directory.path());
                None
            }
        };
        Self::open(directory, &ca, config, machine_port, sshd, control).await
    }

    async fn open(
        directory: TempDir,
        ca: &Ca,
        config: Config,
        machine_port: u16,
        sshd: Child,
        control: Option<JoinHandle<()>>,
    ) -> Self {
        let (views, view) = watch::channel(Arc::new(View::default()));
        let (shutdown, stop) = watch::channel(false);
        let identity = ca.issue(&PeerName::host(&"entry1".parse().unwrap()), &[]).unwrap();
        let (_nobody, secret) = watch::channel(None);
        let common =
            Common { state_dir: directory.path().to_owned(), identity, view, secret, shutdown: stop };
        let doors = Doors::open(&config, &common).await.unwrap();
        let every_address = doors.ssh_addresses().unwrap();
        let gateway = SocketAddr::from(([127, 0, 0, 1], every_address[0].port()));
        let stage = Self {
            directory,
            gateway,
            every_address,
            machine_port,
            views,
            sshd: Some(sshd),
            control,
            shutdown,
        };
        stage.publish(None);
        tokio::spawn(doors.serve(common));
        stage
    }

    /// Publishes the fleet, with `web`'s shared port.
    pub fn publish(&self, port: Option<u16>) {
        self.publish_with(|machine| {
            if let Some(port) = port {
                machine["net"]["ssh_port"] = json!({"entry": "entry1", "port": port});
            }
        });
    }

    /// Publishes the fleet, with `web` changed.
    pub fn publish_with(&self, change: impl FnOnce(&mut Value)) {
        self.publish_more(change, Vec::new());
    }

    /// Publishes the fleet, with those keys in ann's account.
    pub fn publish_keys(&self, keys: &[String]) {
        let mut keys = keys.to_vec();
        keys.push(self.public_key("ann"));
        self.publish_more(|_| (), vec![account("ann", &keys)]);
    }

    /// Publishes the fleet, with `web` changed and more records, the later of two with one key.
    pub fn publish_more(&self, change: impl FnOnce(&mut Value), more: Vec<Change>) {
        let mut web = machine(1, "web", "ann", Ipv6Addr::LOCALHOST, "started");
        change(web.value.as_mut().unwrap());
        let nowhere = "2001:db8::dead".parse().unwrap();
        let mut view = View::default();
        let mut changes = vec![
            fleet_config(),
            account("ann", &[self.public_key("ann")]),
            account("bob", &[self.public_key("bob")]),
            web,
            machine(2, "theirs", "bob", "2001:db8::2".parse().unwrap(), "started"),
            machine(3, "off", "ann", nowhere, "stopped"),
        ];
        changes.extend(more);
        assert_eq!(view.apply(&Batch { revision: 1, changes }), []);
        self.views.send_replace(Arc::new(view));
    }

    pub fn public_key(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Control goes away, and the gateway starts again with what it has on disk.
    pub async fn restart_without_control(mut self) -> Self {
        if let Some(control) = self.control.take() {
            control.abort();
        }
        self.shutdown.send_replace(true);
        let config = serde_json::from_value(json!({
            "ssh_listen": ["127.0.0.1:0"], "machine_port": self.machine_port, "control": ["https://127.0.0.1:1"],
        }));
        let (sshd, port) = (self.sshd.take().unwrap(), self.machine_port);
        Self::open(self.directory, &Ca::create("test").unwrap(), config.unwrap(), port, sshd, None).await
    }

    /// The daemon is told to end.
    pub fn stop(&self) {
        self.shutdown.send_replace(true);
    }

    pub async fn stop_sshd(&mut self) {
        self.sshd.take().unwrap().kill().await.unwrap();
    }

    pub async fn start_sshd(&mut self) {
        self.sshd = Some(start_sshd(self.directory.path(), self.machine_port, "").await);
    }

    /// The machine's sshd, with that script in the place of the machine's agent.
    pub async fn with_agent(&mut self, agent: &str) {
        self.stop_sshd().await;
        let (wrapper, script) = (self.path("wrapper"), self.path("agent"));
        let wrapped = format!(
            "case \"$SSH_ORIGINAL_COMMAND\" in\n/run/mashines/agent*) eval exec sh {} \"${{SSH_ORIGINAL_COMMAND#/run/mashines/agent}}\";;\n\
             *) exec sh -c \"$SSH_ORIGINAL_COMMAND\";;\nesac\n",
            script.display()
        );
        std::fs::write(&wrapper, wrapped).unwrap();
        std::fs::write(&script, agent).unwrap();
        let more = format!("ForceCommand sh {}\n", wrapper.display());
        self.sshd = Some(start_sshd(self.directory.path(), self.machine_port, &more).await);
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

    /// `ssh` to the gateway with a command.
    pub fn ssh(&self, key: &str, user: &str, command: &str) -> Command {
        self.ssh_with(key, user, &[], &[command])
    }

    /// `ssh` to the gateway with more options, and a command or none.
    pub fn ssh_with(&self, key: &str, user: &str, options: &[&str], command: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.options(key)).args(["-p", &self.gateway.port().to_string()]).args(options);
        ssh.arg(format!("{user}@127.0.0.1")).args(command).kill_on_drop(true);
        ssh
    }
}

impl Stage {
    /// `ssh` at its usual log level, which shows what the server has to say.
    pub fn loud(&self, key: &str, user: &str, command: &str) -> Command {
        let options = self.options(key).into_iter().filter(|o| o != "LogLevel=ERROR");
        let mut options: Vec<String> = options.collect();
        // The option that is left without its value is given another.
        let at = options.windows(2).position(|pair| pair[0] == "-o" && pair[1] == "-o").unwrap();
        options.insert(at + 1, "LogLevel=INFO".to_owned());
        let mut ssh = Command::new("ssh");
        ssh.args(options).args([
            "-p",
            &self.gateway.port().to_string(),
            &format!("{user}@127.0.0.1"),
            command,
        ]);
        ssh
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

/// Control's part that certifies the gateway's keys, signing with `ssh-keygen`.
pub fn certificates(directory: &Path) -> Router {
    let directory = directory.to_owned();
    let certify = move |axum::Json(body): axum::Json<Value>| async move {
        std::fs::write(directory.join("asked.pub"), body["public_key"].as_str().unwrap()).unwrap();
        let (ca, key) = (directory.join("ca"), directory.join("asked.pub"));
        let terms = ["-q", "-I", "gateway", "-V", "-1m:+1d", "-n", "root", "-s"];
        run("ssh-keygen", &[&terms[..], &[ca.to_str().unwrap(), key.to_str().unwrap()]].concat());
        let certificate = std::fs::read_to_string(directory.join("asked-cert.pub")).unwrap();
        axum::Json(json!({ "certificate": certificate }))
    };
    Router::new().route("/internal/v1/ssh/certificates", axum::routing::post(certify))
}

pub async fn serve_control(ca: &Ca, api: Router) -> (String, JoinHandle<()>) {
    let identity = ca.issue(&PeerName::control(), &[]).unwrap();
    let tls = identity.server_config(ClientCertificates::Required).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        rpc::serve(listener, api, tls, rpc::Limits::default(), std::future::pending()).await.unwrap();
    });
    (url, task)
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

async fn start_sshd(directory: &Path, port: u16, more: &str) -> Child {
    // OpenSSH's privilege separation wants this directory.
    std::fs::create_dir_all("/run/sshd").unwrap();
    let at = |name: &str| directory.join(name).display().to_string();
    // Tests come by new keys in each longer transfer; a bench, in another profile, measures what people get.
    let rekey = if cfg!(debug_assertions) { "16M" } else { "default none" };
    let config = format!(
        "Port {port}\nListenAddress ::1\nHostKey {}\nTrustedUserCAKeys {}\nAuthorizedKeysFile {}\n\
         PermitRootLogin yes\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\nAcceptEnv LANG LC_* MY_* GIT_PROTOCOL\n\
         StrictModes no\nMaxStartups 200\nRekeyLimit {rekey}\nLogLevel ERROR\n{more}",
        at("machine_host_key"),
        at("ca.pub"),
        at("ann.pub"),
    );
    std::fs::write(directory.join("sshd_config"), config).unwrap();
    let mut command = match std::env::var_os("MASHINES_GUEST_SSH").filter(|_| more.is_empty()) {
        Some(program) => guest_ssh(directory, port, Path::new(&program)),
        None => {
            let mut sshd = Command::new("/usr/sbin/sshd");
            sshd.args(["-D", "-e", "-f", &at("sshd_config")]);
            sshd
        }
    };
    let child = command
        .stderr(Stdio::null())
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

/// The SSH server of machines of a single process in sshd's place: `MASHINES_GUEST_SSH` names its program.
fn guest_ssh(directory: &Path, port: u16, program: &Path) -> Command {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let config = json!({
        "machine_id": "m", "hostname": "web",
        "ssh_authorized_keys": [read("ann.pub")], "ssh_user_ca": read("ca.pub"),
        "ssh_host_keys": [{
            "type": "ed25519", "private_pem": read("machine_host_key"), "public": read("machine_host_key.pub"),
        }],
    });
    let path = directory.join("guest_ssh.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(program);
    command.arg("serve").arg(path).arg(format!("[::1]:{port}"));
    command
}
