//! A fleet with entries that have certificates, and what is around it: DNS, an edge, issuers. All on loopback, on ports that the kernel gives.

// Each test program uses a part of it, and a test that cannot go on panics.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod doors;
#[path = "../../../control/tests/it/support/mod.rs"]
pub mod fleet;
pub mod issuer;
pub mod pebble;
#[path = "../../../tests/support/mod.rs"]
pub mod shared;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use fleet::names::APEX;
use fleet::names::Names;
use fleet::{Fleet, founding};
use mashines_acme::clock::Clock;
use mashines_acme::config::{Config, Issuer, Ports};
use mashines_fleet::api;
use mashines_fleet::daemon::Common;
use mashines_fleet::id::DomainName;
use mashines_fleet::pki::Identity;
use mashines_fleet::record::{Capacity, Certificate, Host, HostRole, NameServer};
use mashines_fleet::replica::{ReplicaConfig, follow};
use mashines_fleet::rpc::{Client, Empty};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use serde_json::{Value, json};
pub use shared::free_port;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// How long an order may take on a slow machine, every other nonce refused.
const PATIENCE: Duration = Duration::from_secs(180);

pub const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const WILDCARD: &str = "*.mashine.test";
pub const CERTIFICATES: &str = "/v1/apps/default/certificates";

/// A clock that travels.
#[derive(Clone, Default)]
pub struct Travel(Arc<AtomicU64>);

impl Travel {
    pub fn by(&self, span: Duration) {
        self.0.fetch_add(u64::try_from(span.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// To that time, if it is ahead.
    pub fn to(&self, at: u64) {
        self.by(Duration::from_millis(at.saturating_sub(self.clock().now())));
    }

    pub fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.0);
        Clock::new(move || now() + ahead.load(Ordering::SeqCst))
    }
}

pub fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What a replica shows, that much later.
fn behind(mut view: watch::Receiver<Arc<View>>, lag: Duration) -> watch::Receiver<Arc<View>> {
    if lag.is_zero() {
        return view;
    }
    let (late, shown) = watch::channel(Arc::clone(&view.borrow_and_update()));
    tokio::spawn(async move {
        while view.changed().await.is_ok() {
            let now = Arc::clone(&view.borrow_and_update());
            tokio::time::sleep(lag).await;
            if late.send(now).is_err() {
                return;
            }
        }
    });
    shown
}

/// The whole.
pub struct World {
    pub fleet: Fleet,
    pub names: Names,
    pub edge: doors::Edge,
    pub travel: Travel,
    /// How far the replicas of entries lag behind.
    pub lag: Duration,
    view: watch::Receiver<Arc<View>>,
}

impl World {
    /// Control, one host, DNS and an edge that show what the records say; no entry yet.
    pub async fn up() -> Self {
        let names = Names::start().await;
        let mut founding = founding();
        let server = NameServer { name: format!("ns1.{APEX}"), addresses: vec![LOCAL.into()] };
        founding.fleet.name_servers = vec![server];
        let config = mashines_control::Config { resolvers: vec![names.address], ..Default::default() };
        let mut fleet = Fleet::up_as(&["hosta"], config, founding).await;
        // The doors of the fleet show challenges by a replica of their own.
        let identity = fleet.join("doors", vec![HostRole::Host]).await;
        let state = fleet.state.path();
        let (view, _following) = follow(ReplicaConfig {
            control: vec![fleet.url.clone()],
            tls: identity.clone(),
            file: state.join("replica-doors.json"),
        });
        let secret = EntrySecret::load(&state.join("entries.key")).unwrap().unwrap();
        let edge = doors::Edge::start(identity, view.clone(), secret, state).await;
        names.delegate(edge.dns);
        Self { fleet, names, edge, travel: Travel::default(), lag: Duration::ZERO, view }
    }

    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Joins an entry whose public address is the loopback, and tells control of it.
    pub async fn joined(&self, id: &str) -> Identity {
        let token = self.fleet.join_token(None).await;
        let identity =
            mashines_fleet::join::join(&self.fleet.url, &token, &id.parse().unwrap()).await.unwrap();
        let host = Host {
            id: id.parse().unwrap(),
            roles: vec![HostRole::Entry],
            region: "lab".to_owned(),
            api: SocketAddr::from((LOCAL, 1)),
            underlay: LOCAL.into(),
            wireguard_port: 0,
            wireguard_key: None,
            mesh: std::net::Ipv6Addr::LOCALHOST,
            capacity: Capacity { vcpus: 0, memory_mib: 0, disk_mib: 0 },
            images: vec![],
            cordoned: false,
            seen_at: 0,
            public_ipv4: vec![LOCAL],
            public_ipv6: vec![],
        };
        let client = Client::to_control(&identity, &self.fleet.url).unwrap();
        let report = json!({"host": host});
        client.post::<_, Empty>(&format!("/internal/v1/hosts/{id}/report"), &report).await.unwrap();
        identity
    }

    /// An entry whose role has certificates of these issuers.
    pub async fn entry(&self, id: &str, issuers: Vec<Issuer>) -> Entry {
        let identity = self.joined(id).await;
        self.run(identity, issuers)
    }

    pub fn run(&self, identity: Identity, issuers: Vec<Issuer>) -> Entry {
        let id = identity.host().unwrap();
        let config = Config {
            issuers,
            control: vec![self.fleet.url.clone()],
            failures_before_next: 2,
            call_timeout_s: 5,
            order_timeout_s: 60,
            ports: Ports { dns: self.edge.dns.port(), http: self.edge.http, tls: self.edge.tls },
        };
        let secret = EntrySecret::load(&self.fleet.state.path().join("entries.key")).unwrap();
        let (alive, shutdown) = watch::channel(false);
        let state_dir = self.fleet.state.path().to_owned();
        let replica = ReplicaConfig {
            control: vec![self.fleet.url.clone()],
            tls: identity.clone(),
            file: state_dir.join(format!("replica-{id}.json")),
        };
        let (clock, lag) = (self.travel.clock(), self.lag);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(async move {
            let (view, _following) = follow(replica);
            let view = behind(view, lag);
            let common = Common { state_dir, identity, view, secret: watch::channel(secret).1, shutdown };
            if let Err(error) = mashines_acme::run_with(config, common, clock).await {
                eprintln!("the role ended: {error:#}");
            }
        });
        Entry { runtime: Some(runtime), _alive: alive }
    }

    /// A certificate, once it is as wanted.
    pub async fn certificate(
        &self,
        name: &str,
        what: &str,
        fits: impl Fn(&Certificate) -> bool,
    ) -> Certificate {
        let name: DomainName = name.parse().unwrap();
        let mut view = self.view.clone();
        let wanted = |view: &Arc<View>| view.certificates.get(&name).is_some_and(|c| fits(c));
        let found = tokio::time::timeout(PATIENCE, view.wait_for(wanted)).await;
        match found {
            Ok(view) => (*view.unwrap().certificates[&name]).clone(),
            Err(_) => {
                panic!("{name} not {what} within {PATIENCE:?}: {:#?}", self.view().certificates.get(&name))
            }
        }
    }

    pub async fn issued(&self, name: &str) -> Certificate {
        self.certificate(name, "issued", |c| c.chain_pem.is_some() && c.lease.is_none()).await
    }

    pub async fn add(&self, body: Value) -> api::Certificate {
        self.fleet.post(&format!("{CERTIFICATES}/acme"), body).await.unwrap()
    }

    pub async fn shown(&self, name: &str) -> api::Certificate {
        self.fleet.client.get(&format!("{CERTIFICATES}/{name}")).await.unwrap()
    }

    pub async fn check(&self, name: &str) -> api::Certificate {
        self.fleet.post(&format!("{CERTIFICATES}/{name}/check"), json!({})).await.unwrap()
    }

    /// The private key of a certificate, as only control and entries can open it.
    pub fn key(&self, certificate: &Certificate) -> String {
        let secret = EntrySecret::load(&self.fleet.state.path().join("entries.key")).unwrap().unwrap();
        let key = mashines_fleet::key::Key::Certificate(certificate.id.clone());
        String::from_utf8(secret.open(&key, certificate.key.as_ref().unwrap()).unwrap()).unwrap()
    }
}

/// An entry's role, in a runtime of its own, so that it can be killed in the middle of anything.
pub struct Entry {
    runtime: Option<Runtime>,
    _alive: watch::Sender<bool>,
}

impl Entry {
    /// As kill -9 does.
    pub fn kill(self) {}
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn log() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned());
    let filter: tracing_subscriber::EnvFilter = filter.parse().unwrap();
    let _set = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
