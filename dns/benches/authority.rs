//! What an answer costs: ours, knot and nsd with the same names, one core each, dnsperf on another, in turns; medians.
//!
//! `scripts/bench dns`. The environment says how much: `BENCH_NAMES` (1,000,000), `BENCH_ROUNDS` (5), `BENCH_SECONDS` (5) a measurement.
//! CPU is what the kernel counts for the server's processes, divided by the answers that dnsperf got. Each goal ends as a line
//! `goal NAME MEASURED TARGET met|missed`.
//!
//! Peers hold one AAAA a name; ours makes all of a machine's records (AAAA, A, SSHFP, HTTPS, a wildcard, PTR) of what it holds.

// A failed unwrap is a failed run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{config, entry, zone_keys};
use mashines_dns::{Config, Server};
use mashines_fleet::record::Machine;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, View};
use tokio::sync::watch;

const WORDS: [&str; 8] = ["brave", "calm", "eager", "fancy", "gentle", "jolly", "lucky", "proud"];

/// Set in the process that serves: how many names, and whether they are signed.
const SERVE: &str = "BENCH_SERVE";

/// Names that are asked for where signatures are kept: those that are asked for often.
const POPULAR: usize = 10_000;

fn parameter(name: &str, usual: usize) -> usize {
    std::env::var(name)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

fn slug(n: usize) -> String {
    format!("{}-otter-{n:06x}", WORDS[n % WORDS.len()])
}

fn address(n: usize) -> std::net::Ipv6Addr {
    (0x2001_0db8_0160_u128 << 80 | n as u128).into()
}

/// A fleet of so many machines.
fn fleet(names: usize, secret: &EntrySecret, signed: bool) -> View {
    let mut changes = vec![config("2001:db8:160::/48"), entry(), common::web()];
    if signed {
        changes.push(zone_keys("mashine.dev", &["active"], secret));
    }
    let mut view = (*common::view(changes)).clone();
    let template: Machine = (*view.machines.values().next().unwrap().clone()).clone();
    for n in 0..names {
        let mut machine = template.clone();
        machine.id = format!("{:014x}", n + 16).parse().unwrap();
        machine.slug = slug(n).parse().unwrap();
        machine.net.ipv6 = address(n + 16);
        view.machines.insert(machine.id.clone(), Arc::new(machine));
    }
    view
}

/// Resident memory of a process, MB.
fn memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// The process and what it started.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if parent.is_some_and(|parent: u32| all.contains(&parent)) {
            all.push(child);
        }
    }
    all
}

/// CPU time of the process and what it started, microseconds.
fn cpu(pid: u32) -> f64 {
    let of = |pid: &u32| -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        // Fields 14 and 15, in ticks of 10 ms.
        (ticks(11) + ticks(12)) * 10_000.0
    };
    family(pid).iter().map(of).sum()
}

struct Peer {
    name: &'static str,
    child: Child,
    at: SocketAddr,
    /// Memory that its names take, MB.
    memory: f64,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nsd's children end with their parent when it is asked to, not when it is killed.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_core(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]);
    command
}

fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn answers(at: SocketAddr, name: &str) -> bool {
    let output = Command::new("dig")
        .args(["@127.0.0.1", "-p", &at.port().to_string(), "+short", "+time=1", "+tries=1", name, "AAAA"])
        .output()
        .expect("dig: apt-get install bind9-dnsutils");
    String::from_utf8_lossy(&output.stdout).contains("2001:db8:160:")
}

fn wait_for(name: &'static str, child: Child, at: SocketAddr) -> Peer {
    let deadline = Instant::now() + Duration::from_secs(600);
    while !answers(at, &format!("{}.mashine.dev", slug(0))) {
        assert!(Instant::now() < deadline, "{name} does not answer");
        std::thread::sleep(Duration::from_millis(200));
    }
    let memory = family(child.id()).iter().map(|pid| memory(*pid)).sum();
    Peer { name, child, at, memory }
}

fn ours(names: usize, signed: bool) -> Peer {
    let this = std::env::current_exe().unwrap();
    let mut child = on_core("0", this.to_str().unwrap())
        .env(SERVE, format!("{names} {signed}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("taskset: apt-get install util-linux");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut words = line.split_ascii_whitespace();
    let at: SocketAddr = words.next().unwrap().parse().unwrap();
    let memory: f64 = words.next().unwrap().parse().unwrap();
    Peer { memory, ..wait_for("ours", child, at) }
}

/// The zone as text, for peers.
fn zone_file(folder: &Path, names: usize) -> PathBuf {
    let file = folder.join(format!("zone-{names}"));
    let mut text = String::from(
        "$ORIGIN mashine.dev.\n$TTL 60\n@ 300 SOA ns1 hostmaster 1 300 60 604800 5\n@ 300 NS ns1\nns1 A 203.0.113.53\n",
    );
    for n in 0..names {
        writeln!(text, "{} AAAA {}", slug(n), address(n + 16)).unwrap();
    }
    std::fs::write(&file, text).unwrap();
    file
}

fn knot(folder: &Path, names: usize, signed: bool) -> Peer {
    let at = free_port();
    let (zone, home) = (zone_file(folder, names), folder.join(format!("knot-{names}-{signed}")));
    std::fs::create_dir_all(&home).unwrap();
    let signing = if signed { "    dnssec-signing: on\n    dnssec-policy: p\n" } else { "" };
    let text = format!(
        "server:\n    rundir: {home}\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    \
         background-workers: 2\nlog:\n  - target: stderr\n    any: error\ndatabase:\n    storage: {home}\npolicy:\n  - id: p\n    \
         algorithm: ecdsap256sha256\n    single-type-signing: on\nzone:\n  - domain: mashine.dev\n    file: {zone}\n    \
         zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n{signing}",
        home = home.display(),
        zone = zone.display(),
        port = at.port(),
    );
    let config = home.join("knot.conf");
    std::fs::write(&config, text).unwrap();
    let child = on_core("0", "knotd").arg("-c").arg(&config).spawn().unwrap();
    wait_for("knot", child, at)
}

fn nsd(folder: &Path, names: usize) -> Peer {
    let at = free_port();
    let (zone, home) = (zone_file(folder, names), folder.join("nsd"));
    std::fs::create_dir_all(&home).unwrap();
    let text = format!(
        "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n database: \"\"\n \
         pidfile: \"{home}/pid\"\n xfrdfile: \"{home}/xfrd\"\n zonelistfile: \"{home}/list\"\n logfile: \"{home}/log\"\n \
         rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: mashine.dev\n \
         zonefile: \"{zone}\"\n",
        home = home.display(),
        zone = zone.display(),
        port = at.port(),
    );
    let config = home.join("nsd.conf");
    std::fs::write(&config, text).unwrap();
    let child = on_core("0", "nsd").arg("-d").arg("-c").arg(&config).spawn().unwrap();
    wait_for("nsd", child, at)
}

/// A file of questions.
fn questions(folder: &Path, what: &str, names: impl Iterator<Item = String>) -> PathBuf {
    let file = folder.join(what);
    let lines: Vec<String> = names.map(|name| format!("{name}.mashine.dev AAAA\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    file
}

/// In an order that has nothing to do with the names'.
fn scattered(count: usize, of: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| n.wrapping_mul(2_654_435_761) % of)
}

/// CPU microseconds an answer.
fn measure(peer: &Peer, file: &Path, signed: bool) -> f64 {
    let seconds = parameter("BENCH_SECONDS", 5);
    let before = cpu(peer.child.id());
    let mut command = on_core("1", "dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &peer.at.port().to_string(), "-d"]).arg(file);
    command.args(["-l", &seconds.to_string(), "-c", "16", "-q", "256"]);
    if signed {
        command.args(["-e", "-D"]);
    }
    let output = command.output().expect("dnsperf: apt-get install dnsperf");
    let used = cpu(peer.child.id()) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let completed = text.lines().find_map(|line| line.trim().strip_prefix("Queries completed:"));
    let completed: f64 = completed
        .unwrap_or_else(|| panic!("{text}"))
        .split_ascii_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(completed > 1000.0, "{}: {text}", peer.name);
    used / completed
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Each peer in turn, `BENCH_ROUNDS` times.
fn compare(what: &str, peers: &[&Peer], file: &Path, signed: bool) -> BTreeMap<&'static str, f64> {
    let mut all: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for _ in 0..parameter("BENCH_ROUNDS", 5).max(1) {
        for peer in peers {
            all.entry(peer.name).or_default().push(measure(peer, file, signed));
        }
    }
    let medians: BTreeMap<_, _> = all.into_iter().map(|(name, values)| (name, median(values))).collect();
    let shown: Vec<String> =
        peers.iter().map(|peer| format!("{} {:.2}", peer.name, medians[peer.name])).collect();
    println!("{what} (CPU µs an answer): {}", shown.join(", "));
    medians
}

/// From a change of the replica to the answer, ms, at that many names; and what the copy of the view costs, which the replica makes.
fn change_to_answer(names: usize) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (at, views, _secrets) =
            serve(fleet(names, &EntrySecret::random(), false), EntrySecret::random()).await;
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(at).await.unwrap();
        let (mut waited, mut copied) = (Vec::new(), Vec::new());
        for launch in 0..9u64 {
            let id = 0xff_0000_0000 + launch;
            let slug = format!("new-{launch}");
            let change =
                common::machine(id, &slug, &format!("2001:db8:160:9::{launch}"), serde_json::json!({}));
            let since = Instant::now();
            let mut next = (**views.borrow()).clone();
            copied.push(since.elapsed().as_secs_f64() * 1000.0);
            let revision = next.revision + 1;
            next.apply(&Batch { revision, changes: vec![change] });
            let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5];
            question.extend_from_slice(slug.as_bytes());
            question.extend_from_slice(b"\x07mashine\x03dev\x00\x00\x1c\x00\x01");
            let since = Instant::now();
            views.send_replace(Arc::new(next));
            let mut reply = [0u8; 512];
            loop {
                socket.send(&question).await.unwrap();
                socket.recv(&mut reply).await.unwrap();
                if reply[7] == 1 {
                    break;
                }
            }
            waited.push(since.elapsed().as_secs_f64() * 1000.0);
        }
        (median(waited), median(copied))
    })
}

async fn serve(
    view: View,
    secret: EntrySecret,
) -> (SocketAddr, watch::Sender<Arc<View>>, watch::Sender<Option<EntrySecret>>) {
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        threads: 1,
        responses_per_second: 0,
        signatures_per_second: 1_000_000,
        ..Config::default()
    };
    let server = Server::bind(&config).await.unwrap();
    let at = server.addresses().unwrap()[0];
    let (views, view_receiver) = watch::channel(Arc::new(view));
    let (secrets, secret_receiver) = watch::channel(Some(secret));
    tokio::spawn(server.serve(view_receiver, secret_receiver, std::future::pending()));
    let first = format!("{}.mashine.dev", slug(0));
    tokio::task::spawn_blocking(move || {
        while !answers(at, &first) {
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await
    .unwrap();
    (at, views, secrets)
}

/// The process that serves: says where, and what its names took beside the replica's records; ends with its standard input.
fn serving(what: &str) {
    let mut words = what.split(' ');
    let names: usize = words.next().unwrap().parse().unwrap();
    let signed = words.next() == Some("true");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let secret = EntrySecret::random();
        let view = fleet(names, &secret, signed);
        let before = memory(std::process::id());
        let (at, _views, _secrets) = serve(view, secret).await;
        println!("{at} {:.1} {before:.1}", memory(std::process::id()) - before);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

fn main() {
    if let Ok(what) = std::env::var(SERVE) {
        return serving(&what);
    }
    let names = parameter("BENCH_NAMES", 1_000_000);
    let few = names.min(POPULAR);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut goals = Vec::new();
    let mut goal = |name: &str, measured: f64, target: f64| {
        let outcome = if measured <= target { "met" } else { "missed" };
        goals.push(format!("goal {name} {measured:.2} <={target:.2} {outcome}"));
    };
    let hits = questions(folder, "hits", scattered(names.min(200_000), names).map(slug));
    let misses = questions(folder, "misses", scattered(200_000, usize::MAX).map(|n| format!("nope-{n:x}")));
    let popular = questions(folder, "popular", scattered(few, few).map(slug));
    {
        let peers = [ours(names, false), knot(folder, names, false), nsd(folder, names)];
        let peers: Vec<&Peer> = peers.iter().collect();
        let memory: Vec<String> =
            peers.iter().map(|peer| format!("{} {:.0}", peer.name, peer.memory)).collect();
        println!("memory of {names} names (MB): {}", memory.join(", "));
        goal("memory-mb", peers[0].memory, 200.0);
        let medians = compare(&format!("hits, {names} names"), &peers, &hits, false);
        goal("hit-us", medians["ours"], medians["knot"]);
        let many = compare(&format!("NXDOMAIN, {names} names"), &peers, &misses, false);
        goal("nxdomain-us", many["ours"], many["knot"]);
        let small = ours(few, false);
        let less = compare(&format!("NXDOMAIN, {few} names"), &[&small], &misses, false);
        // The same within what the machine's noise moves.
        goal("nxdomain-many-to-few", many["ours"] / less["ours"], 1.15);
    }
    {
        let peers = [ours(few, true), knot(folder, few, true)];
        let peers: Vec<&Peer> = peers.iter().collect();
        let medians =
            compare(&format!("signed, {few} names asked for again and again"), &peers, &popular, true);
        goal("signed-us", medians["ours"], medians["knot"]);
        compare("signed NXDOMAIN, each another name: a signature each of ours", &peers, &misses, true);
    }
    let (waited, copied) = change_to_answer(names);
    println!(
        "from a change to its answer, {names} names (ms): {waited:.1}; the replica's copy of the view before: {copied:.1}"
    );
    goal("change-to-answer-ms", waited, 100.0);
    for line in &goals {
        println!("{line}");
    }
}
