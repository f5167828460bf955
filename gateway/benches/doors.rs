//! What the gateway costs: the same work straight to a machine's sshd, by ProxyJump through an sshd, through HAProxy, and through ours.
//! In turns within each round, since back-to-back blocks mislead on a busy machine; medians; the cipher is pinned.
//!
//! `scripts/bench gateway`, or `cargo bench -p mashines-gateway`. The environment says how much:
//! `BENCH_MB` (256) for a transfer, `BENCH_ROUNDS` (7), `BENCH_SESSIONS` (1000) idle sessions, `BENCH_PACK_MB` (100) for a push.
//! Each goal ends as a line `goal NAME MEASURED TARGET met|missed`.

// A failed unwrap is a failed run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/it/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::clients::{need, noise, reach, succeed, tool};
use common::{Stage, free_port};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, client};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// Ways to the machine, as hosts in a client's configuration.
const DIRECT: &str = "direct";
const JUMP: &str = "jump";
const HAPROXY: &str = "haproxy";
const OURS: &str = "ours";
const SHARED: &str = "shared-port";

/// A parameter of the run.
fn parameter(name: &str, usual: usize) -> usize {
    std::env::var(name)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

struct Bench {
    stage: Stage,
    rounds: usize,
    megabytes: usize,
    goals: Vec<String>,
    _haproxy: Child,
}

/// Medians by way, in seconds or in whatever was measured.
type Medians = BTreeMap<&'static str, f64>;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Bench {
    async fn new() -> Self {
        for (program, package) in [("haproxy", "haproxy"), ("iperf3", "iperf3"), ("git", "git")] {
            need(program, package);
        }
        let stage = Stage::with(|config| {
            common::clients::hurried(config);
            config.port_limits.per_source = 10_000;
            config.port_limits.per_source_per_second = 10_000;
            config.ssh_limits.total = 20_000;
            config.account_limits.sessions = 20_000;
            config.ports_bind = vec!["127.0.0.1".parse().unwrap()];
        })
        .await;
        let (shared, proxied) = (free_port(), free_port());
        stage.publish(Some(shared));
        let machine = stage.machine_port;
        let haproxy = format!(
            "global\n maxconn 1000\ndefaults\n mode tcp\n option splice-auto\n timeout connect 5s\n timeout client 1h\n \
             timeout server 1h\nlisten ssh\n bind 127.0.0.1:{proxied}\n server machine [::1]:{machine}\n"
        );
        std::fs::write(stage.path("haproxy.cfg"), haproxy).unwrap();
        let mut haproxy = tool("haproxy", "haproxy");
        haproxy.arg("-q").arg("-db").arg("-f").arg(stage.path("haproxy.cfg"));
        let haproxy = haproxy.spawn().unwrap();
        let _up = (reach(shared).await, reach(proxied).await);
        let config = format!(
            "Host {DIRECT} {JUMP} jumper\n HostName ::1\n Port {machine}\n User root\nHost {JUMP}\n ProxyJump jumper\n\
             Host {HAPROXY}\n HostName 127.0.0.1\n Port {proxied}\n User root\n\
             Host {OURS}\n HostName 127.0.0.1\n Port {ours}\n User web\n\
             Host {SHARED}\n HostName 127.0.0.1\n Port {shared}\n User root\n\
             Host *\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n IdentitiesOnly yes\n \
             IdentityAgent none\n IdentityFile {key}\n Ciphers aes128-gcm@openssh.com\n Compression no\n",
            ours = stage.port(),
            key = stage.path("ann").display(),
        );
        std::fs::write(stage.path("config"), config).unwrap();
        let rounds = parameter("BENCH_ROUNDS", 7).max(1);
        let megabytes = parameter("BENCH_MB", 256).max(1);
        std::fs::write(stage.path("file"), noise(megabytes << 20)).unwrap();
        Self { stage, rounds, megabytes, goals: Vec::new(), _haproxy: haproxy }
    }

    /// One of OpenSSH's programs with the configuration of all ways.
    fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = tool(program, "openssh-client");
        command.arg("-F").arg(self.stage.path("config")).args(arguments);
        command
    }

    fn file(&self) -> String {
        self.stage.path("file").display().to_string()
    }

    /// Measures each way in turn, `rounds` times.
    async fn compare<F>(
        &self,
        what: &str,
        unit: &str,
        ways: &[&'static str],
        measure: impl Fn(&'static str) -> F,
    ) -> Medians
    where
        F: Future<Output = f64>,
    {
        let mut all: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for _ in 0..self.rounds {
            for way in ways {
                all.entry(way).or_default().push(measure(way).await);
            }
        }
        let medians: Medians = all.into_iter().map(|(way, values)| (way, median(values))).collect();
        let shown: Vec<String> = ways.iter().map(|way| format!("{way} {:.1}", medians[way])).collect();
        println!("{what} ({unit}): {}", shown.join(", "));
        medians
    }

    /// `measured` against `target`: at least that much, or at most.
    fn goal(&mut self, name: &str, measured: f64, target: f64, at_least: bool) {
        let met = if at_least { measured >= target } else { measured <= target };
        let sign = if at_least { ">=" } else { "<=" };
        let outcome = if met { "met" } else { "missed" };
        self.goals.push(format!("goal {name} {measured:.2} {sign}{target:.2} {outcome}"));
    }

    async fn transfers(&mut self) {
        let megabytes = self.megabytes as f64;
        let ways = [DIRECT, JUMP, HAPROXY, OURS, SHARED];
        let (size, file) = (format!("head -c {}M /dev/zero", self.megabytes), self.file());
        let there = self.stage.path("there").display().to_string();
        let down = self.compare("ssh cat, down", "MB/s", &ways, |way| {
            let mut command = self.client("ssh", &[way, &size]);
            command.stdin(Stdio::null());
            async move { megabytes / seconds(command).await }
        });
        let down = down.await;
        let up = self.compare("ssh cat, up", "MB/s", &ways, |way| {
            let mut command = self.client("ssh", &[way, "cat > /dev/null"]);
            command.stdin(std::fs::File::open(&file).unwrap());
            async move { megabytes / seconds(command).await }
        });
        let up = up.await;
        let scp_down = self.compare("scp, down", "MB/s", &ways, |way| {
            let command = self.client("scp", &["-q", &format!("{way}:{file}"), &there]);
            async move { megabytes / seconds(command).await }
        });
        let scp_down = scp_down.await;
        let scp_up = self.compare("scp, up", "MB/s", &ways, |way| {
            let command = self.client("scp", &["-q", &file, &format!("{way}:{there}")]);
            async move { megabytes / seconds(command).await }
        });
        let scp_up = scp_up.await;
        for (name, medians) in
            [("cat-down", &down), ("cat-up", &up), ("scp-down", &scp_down), ("scp-up", &scp_up)]
        {
            self.goal(name, medians[OURS] / medians[DIRECT], 0.95, true);
        }
        for (name, medians) in [("shared-port-down", &down), ("shared-port-up", &up)] {
            self.goal(name, medians[SHARED] / medians[HAPROXY], 1.0, true);
        }
    }

    /// TCP through `-L`, both ways.
    async fn forwards(&mut self) {
        let inside = free_port();
        let mut server = tool("iperf3", "iperf3");
        let mut server =
            server.args(["-s", "-p", &inside.to_string()]).stdout(Stdio::null()).spawn().unwrap();
        drop(reach(inside).await);
        let ways = [DIRECT, JUMP, HAPROXY, OURS];
        let mut ports = BTreeMap::new();
        let mut clients = Vec::new();
        for way in ways {
            let port = free_port();
            let forward = format!("{port}:localhost:{inside}");
            clients.push(self.client("ssh", &["-N", "-L", &forward, way]).spawn().unwrap());
            ports.insert(way, port);
        }
        // A connection to see whether they are there would be a test of iperf3's that never ends.
        tokio::time::sleep(Duration::from_secs(3)).await;
        for (name, option) in [("forward-up", "--no-delay"), ("forward-down", "-R")] {
            let what = format!("iperf3 through -L, {name}");
            let medians = self.compare(&what, "Mbit/s", &ways, |way| {
                let mut iperf = tool("iperf3", "iperf3");
                iperf.args(["-c", "127.0.0.1", "-t", "2", "-J", option, "-p", &ports[way].to_string()]);
                async move {
                    let output = succeed(iperf, b"").await;
                    let report: serde_json::Value = serde_json::from_slice(&output.out).unwrap();
                    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
                    rate.unwrap_or_else(|| panic!("iperf3: {}", output.text())) / 1e6
                }
            });
            let medians = medians.await;
            self.goal(name, medians[OURS] / medians[DIRECT], 0.95, true);
        }
        server.kill().await.unwrap();
    }

    async fn logins(&mut self) {
        let ways = [DIRECT, JUMP, HAPROXY, OURS];
        let one = self.compare("ssh true", "ms", &ways, |way| {
            let command = self.client("ssh", &["-n", way, "true"]);
            async move { seconds(command).await * 1e3 }
        });
        let one = one.await;
        let eight = self.compare("ssh true, 8 at once", "ms for all", &ways, |way| {
            let all = (0..8).map(|_| seconds(self.client("ssh", &["-n", way, "true"])));
            let all: Vec<_> = all.collect();
            async move {
                let begun = Instant::now();
                futures_util::future::join_all(all).await;
                begun.elapsed().as_secs_f64() * 1e3
            }
        });
        let eight = eight.await;
        self.goal("ssh-true", one[OURS] / one[DIRECT], 1.0, false);
        self.goal("ssh-true-8-at-once", eight[OURS] / eight[DIRECT], 1.0, false);
    }

    /// A key pressed at a terminal until its echo is there.
    async fn keystrokes(&self) {
        self.compare("keystroke until its echo", "ms", &[DIRECT, JUMP, HAPROXY, OURS], |way| {
            let command = self.client("ssh", &["-tt", way, "stty -icanon; echo up; exec cat > /dev/null"]);
            async move { echo(command).await * 1e3 }
        })
        .await;
    }

    async fn push(&mut self) {
        let pack = parameter("BENCH_PACK_MB", 100);
        let here = self.stage.path("here");
        let git = |arguments: &[&str]| {
            let mut git = tool("git", "git");
            git.args(["-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "gc.auto=0", "-C"]);
            git.arg(&here).args(["-c", "pack.compression=0", "-c", "core.compression=0"]).args(arguments);
            git.env("GIT_SSH_COMMAND", format!("ssh -F {}", self.stage.path("config").display()));
            git
        };
        std::fs::create_dir(&here).unwrap();
        for part in 0..pack.div_ceil(10) {
            let length = 10.min(pack - part * 10) << 20;
            let mut data = noise(length);
            data[..8].copy_from_slice(&(part as u64).to_be_bytes());
            std::fs::write(here.join(format!("part{part}")), data).unwrap();
        }
        for arguments in [&["init", "-q", "-b", "main"][..], &["add", "-A"], &["commit", "-q", "-m", "all"]] {
            succeed(git(arguments), b"").await;
        }
        let (there, what) = (self.stage.path("there.git"), format!("git push of {pack} MB"));
        let medians = self.compare(&what, "s", &[DIRECT, JUMP, HAPROXY, OURS], |way| {
            let push = git(&["push", "-q", &format!("{way}:{}", there.display()), "main"]);
            let there = there.clone();
            async move {
                let _none_yet = std::fs::remove_dir_all(&there);
                let mut init = tool("git", "git");
                init.args(["init", "-q", "--bare"]).arg(&there);
                succeed(init, b"").await;
                seconds(push).await
            }
        });
        let medians = medians.await;
        self.goal("push", medians[DIRECT] / medians[OURS], 0.95, true);
    }

    /// What a session costs that does nothing: the clients are another program, and the machine's side is the sshd's.
    async fn idle(&mut self) {
        let sessions = parameter("BENCH_SESSIONS", 1000);
        let before = resident_kib(std::process::id());
        let mut holder = Command::new(std::env::current_exe().unwrap());
        let key = self.stage.path("ann").display().to_string();
        holder.env("BENCH_HOLD", format!("{} {sessions} {key}", self.stage.gateway));
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut holder = holder.spawn().unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert_eq!(
            lines.next_line().await.unwrap().as_deref(),
            Some("held"),
            "the sessions did not all begin"
        );
        tokio::time::sleep(Duration::from_secs(3)).await;
        let each = resident_kib(std::process::id()).saturating_sub(before) as f64 / sessions as f64;
        println!("memory of {sessions} idle sessions: {each:.1} KiB each");
        self.goal("idle-session-kib", each, 100.0, false);
        drop(holder.stdin.take());
        let _ended = holder.wait().await;
    }
}

async fn seconds(mut command: Command) -> f64 {
    let since = Instant::now();
    let status = command.stdout(Stdio::null()).status().await.unwrap();
    assert!(status.success(), "{:?}: {status}", command.as_std());
    since.elapsed().as_secs_f64()
}

/// The median time of a byte there and back.
async fn echo(mut command: Command) -> f64 {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    while !seen.ends_with(b"up\r\n") {
        seen.push(screen.read_u8().await.unwrap());
    }
    let mut times = Vec::new();
    for _ in 0..100 {
        let since = Instant::now();
        keys.write_all(b"k").await.unwrap();
        assert_eq!(screen.read_u8().await.unwrap(), b'k');
        times.push(since.elapsed().as_secs_f64());
    }
    child.kill().await.unwrap();
    median(times)
}

fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// The other program of [`Bench::idle`]: opens sessions, says so, and holds them until its input ends.
async fn hold(order: &str) {
    let words: Vec<&str> = order.split_whitespace().collect();
    let (gateway, sessions) = (words[0], words[1].parse::<usize>().unwrap());
    let key = Arc::new(russh::keys::load_secret_key(Path::new(words[2]), None).unwrap());
    let config = Arc::new(client::Config::default());
    let mut held = Vec::new();
    let each = (0..sessions).map(|_| {
        let (config, key) = (Arc::clone(&config), PrivateKeyWithHashAlg::new(Arc::clone(&key), None));
        async move {
            let mut handle = client::connect(config, gateway, Anyone).await.unwrap();
            assert!(handle.authenticate_publickey("web", key).await.unwrap().success());
            let mut channel = handle.channel_open_session().await.unwrap();
            channel.exec(true, "echo up; exec sleep 100000").await.unwrap();
            while !matches!(channel.wait().await.expect("a session ended"), ChannelMsg::Data { .. }) {}
            (handle, channel)
        }
    });
    let mut each = each.collect::<Vec<_>>().into_iter();
    loop {
        let some: Vec<_> = each.by_ref().take(8).collect();
        if some.is_empty() {
            break;
        }
        held.extend(futures_util::future::join_all(some).await);
    }
    println!("held");
    let _until_told = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    drop(held);
}

#[tokio::main]
async fn main() {
    if let Ok(order) = std::env::var("BENCH_HOLD") {
        return hold(&order).await;
    }
    let mut bench = Bench::new().await;
    bench.idle().await;
    bench.logins().await;
    bench.keystrokes().await;
    bench.transfers().await;
    bench.forwards().await;
    bench.push().await;
    println!("{}", bench.goals.join("\n"));
}
