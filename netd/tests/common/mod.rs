//! Namespaces, processes and taps for netd's tests. Root is needed; every namespace of a test is removed with it.
//!
//! ```text
//!   client ──────── entry ──────── a        each line is a veth pair; the underlay routes through `entry`
//!   2001:db8:c::2     │            │ tap of the machine
//!                     └─────────── b
//!                                  │ tap of the machine
//!   underlay: entry fd00:e::1, a fd00:a::2, b fd00:b::2 · machines: 2001:db8:1::/48
//! ```

#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netd::api::{GATEWAY_MAC, Mac, Port, Reply, Request, Status, tap_name};
use netd::client::{self, Client};
use netd::config::{Ingress, NetdConfig, Role, Underlay};
use netd::view::{HostPeer, MachineRoute, NetView};

/// The machine that the tests move.
pub const MACHINE: &str = "01JD0000000000000000000001";
pub const GUEST_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);
pub const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 2);
const WAIT: Duration = Duration::from_secs(15);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command and fails the test if it fails.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < end, "waited {WAIT:?} for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(name: String) -> Self {
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Self { name }
    }

    pub fn ip(&self, arguments: &str) -> String {
        sh(&format!("ip -n {} {arguments}", self.name))
    }

    pub fn exec(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.name))
    }

    /// Waits until another answers, with "port unreachable": a veth pair takes up to a second to come up.
    fn reaches(&self, address: &str) {
        let to = std::net::SocketAddr::new(address.parse().unwrap(), 9);
        let asked = self.within(move || {
            let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            wait_for("a link to come up", || {
                let sent = socket.send(b"?");
                sent.as_ref().is_err_and(refused) || socket.recv(&mut [0; 1]).as_ref().is_err_and(refused)
            });
        });
        asked.join().unwrap();
    }

    /// Runs `work` on a thread that lives in this namespace.
    pub fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::spawn(move || {
            // SAFETY: the descriptor is open, and only this thread changes its namespace.
            assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The topology of the header, with a netd in `entry`, `a` and `b`.
pub struct Fleet {
    pub client: Namespace,
    pub entry: Node,
    pub a: Node,
    pub b: Node,
    pub view: NetView,
    dir: tempfile::TempDir,
}

/// A namespace and its netd.
pub struct Node {
    pub ns: Namespace,
    pub config: NetdConfig,
    view: PathBuf,
    process: Option<Child>,
}

impl Node {
    /// Starts netd, this very program in another role, and waits until it answers.
    pub fn start(&mut self) {
        let config = serde_json::to_string(&self.config).unwrap();
        let log =
            OpenOptions::new().create(true).append(true).open(self.config.state_dir.with_extension("log"));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.ns.name])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "netd_process", "--nocapture"])
            .env("NETD_CONFIG", config)
            .env("NETD_VIEW", &self.view)
            .stdout(Stdio::null())
            .stderr(Stdio::from(log.unwrap()))
            .spawn();
        self.process = Some(child.unwrap());
        let socket = self.config.socket.clone();
        let log = self.config.state_dir.with_extension("log");
        let end = Instant::now() + WAIT;
        while client::call(&socket, &Request::Status).is_err() {
            assert!(
                Instant::now() < end,
                "netd does not answer: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends netd as a power cut of its process would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn call(&self, request: &Request) -> Result<Reply, client::Error> {
        client::call(&self.config.socket, request)
    }

    pub fn ok(&self, request: &Request) {
        self.call(request).unwrap();
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.config.socket).unwrap()
    }

    pub fn status(&self) -> Status {
        match self.call(&Request::Status).unwrap() {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// The route of an address, as `ip` shows it.
    pub fn route(&self, address: Ipv6Addr) -> String {
        self.ns.ip(&format!("-6 route show table 109 {address}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Fleet {
    pub fn new(underlay: Underlay, ingress: Ingress) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("nt{}-{id}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let names = ["client", "entry", "a", "b"].map(|n| Namespace::new(format!("{tag}-{n}")));
        wire(&names);
        let [client, entry, a, b] = names;
        let mut fleet = Self {
            client,
            entry: node(entry, &dir, "entry", Role::Entry, underlay, &Ingress::Anchored),
            a: node(a, &dir, "a", Role::Host, underlay, &ingress),
            b: node(b, &dir, "b", Role::Host, underlay, &ingress),
            view: NetView { revision: 1, ..NetView::default() },
            dir,
        };
        for (id, address) in [("entry", "fd00:e::1"), ("a", "fd00:a::2"), ("b", "fd00:b::2")] {
            let config = fleet.node(id).config.clone();
            let key = (underlay == Underlay::Wireguard).then(|| netd::wireguard_public_key(&config).unwrap());
            let host = HostPeer {
                host_id: id.into(),
                entry: id == "entry",
                underlay: std::net::SocketAddr::new(address.parse().unwrap(), 51820),
                mesh_addr: config.mesh_addr,
                wg_public_key: key,
            };
            fleet.view.hosts.insert(id.into(), host);
        }
        fleet.write_view();
        for node in [&mut fleet.entry, &mut fleet.a, &mut fleet.b] {
            node.start();
        }
        fleet
    }

    pub fn node(&self, id: &str) -> &Node {
        match id {
            "a" => &self.a,
            "b" => &self.b,
            _ => &self.entry,
        }
    }

    pub fn node_mut(&mut self, id: &str) -> &mut Node {
        match id {
            "a" => &mut self.a,
            "b" => &mut self.b,
            _ => &mut self.entry,
        }
    }

    /// Says in the fleet's records where the machine is, and waits until all have followed.
    pub fn place(&mut self, host: Option<&str>, epoch: u64) {
        let port = port(epoch);
        let route = MachineRoute {
            machine_id: port.machine_id.clone(),
            account: port.account,
            host_id: host.map(str::to_owned),
            epoch,
            ipv6: port.ipv6,
            private6: port.private6,
            ipv4: port.ipv4,
            vni: port.vni,
        };
        self.view.revision += 1;
        self.view.machines.insert(port.machine_id, route);
        self.write_view();
        for node in [&self.entry, &self.a, &self.b] {
            wait_for("the view to be followed", || node.status().revision == self.view.revision);
        }
    }

    /// Shows what the netds logged; nothing unless RUST_LOG asks for it.
    pub fn print_logs(&self) {
        for node in [&self.entry, &self.a, &self.b] {
            let log = fs::read_to_string(node.config.state_dir.with_extension("log")).unwrap_or_default();
            if !log.is_empty() {
                println!("--- netd of {}\n{log}", node.config.host_id);
            }
        }
    }

    pub fn write_view(&self) {
        let path = self.dir.path().join("view.json");
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&self.view).unwrap()).unwrap();
        fs::rename(&new, &path).unwrap();
    }
}

fn wire(names: &[Namespace; 4]) {
    let [client, entry, a, b] = names;
    for (other, link, prefix) in
        [(client, "up-c", "2001:db8:c"), (a, "up-a", "fd00:a"), (b, "up-b", "fd00:b")]
    {
        entry.ip(&format!("link add {link} type veth peer name wan netns {}", other.name));
        entry.ip(&format!("addr add {prefix}::1/64 dev {link} nodad"));
        entry.ip(&format!("link set {link} up"));
        other.ip(&format!("addr add {prefix}::2/64 dev wan nodad"));
        other.ip("link set wan up");
        other.ip(&format!("route add default via {prefix}::1"));
    }
    entry.ip("addr add fd00:e::1/128 dev lo nodad");
    entry.exec("sysctl -qw net.ipv6.conf.all.forwarding=1");
    for other in [client, a, b] {
        other.reaches("fd00:e::1");
    }
}

fn node(
    ns: Namespace,
    dir: &tempfile::TempDir,
    id: &str,
    role: Role,
    underlay: Underlay,
    ingress: &Ingress,
) -> Node {
    let dir = dir.path().canonicalize().unwrap();
    let number = match id {
        "a" => 0xa,
        "b" => 0xb,
        _ => 0xe,
    };
    let config = NetdConfig {
        state_dir: dir.join(format!("{id}-state")),
        socket: dir.join(format!("{id}.sock")),
        host_id: id.into(),
        role,
        underlay,
        underlay_mtu: 1500,
        wireguard_port: 51820,
        wireguard_interface: "wg0".into(),
        overlay_interface: "gx".into(),
        mesh_addr: Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0, number),
        mesh_prefix: "fd6d::/64".parse().unwrap(),
        region_prefixes: vec!["2001:db8:1::/48".parse().unwrap()],
        ingress: ingress.clone(),
        web_ports: vec![80, 443],
        resolver: (role == Role::Host).then_some(RESOLVER),
    };
    Node { ns, config, view: dir.join("view.json"), process: None }
}

/// The machine's port in an epoch.
pub fn port(epoch: u64) -> Port {
    Port {
        machine_id: MACHINE.into(),
        epoch,
        tap: tap_name(MACHINE),
        mac: GUEST_MAC,
        mtu: 1360,
        ipv6: GUEST,
        private6: Some("fd12:3456:789a::1".parse().unwrap()),
        ipv4: Some("10.77.0.1".parse().unwrap()),
        account: "fd12:3456:789a::/48".parse().unwrap(),
        vni: 7,
    }
}

/// A tap as a monitor holds it.
pub struct Tap {
    file: File,
}

/// The length of the header that `IFF_VNET_HDR` puts before each frame, unless told otherwise.
const VNET: usize = 10;

impl Tap {
    pub fn open(ns: &Namespace, name: &str) -> Self {
        let name = name.to_owned();
        let file = ns.within(move || {
            let tun = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .unwrap();
            // SAFETY: `ifreq` is plain data for which all zeros is a valid value.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = i8::from_ne_bytes([from]);
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
            // SAFETY: the descriptor is open and the request outlives the call.
            let answer = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            assert!(answer >= 0, "attach to {name}: {}", io::Error::last_os_error());
            tun
        });
        Self { file: file.join().unwrap() }
    }

    /// The next frame, or none at the moment.
    pub fn read(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        match self.file.read(&mut buffer) {
            Ok(count) => Some(buffer[VNET..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("read the tap: {error}"),
        }
    }

    pub fn write(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; VNET];
        bytes.extend(frame);
        self.file.write_all(&bytes).unwrap();
    }
}

/// The sequence number of one of our UDP probes, when the frame is one.
pub fn probe(frame: &[u8]) -> Option<u64> {
    let udp = frame.len() >= 14 + 40 + 8 + 8 && frame[12..14] == [0x86, 0xdd] && frame[20] == 17;
    udp.then(|| u64::from_be_bytes(frame[62..70].try_into().unwrap()))
}

/// A UDP frame from the guest to the gateway's Ethernet address.
pub fn udp_frame(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    udp_frame_to_port(mac, from, to, 4000, payload)
}

/// The same, to another port than the usual one.
pub fn udp_frame_to_port(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut udp = Vec::new();
    for word in [4000, port, length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(payload);
    let sum = checksum(from, to, &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::new();
    frame.extend(GATEWAY_MAC.0);
    frame.extend(mac.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([17, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(udp);
    frame
}

fn checksum(from: Ipv6Addr, to: Ipv6Addr, udp: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(u32::try_from(udp.len()).unwrap().to_be_bytes());
    bytes.extend([0, 0, 0, 17]);
    bytes.extend(udp);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// netd as a process: what [`Node::start`] runs. The view comes from a file that the test replaces.
pub fn netd_process() {
    let Ok(config) = std::env::var("NETD_CONFIG") else { return };
    // RUST_LOG says what goes into the file that a failed start shows.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let config: NetdConfig = serde_json::from_str(&config).unwrap();
    let path = PathBuf::from(std::env::var("NETD_VIEW").unwrap());
    let read = |path: &Path| -> NetView { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let (send, receive) = tokio::sync::watch::channel(std::sync::Arc::new(read(&path)));
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(5));
            let view = read(&path);
            send.send_if_modified(|held| {
                let other = **held != view;
                if other {
                    *held = std::sync::Arc::new(view);
                }
                other
            });
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ended = runtime.block_on(netd::run(config, receive, std::future::pending()));
    panic!("netd ended: {ended:?}");
}
