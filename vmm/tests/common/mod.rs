//! Starts monitors in the lab and speaks to them and to their guests.
//!
//! Needs hardware KVM (the lab's will do), root, `ip`, and the guest images under `MASHINES_IMAGES`
//! (default `/var/lib/mashines-images`). The programs come from `MASHINES_BIN`, or from Cargo.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mashines_guest::config::{BUILTIN_BENCH, Config, Interface, NO_ROOT};
use mashines_guest::config_archive;
use mashines_guest::protocol::{Exec, ExecResult, PORT, Request as Ask, Response, Status as GuestStatus};
use mashines_vmm::api::{DiskSpec, Hooks, MachineSpec, NetSpec, Reply, Request, Status, VsockSpec};

/// How long anything may take in an emulator.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The directory of a guest image.
pub fn image(name: &str) -> PathBuf {
    let images = std::env::var("MASHINES_IMAGES").unwrap_or_else(|_| "/var/lib/mashines-images".into());
    Path::new(&images).join(name)
}

fn monitor_program() -> PathBuf {
    match std::env::var("MASHINES_BIN") {
        Ok(directory) => Path::new(&directory).join("mashines-vmm"),
        Err(_) => env!("CARGO_BIN_EXE_mashines-vmm").into(),
    }
}

/// A machine's spec and the directory of its files.
pub struct Plan {
    /// What the monitor gets.
    pub spec: MachineSpec,
    directory: tempfile::TempDir,
}

impl Plan {
    /// A machine with the built-in bench userland and no disk.
    pub fn bench(vcpus: u8, kernel: &str) -> Self {
        Self::new("bench", vcpus, kernel, |config| {
            config["root"] = serde_json::json!({ "device": NO_ROOT });
            config["init_exec"] = BUILTIN_BENCH.into();
        })
    }

    /// A machine with a whole Debian on an overlay over the image.
    pub fn debian(vcpus: u8) -> Self {
        let mut plan = Self::new("container-os", vcpus, "kernel", |_| {});
        let base = image("container-os").join("rootfs.img");
        let size_bytes = base.metadata().expect("the image container-os has a rootfs.img").len();
        plan.spec.disks = vec![DiskSpec {
            id: "root".into(),
            path: plan.path("root.overlay"),
            base: Some(base),
            size_bytes,
            read_only: false,
        }];
        plan
    }

    fn new(image_name: &str, vcpus: u8, kernel: &str, change: impl Fn(&mut serde_json::Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = image(image_name);
        let mut config = serde_json::json!({ "machine_id": "m-test", "hostname": "vmm-test" });
        change(&mut config);
        let config: Config = serde_json::from_value(config).unwrap();
        let archive = directory.path().join("config.cpio");
        std::fs::write(&archive, config_archive(&config).unwrap()).unwrap();
        let spec = MachineSpec {
            machine_id: "m-test".into(),
            epoch: 1,
            vcpus,
            memory_mib: 512,
            kernel: image.join(kernel),
            initrd: vec![image.join("initrd"), archive],
            cmdline: "console=ttyS0 quiet loglevel=4 panic=1".into(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: Some(VsockSpec { cid: 3, socket: directory.path().join("vsock") }),
            state_dir: directory.path().to_owned(),
            hooks: Hooks::default(),
        };
        Self { spec, directory }
    }

    /// Adds a network device on a tap of this name, made now; the guest is 10.77.0.2, the host 10.77.0.1.
    pub fn with_net(mut self, tap: &str) -> Self {
        let mac = "02:00:00:00:77:02";
        for arguments in [
            vec!["tuntap", "add", tap, "mode", "tap", "vnet_hdr"],
            vec!["address", "add", "10.77.0.1/24", "dev", tap],
            vec!["link", "set", tap, "up"],
        ] {
            assert!(Command::new("ip").args(&arguments).status().unwrap().success(), "ip {arguments:?}");
        }
        self.spec.nets = vec![NetSpec { tap: tap.into(), mac: mac.into(), mtu: 1500 }];
        let archive = self.spec.initrd.last().unwrap();
        let interface = Interface {
            mac: mac.into(),
            ipv6: None,
            gateway6: None,
            ipv4: Some("10.77.0.2/24".parse().unwrap()),
            gateway4: None,
            more_addresses: Vec::new(),
            mtu: None,
        };
        let config: Config = serde_json::from_value(serde_json::json!({
            "machine_id": "m-test", "hostname": "vmm-test", "interfaces": [interface],
            "root": { "device": NO_ROOT }, "init_exec": BUILTIN_BENCH,
        }))
        .unwrap();
        std::fs::write(archive, config_archive(&config).unwrap()).unwrap();
        self
    }

    /// A path in the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts a monitor.
    pub fn start(&self, arguments: &[&str]) -> Monitor {
        let (spec, socket) = (self.path("spec.json"), self.path("vmm.sock"));
        std::fs::write(&spec, serde_json::to_vec(&self.spec).unwrap()).unwrap();
        drop(std::fs::remove_file(&socket));
        let mut command = Command::new(monitor_program());
        command.arg("--spec").arg(spec).arg("--socket").arg(&socket).args(arguments).stdin(Stdio::null());
        let mut child = command.spawn().expect("the monitor starts");
        wait_for("the control socket", || socket.exists() || child.try_wait().unwrap().is_some());
        Monitor { child, socket, vsock: self.spec.vsock.as_ref().map(|vsock| vsock.socket.clone()) }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for net in &self.spec.nets {
            drop(Command::new("ip").args(["link", "delete", &net.tap]).status());
        }
    }
}

/// A monitor that runs; killed when dropped.
pub struct Monitor {
    child: Child,
    socket: PathBuf,
    vsock: Option<PathBuf>,
}

impl Monitor {
    /// One request.
    pub fn ask(&self, request: &Request) -> Reply {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// One request that must succeed.
    pub fn must(&self, request: &Request) {
        assert_eq!(self.ask(request), Reply::Ok, "{request:?}");
    }

    /// The status.
    pub fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("status: {other:?}"),
        }
    }

    /// The console.
    pub fn console(&self) -> String {
        match self.ask(&Request::Console) {
            Reply::Console { text } => text,
            other => panic!("console: {other:?}"),
        }
    }

    /// Asks the agent in the guest; `None` while it does not answer.
    pub fn ask_guest(&self, request: &Ask) -> Option<Response> {
        let mut stream = UnixStream::connect(self.vsock.as_ref()?).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if !line.starts_with("OK ") {
            return None;
        }
        let mut question = serde_json::to_vec(request).unwrap();
        question.push(b'\n');
        stream.write_all(&question).ok()?;
        line.clear();
        reader.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Waits until the guest's agent answers.
    pub fn wait_for_guest(&self) -> GuestStatus {
        let mut found = None;
        wait_for("the guest's agent", || {
            if let Some(Response::Status(status)) = self.ask_guest(&Ask::Status) {
                found = Some(status);
            }
            found.is_some()
        });
        found.unwrap()
    }

    /// Runs a shell command in the guest; it must succeed. Returns its output.
    pub fn run(&self, command: &str) -> String {
        let exec = Exec { cmd: Some(command.into()), ..Exec::default() };
        match self.ask_guest(&Ask::Exec(exec)) {
            Some(Response::Exec(ExecResult { exit_code: 0, stdout, .. })) => {
                String::from_utf8(stdout.0).unwrap()
            }
            other => panic!("{command}: {other:?}\n{}", self.console()),
        }
    }

    /// Runs a shell command in the guest that ends the guest.
    pub fn run_last(&self, command: &str) {
        let exec = Exec { cmd: Some(command.into()), ..Exec::default() };
        drop(self.ask_guest(&Ask::Exec(exec)));
    }

    /// The exit status, waited for.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        wait_for("the monitor's end", || {
            let ended = self.child.try_wait().unwrap();
            code = ended.and_then(|status| status.code());
            ended.is_some()
        });
        code
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Polls until `done`.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
