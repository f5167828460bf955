//! A host with a monitor that has no machine and a netd that has no network.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mashines_fleet::host_api::{LocalMachine, LocalState, MachineSpec, RunMachine, StopMachine};
use mashines_fleet::id::{Epoch, MachineId};
use mashines_host::error::Result;
use mashines_host::host::Host;
use mashines_host::{Config, Node};
use netd::api::{Reply, Request};

/// A host's surroundings, which outlive its daemon.
pub struct Box {
    dir: tempfile::TempDir,
    id: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Box {
    pub fn new(id: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = UnixListener::bind(dir.path().join("netd.sock")).unwrap();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                std::thread::spawn(move || serve_netd(stream, &log));
            }
        });
        image(&dir.path().join("images"), "container-os", "quiet");
        image(&dir.path().join("images"), "broken", "die-at-start");
        Self { dir, id: id.to_owned(), asked }
    }

    /// A daemon on this box. It takes up what an earlier one left.
    pub async fn host(&self) -> Arc<Host> {
        let node = Node {
            id: self.id.parse().unwrap(),
            underlay: "127.0.0.1".parse().unwrap(),
            state_dir: self.state(),
            identity_dir: self.dir.path().join("pki"),
            netd_socket: self.dir.path().join("netd.sock"),
        };
        let config = serde_json::json!({
            "listen": "127.0.0.1:0", "images_dir": self.dir.path().join("images"), "vmm_binary": fake_vmm(),
            "capacity": {"vcpus": 4, "memory_mib": 1024, "disk_mib": 1_000_000, "disk_reserve_mib": 0},
        });
        let host = Host::open(node, serde_json::from_value::<Config>(config).unwrap()).unwrap();
        host.adopt().await.unwrap();
        host
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn machine_dir(&self) -> PathBuf {
        self.state().join("machines").join(spec().id.as_str())
    }

    /// What netd was asked, in order, and forgets.
    pub fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let op = |r: &Request| serde_json::to_value(r).unwrap()["op"].as_str().unwrap().to_owned();
        asked.iter().map(op).collect()
    }

    /// Files of machines, volumes and moves that are here.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        ["machines", "volumes", "migrations"]
            .iter()
            .flat_map(|d| std::fs::read_dir(self.state().join(d)).unwrap())
            .map(|e| e.unwrap().path())
            .collect()
    }
}

/// A test that fails leaves no monitor behind.
impl Drop for Box {
    fn drop(&mut self) {
        let record = std::fs::read(self.machine_dir().join("instance.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        if let Some(pid) = record["process"]["pid"].as_i64() {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
    }
}

fn serve_netd(stream: std::os::unix::net::UnixStream, log: &Mutex<Vec<Request>>) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
        log.lock().unwrap().push(serde_json::from_str(&line).unwrap());
        let _ = writeln!(out, "{}", serde_json::to_string(&Reply::Done).unwrap());
    }
}

fn image(dir: &Path, name: &str, cmdline: &str) {
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["kernel", "initrd"] {
        std::fs::write(dir.join(file), b"x").unwrap();
    }
    std::fs::write(dir.join("rootfs.img"), vec![0; 8192]).unwrap();
    let manifest = serde_json::json!({"name": name, "digest": "sha256:00", "kernel": "kernel", "initrd": "initrd",
        "rootfs": "rootfs.img", "rootfs_size_bytes": 8192, "cmdline": cmdline});
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
}

/// Built by the same `cargo test`, beside the test's own binary.
fn fake_vmm() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.parent().unwrap().parent().unwrap().join("examples/fake-vmm")
}

pub fn spec() -> MachineSpec {
    serde_json::from_value(serde_json::json!({
        "id": "0123456789abcd", "slug": "web", "account": "ann", "app": "web", "region": "lab",
        "config": {"image": "container-os", "guest": {"cpus": 2, "memory_mb": 512},
            "mounts": [{"volume": "vol_0123456789abcd", "path": "/data"}]},
        "image": "container-os", "image_digest": "sha256:00",
        "net": {"ipv6": "2001:db8::1", "private6": "fd00:1:2::1", "mac": "02:00:00:00:00:01", "ssh_port": null},
        "private_prefix": "fd00:1:2::", "ssh_keys": [], "ssh_user_ca": null,
        "volumes": [{"id": "vol_0123456789abcd", "name": "data", "size_mib": 64}],
    }))
    .unwrap()
}

pub fn id() -> MachineId {
    spec().id
}

pub async fn run(host: &Arc<Host>, epoch: u64) -> Result<LocalMachine> {
    host.run(RunMachine { machine: spec(), epoch: Epoch(epoch) }).await
}

pub async fn stop(host: &Arc<Host>, epoch: u64, timeout_ms: u64) -> Result<LocalMachine> {
    host.stop(&id(), StopMachine { epoch: Epoch(epoch), timeout_ms }).await
}

pub fn state(host: &Host) -> Option<LocalState> {
    host.machine(&id()).ok()?.local().map(|m| m.state)
}

/// Waits until a machine has come to a state.
pub async fn until_state(host: &Host, wanted: LocalState) {
    until(&format!("{wanted:?}"), || state(host) == Some(wanted)).await;
}

/// Waits for something, ten seconds at most.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The monitor's process.
pub fn pid(host: &Host) -> i32 {
    host.machine(&id()).unwrap().instance().unwrap().process.unwrap().pid
}

/// A daemon's life: it ends, without a word to anyone, with the runtime.
pub fn daemon<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// kill -9, and it is dead: the signal alone may take a while on a busy machine.
pub fn kill(pid: i32) {
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    // A zombie is dead when its last thread is. (The state stands behind the name, which ends with the last parenthesis.)
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        state.is_some_and(|state| !"ZX".contains(state)) || threads > 1
    };
    let begun = Instant::now();
    while lives() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{pid} outlives kill -9");
        std::thread::sleep(Duration::from_millis(1));
    }
}
