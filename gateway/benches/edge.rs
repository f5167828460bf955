//! What the edge costs, beside nginx and HAProxy with the same work: one core each, the clients and the machine on the other.
//!
//! `scripts/bench edge`. The environment says how much: `BENCH_ROUNDS` (5), `BENCH_SECONDS` (3) for each measurement, `BENCH_IDLE` (4000)
//! connections. In turns within each round; medians. Rates are of the proxy's own CPU time, so that they say what one core can do, whatever else
//! the machine is doing: `requests / CPU second`. Each goal ends as a line `goal NAME MEASURED TARGET met|missed`.

// A failed unwrap is a failed run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/it/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::clients::{need, reach};
use common::edge::{EdgeStage, WebCa, client_config};
use common::free_port;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;

/// As in the daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const OURS: &str = "ours";
const NGINX: &str = "nginx";
const HAPROXY: &str = "haproxy";
const WAYS: [&str; 3] = [OURS, NGINX, HAPROXY];

/// The name that everybody serves.
const NAME: &str = "web.mashine.dev";

/// The core of the proxies, and that of their clients and the machine.
const PROXY_CORE: &str = "1";
const CLIENT_CORE: &str = "0";

fn parameter(name: &str, usual: usize) -> usize {
    std::env::var(name)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A program on one core.
fn on(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]).kill_on_drop(true).stderr(Stdio::null());
    command
}

struct Proxy {
    process: Child,
    port: u16,
}

impl Proxy {
    fn stat(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id().unwrap())).unwrap()
    }

    /// Seconds of CPU that it has had.
    fn cpu(&self) -> f64 {
        let stat = self.stat("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    fn resident_kib(&self) -> f64 {
        let status = self.stat("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

struct Bench {
    directory: tempfile::TempDir,
    ca: Arc<WebCa>,
    proxies: BTreeMap<&'static str, Proxy>,
    rounds: usize,
    seconds: usize,
    goals: Vec<String>,
    _machine: Child,
}

impl Bench {
    async fn new() -> Self {
        for (program, package) in
            [("nginx", "nginx-light"), ("haproxy", "haproxy"), ("h2load", "nghttp2-client")]
        {
            need(program, package);
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let machine = free_port();
        std::fs::write(at("big"), common::clients::noise(64 << 20)).unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let common_nginx = |role: &str| {
            format!(
                "daemon off; master_process off; pid {}; error_log /dev/null crit; events {{ worker_connections 20000; }}\n",
                at(&format!("{role}.pid"))
            )
        };
        let origin = format!(
            "{}http {{ access_log off; keepalive_requests 1000000000; sendfile on;\n server {{ listen [::1]:{machine}; root {};\n \
             location = / {{ default_type text/plain; return 200 \"{}\"; }} }} }}\n",
            common_nginx("origin"),
            directory.path().display(),
            "x".repeat(100),
        );
        std::fs::write(at("origin.conf"), origin).unwrap();
        let origin = on(CLIENT_CORE, "nginx").args(["-c", &at("origin.conf")]).spawn().unwrap();
        drop(reach6(machine).await);

        let mut edge = on(PROXY_CORE, std::env::current_exe().unwrap().to_str().unwrap());
        edge.env("BENCH_EDGE", machine.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut edge = edge.spawn().unwrap();
        let mut lines = BufReader::new(edge.stdout.take().unwrap()).lines();
        let port: u16 = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        let ca = Arc::new(WebCa::new());
        let (chain, key) = ca.issue(&[NAME]);
        std::fs::write(at("chain.pem"), &chain).unwrap();
        std::fs::write(at("key.pem"), &key).unwrap();
        std::fs::write(at("both.pem"), chain + &key).unwrap();
        let (nginx_port, haproxy_port) = (free_port(), free_port());
        let nginx = format!(
            "{}http {{ access_log off; keepalive_requests 1000000000; proxy_max_temp_file_size 0; proxy_buffers 16 16k; ssl_buffer_size 16k;\n \
             upstream machine {{ server [::1]:{machine}; keepalive 128; keepalive_requests 1000000000; }}\n \
             server {{ listen 127.0.0.1:{nginx_port} ssl http2 backlog=4096; server_name {NAME}; ssl_certificate {}; ssl_certificate_key {};\n \
             ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;\n \
             location / {{ proxy_pass http://machine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n \
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https; }} }} }}\n",
            common_nginx("nginx"),
            at("chain.pem"),
            at("key.pem"),
        );
        std::fs::write(at("nginx.conf"), nginx).unwrap();
        let haproxy = format!(
            "global\n maxconn 9000\n nbthread 1\n tune.ssl.default-dh-param 2048\ndefaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n \
             option forwardfor\n http-reuse always\nfrontend edge\n bind 127.0.0.1:{haproxy_port} ssl crt {} alpn h2,http/1.1\n \
             http-request set-header X-Forwarded-Proto https\n default_backend machine\nbackend machine\n server machine [::1]:{machine}\n",
            at("both.pem"),
        );
        std::fs::write(at("haproxy.cfg"), haproxy).unwrap();
        let nginx = on(PROXY_CORE, "nginx").args(["-c", &at("nginx.conf")]).spawn().unwrap();
        let haproxy =
            on(PROXY_CORE, "haproxy").args(["-q", "-db", "-f", &at("haproxy.cfg")]).spawn().unwrap();
        drop((reach(nginx_port).await, reach(haproxy_port).await));
        let proxies = BTreeMap::from([
            (OURS, Proxy { process: edge, port }),
            (NGINX, Proxy { process: nginx, port: nginx_port }),
            (HAPROXY, Proxy { process: haproxy, port: haproxy_port }),
        ]);
        let (rounds, seconds) = (parameter("BENCH_ROUNDS", 5).max(1), parameter("BENCH_SECONDS", 3).max(1));
        Self { directory, ca, proxies, rounds, seconds, goals: Vec::new(), _machine: origin }
    }

    /// Measures each proxy in turn, `rounds` times: how much was done, by the CPU time that it took. The goal is nginx's.
    async fn compare<F>(&mut self, name: &str, unit: &str, measure: impl Fn(&Self, u16) -> F)
    where
        F: Future<Output = f64>,
    {
        let (mut rates, mut walls): (BTreeMap<_, Vec<f64>>, BTreeMap<_, Vec<f64>>) = Default::default();
        for _ in 0..self.rounds {
            for way in WAYS {
                let proxy = &self.proxies[way];
                let (before, begun) = (proxy.cpu(), Instant::now());
                let done = measure(self, proxy.port).await;
                rates.entry(way).or_default().push(done / (proxy.cpu() - before).max(0.01));
                walls.entry(way).or_default().push(done / begun.elapsed().as_secs_f64());
            }
        }
        let shown = WAYS.map(|way| {
            format!("{way} {:.0} (wall {:.0})", median(rates[way].clone()), median(walls[way].clone()))
        });
        println!("{name} ({unit} / CPU s): {}", shown.join(", "));
        let ratio = median(rates[OURS].clone()) / median(rates[NGINX].clone());
        self.goal(name, ratio, 1.0, true);
    }

    /// `measured` against `target`: at least that much, or at most.
    fn goal(&mut self, name: &str, measured: f64, target: f64, at_least: bool) {
        let met = if at_least { measured >= target } else { measured <= target };
        let (sign, outcome) = (if at_least { ">=" } else { "<=" }, if met { "met" } else { "missed" });
        self.goals.push(format!("goal {name} {measured:.2} {sign}{target:.2} {outcome}"));
    }

    /// Handshakes of a client of our own, which offers X25519 and waits for the server's ticket.
    async fn handshakes(&mut self) {
        for (name, resumed) in [("full-handshakes", false), ("resumed-handshakes", true)] {
            let seconds = self.seconds;
            let ca = Arc::clone(&self.ca);
            self.compare(name, "handshakes", move |_, port| {
                let ca = Arc::clone(&ca);
                async move { handshakes(&ca, port, resumed, seconds).await }
            })
            .await;
        }
    }

    async fn requests(&mut self) {
        for (name, options) in [
            ("h1-requests", &["--h1", "-c", "64", "-t", "1"][..]),
            ("h2-requests", &["-c", "8", "-m", "32", "-t", "1"]),
        ] {
            self.compare(name, "requests", |bench, port| {
                let seconds = bench.seconds.to_string();
                let mut load = on(CLIENT_CORE, "h2load");
                load.args(options).args(["-D", &seconds, &format!("--connect-to=127.0.0.1:{port}")]);
                load.arg(format!("https://{NAME}/"));
                async move {
                    let output = load.output().await.unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    let line = text
                        .lines()
                        .find(|line| line.starts_with("requests:"))
                        .unwrap_or_else(|| panic!("{text}"));
                    let number = |word: &str| -> f64 {
                        let at = line.split(", ").find(|part| part.ends_with(word)).unwrap();
                        at.trim_start_matches("requests: ").split(' ').next().unwrap().parse().unwrap()
                    };
                    assert!(number("failed") == 0.0 && number("succeeded") > 0.0, "{text}");
                    number("succeeded")
                }
            })
            .await;
        }
    }

    async fn bytes(&mut self) {
        for (name, option) in [("h1-download", "--http1.1"), ("h2-download", "--http2")] {
            self.compare(name, "MB", |_, port| {
                let mut curl = on(CLIENT_CORE, "curl");
                curl.args(["-sSk", option, "--connect-to", &format!(":443:127.0.0.1:{port}")]);
                for _ in 0..4 {
                    curl.args(["-o", "/dev/null", &format!("https://{NAME}/big")]);
                }
                async move {
                    assert!(curl.status().await.unwrap().success());
                    4.0 * 64.0
                }
            })
            .await;
        }
    }

    /// Connections that had one request each and rest.
    async fn idle(&mut self) {
        let connections = parameter("BENCH_IDLE", 4000);
        let mut each = BTreeMap::new();
        for way in WAYS {
            let proxy = &self.proxies[way];
            let before = proxy.resident_kib();
            let connector = TlsConnector::from(anyone(&self.ca, Resumption::disabled()));
            let mut held = Vec::new();
            while held.len() < connections {
                let some = (0..50).map(|_| one_request(connector.clone(), proxy.port));
                held.extend(futures_util::future::join_all(some).await);
            }
            // What a connection needed while it had its request is to be given back, which allocators do when they come to it.
            let mut settled = proxy.resident_kib();
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(3)).await;
                settled = settled.min(proxy.resident_kib());
            }
            each.insert(way, (settled - before) / held.len() as f64);
        }
        let shown = WAYS.map(|way| format!("{way} {:.1}", each[way]));
        println!("memory of {connections} idle connections (KiB each): {}", shown.join(", "));
        self.goal("idle-memory", each[OURS] / each[NGINX], 1.0, false);
    }
}

async fn reach6(port: u16) -> TcpStream {
    for _ in 0..100 {
        if let Ok(stream) = TcpStream::connect(("::1", port)).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing listens at port {port}")
}

/// A client that trusts everybody: what it checks is not what is measured. It offers X25519 alone, as the OpenSSL of Debian 12 does.
fn anyone(ca: &WebCa, resumption: Resumption) -> Arc<rustls::ClientConfig> {
    let mut config = Arc::unwrap_or_clone(client_config(ca, &[b"http/1.1"]));
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let trust = Arc::new(Anyone(Arc::new(provider.clone())));
    let base = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let base = base.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
    let mut trusting = base.with_custom_certificate_verifier(trust).with_no_client_auth();
    trusting.alpn_protocols = std::mem::take(&mut config.alpn_protocols);
    trusting.resumption = resumption;
    Arc::new(trusting)
}

#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn one_request(connector: TlsConnector, port: u16) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes()).await.unwrap();
    // Without it the request may stay in the TLS buffer: what the runtime lets one task do at once ends somewhere.
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"xxxxx") {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut answer)).await;
        assert!(matches!(read, Ok(Ok(1..))), "{read:?} after {}", String::from_utf8_lossy(&answer));
    }
    stream
}

/// How many handshakes were done.
async fn handshakes(ca: &WebCa, port: u16, resumed: bool, seconds: usize) -> f64 {
    let resumption = if resumed { Resumption::in_memory_sessions(4096) } else { Resumption::disabled() };
    let connector = TlsConnector::from(anyone(ca, resumption));
    let (done, again) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let deadline = Instant::now() + Duration::from_secs(seconds as u64);
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let tasks = (0..16).map(|_| {
        let (connector, done, again) = (connector.clone(), Arc::clone(&done), Arc::clone(&again));
        tokio::spawn(async move {
            while Instant::now() < deadline {
                let stream = TcpStream::connect(at).await.unwrap();
                let name = ServerName::try_from(NAME).unwrap();
                let mut stream = connector.connect(name, stream).await.unwrap();
                let mut nothing = [0; 1];
                while stream.get_ref().1.tls13_tickets_received() == 0 {
                    // A ticket is no data: the read goes on, and is left as soon as there is one.
                    let _more =
                        tokio::time::timeout(Duration::from_millis(1), stream.read(&mut nothing)).await;
                }
                done.fetch_add(1, Ordering::Relaxed);
                if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                    again.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let (done, again) = (done.load(Ordering::Relaxed) as f64, again.load(Ordering::Relaxed) as f64);
    assert!(if resumed { again / done > 0.5 } else { again == 0.0 }, "{again} of {done} were resumed");
    done
}

/// The edge, in a process of its own: one thread does all the work.
async fn edge(machine: u16) {
    let stage = EdgeStage::with(|config| {
        config.edge.limits.total = 100_000;
        config.edge.per_service = 100_000;
        config.edge.keep_alive_s = 600;
    })
    .await;
    stage.machine("web", machine).await;
    println!("{}", stage.https.port());
    let _until_told = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
}

fn main() {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    if let Ok(machine) = std::env::var("BENCH_EDGE") {
        return runtime.block_on(edge(machine.parse().unwrap()));
    }
    runtime.block_on(async {
        let mut bench = Bench::new().await;
        bench.idle().await;
        bench.handshakes().await;
        bench.requests().await;
        bench.bytes().await;
        println!("{}", bench.goals.join("\n"));
        drop(bench.directory);
    });
}
