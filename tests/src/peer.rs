//! The peer that we are measured against: QEMU's own live migration, between two namespaces of the same lab.
//!
//! ```text
//!   client ── sw (bridge) ── a (bridge) ── tap ── QEMU
//!                  └──────── b (bridge) ── tap ── QEMU -incoming
//! ```
//!
//! The usual set-up for QEMU: one layer-2 segment, and QEMU announces the guest's MAC at the new place.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::netns::{Place, Topology};
use crate::run::wait_for;

/// What one migration of QEMU reported of itself.
#[derive(Clone, Debug)]
pub struct QemuFigures {
    /// `downtime` of `query-migrate`.
    pub downtime: Duration,
    /// From the command to its end.
    pub total: Duration,
    /// Bytes of RAM sent.
    pub bytes: u64,
}

/// Files and sizes of the guest, the same as for ours.
#[derive(Clone, Debug)]
pub struct QemuGuest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk, complete.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The MAC of its only NIC.
    pub mac: String,
}

/// One QEMU process in a namespace.
pub struct Qemu {
    child: Child,
    qmp: Qmp,
    place: Place,
}

/// Gives both hosts a bridge with a tap on the way to the switch, and the client an address on the segment.
pub fn wire(topology: &Topology, client_address: &str, guest_address: &str) -> Result<()> {
    for place in [Place::A, Place::B] {
        topology.ip(place, &["link", "add", "name", "bridge0", "type", "bridge"])?;
        topology.ip(place, &["link", "set", "dev", "bridge0", "up"])?;
        topology.ip(place, &["tuntap", "add", "tap0", "mode", "tap", "vnet_hdr"])?;
        topology.ip(place, &["link", "set", "tap0", "master", "bridge0", "up", "txqueuelen", "4096"])?;
        topology.ip(place, &["addr", "flush", "dev", "under"])?;
        topology.ip(place, &["link", "set", "under", "master", "bridge0"])?;
        let address = format!("{}/64", place.underlay());
        topology.ip(place, &["addr", "add", &address, "dev", "bridge0", "nodad"])?;
    }
    // The client joins the segment by the wire that control has in the fleet's topology.
    let client = Place::Control;
    for address in [format!("{client_address}/128"), "fe80::1/64".to_owned()] {
        topology.ip(client, &["addr", "add", &address, "dev", "under", "nodad"])?;
    }
    topology.ip(client, &["-6", "route", "add", &format!("{guest_address}/128"), "dev", "under"])
}

impl Qemu {
    /// Starts a guest, or a destination that waits on a TCP port.
    pub fn start(
        topology: &Topology,
        place: Place,
        guest: &QemuGuest,
        dir: &Path,
        incoming: Option<u16>,
    ) -> Result<Self> {
        let socket = dir.join(format!("qmp-{}-{}", place.name(), incoming.unwrap_or(0)));
        let _ = std::fs::remove_file(&socket);
        let mut command = topology.command(place, "qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-accel", "kvm"])
            .args(["-cpu", "host", "-m", &guest.memory_mib.to_string(), "-smp", &guest.vcpus.to_string()])
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initrd)
            .args(["-append", &guest.cmdline, "-serial", "null"])
            .args(["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=off"])
            .args(["-device", &format!("virtio-net-pci,netdev=n0,mac={}", guest.mac)])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        if let Some(port) = incoming {
            command.args(["-incoming", &format!("tcp:[{}]:{port}", place.underlay())]);
        }
        let log = std::fs::File::create(dir.join(format!("qemu-{}.log", place.name())))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let qmp =
            wait_for("QEMU's control socket", Duration::from_secs(20), Duration::from_millis(50), || {
                Qmp::connect(&socket)
            })?;
        Ok(Self { child, qmp, place })
    }

    /// Where it runs.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Stops its vCPUs for a while.
    pub fn pause_for(&mut self, pause: Duration) -> Result<()> {
        self.qmp.ask("stop", json!({}))?;
        std::thread::sleep(pause);
        self.qmp.ask("cont", json!({})).map(drop)
    }

    /// Moves the guest to a destination that waits, and returns what QEMU says it took.
    pub fn migrate(&mut self, to: &mut Qemu, port: u16, timeout: Duration) -> Result<QemuFigures> {
        let begun = Instant::now();
        // QEMU's own defaults, but for the bandwidth cap, which our lab's link does not need.
        self.qmp.ask("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40}))?;
        self.qmp.ask("migrate", json!({"uri": format!("tcp:[{}]:{port}", to.place.underlay())}))?;
        let done = loop {
            let status = self.qmp.ask("query-migrate", json!({}))?;
            match status.get("status").and_then(Value::as_str) {
                // Without figures it is still the word of the migration by which this guest came.
                Some("completed") if status.get("downtime").is_some() => break status,
                Some("failed" | "cancelled") => bail!("QEMU's migration failed: {status}"),
                _ if begun.elapsed() > timeout => bail!("QEMU's migration did not end: {status}"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let number = |pointer: &str| done.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        Ok(QemuFigures {
            downtime: Duration::from_millis(number("/downtime")),
            total: Duration::from_millis(number("/total-time")),
            bytes: number("/ram/transferred"),
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's machine protocol: one JSON object a line, events in between.
struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.line().context("QEMU's greeting")?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}")?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}
