//! A fleet in one process: the real control on a real listener, and hosts that are in memory behind real mTLS.

// Each test program uses a part of it, and a test that cannot go on panics.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod fake_host;
pub mod names;
pub mod people;

use std::net::SocketAddr;
use std::time::Duration;

use fake_host::{FakeHost, Registry};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, StatusCode};
use mashines_control::{Config, Founded, Founding};
use mashines_fleet::api;
use mashines_fleet::daemon::Common;
use mashines_fleet::id::HostId;
use mashines_fleet::pki::{Identity, PeerName, anonymous_client_config};
use mashines_fleet::record::{FleetConfig, HostRole};
use mashines_fleet::rpc::{Client, RpcError};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub struct Fleet {
    pub url: String,
    pub client: Client,
    pub identity: Identity,
    pub token: String,
    pub registry: Registry,
    pub hosts: Vec<FakeHost>,
    pub state: tempfile::TempDir,
    config: Config,
    address: SocketAddr,
    control: Option<Running>,
}

/// Control in a runtime of its own, so that all its tasks can be killed at once.
struct Running {
    runtime: Option<Runtime>,
    _alive: watch::Sender<bool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn founding() -> Founding {
    Founding {
        fleet: FleetConfig {
            domain: "mashine.test".to_owned(),
            prefix: "2001:db8:1::/64".parse().unwrap(),
            name_servers: vec![],
            ssh_ports: (2200, 2300),
            ssh_ca: None,
            sign_up: mashines_fleet::record::SignUp::default(),
            zones: vec![],
            caa_issuers: vec![],
        },
        account: "ann".parse().unwrap(),
        ssh_keys: vec![],
    }
}

impl Fleet {
    /// Control with these hosts, all of which reported.
    pub async fn up(hosts: &[&str]) -> Self {
        Self::up_with(hosts, |_| {}).await
    }

    /// The same with other settings.
    pub async fn up_with(hosts: &[&str], set: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        set(&mut config);
        Self::up_as(hosts, config, founding()).await
    }

    /// The same with other settings of another fleet.
    pub async fn up_as(hosts: &[&str], config: Config, founding: Founding) -> Self {
        let state = tempfile::tempdir().unwrap();
        let founded: Founded = mashines_control::init(&config, state.path(), founding).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("https://{address}");
        let tls = anonymous_client_config(founded.identity.ca_pem()).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {}", founded.token)).unwrap();
        let client = Client::new(tls, &url, PeerName::control().server_name().unwrap())
            .with_header(AUTHORIZATION, bearer);
        let mut fleet = Self {
            url,
            client,
            identity: founded.identity,
            token: founded.token,
            registry: Registry::default(),
            hosts: vec![],
            state,
            config,
            address,
            control: None,
        };
        fleet.control = Some(fleet.spawn(listener));
        for host in hosts {
            fleet.join(host, vec![HostRole::Host]).await;
        }
        fleet
    }

    fn spawn(&self, listener: TcpListener) -> Running {
        let (alive, shutdown) = watch::channel(false);
        let common = Common {
            state_dir: self.state.path().to_owned(),
            identity: self.identity.clone(),
            view: watch::channel(Default::default()).1,
            secret: watch::channel(None).1,
            shutdown,
        };
        let config = self.config.clone();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            mashines_control::run_with(config, common, listener).await.unwrap();
        });
        Running { runtime: Some(runtime), _alive: alive }
    }

    /// Ends control in the middle of whatever it does, as kill -9 would.
    pub fn stop_control(&mut self) {
        drop(self.control.take());
    }

    /// The same, and starts it anew.
    pub async fn restart_control(&mut self) {
        drop(self.control.take());
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.control = Some(self.spawn(listener));
    }

    pub async fn join_token(&self, host: Option<&str>) -> String {
        let host = host.map(|host| host.parse::<HostId>().unwrap());
        mashines_control::join_token(&self.config, self.state.path(), host).await.unwrap()
    }

    pub async fn join(&mut self, id: &str, roles: Vec<HostRole>) -> Identity {
        let token = self.join_token(None).await;
        let identity = mashines_fleet::join::join(&self.url, &token, &id.parse().unwrap()).await.unwrap();
        let host = FakeHost::start(identity.clone(), &self.url, roles, self.registry.clone()).await;
        self.hosts.push(host);
        identity
    }

    pub fn host(&self, id: &str) -> &FakeHost {
        self.hosts.iter().find(|host| host.id.as_str() == id).unwrap()
    }

    pub async fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: Value) -> Result<T, RpcError> {
        self.client.post(path, &body).await
    }

    /// A raw body; the status and the JSON that came back.
    pub async fn raw(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        let body = bytes::Bytes::copy_from_slice(body.as_bytes());
        match self.client.request(method, path, &[], body).await {
            Ok(answer) => (answer.status(), String::from_utf8_lossy(answer.body()).into_owned()),
            Err(RpcError::Refused { status, message, .. }) => (status, message),
            Err(other) => panic!("{path}: {other}"),
        }
    }

    pub async fn launch(&self, name: &str) -> api::Machine {
        let body = serde_json::json!({"name": name, "config": {"image": "container-os", "guest": {"memory_mb": 256}}});
        self.post(MACHINES, body).await.unwrap()
    }

    pub async fn machine(&self, name: &str) -> api::Machine {
        self.client.get(&format!("/v1/machines/{name}")).await.unwrap()
    }

    pub async fn wait(&self, name: &str, state: &str) -> api::Machine {
        let path = format!("{MACHINES}/{name}/wait?state={state}&timeout=20");
        self.client.get::<api::Done>(&path).await.unwrap();
        self.machine(name).await
    }

    pub async fn started(&self, name: &str) -> api::Machine {
        self.launch(name).await;
        self.wait(name, "started").await
    }

    pub async fn migrate(&self, name: &str, to: Option<&str>) -> Result<api::Migration, RpcError> {
        let body = serde_json::json!({"host": to});
        self.post(&format!("{MACHINES}/{name}/migrate"), body).await
    }

    /// Waits until a migration is over.
    pub async fn over(&self, id: &str) -> api::Migration {
        eventually("the migration is over", || async {
            let migration: api::Migration = self.client.get(&format!("/v1/migrations/{id}")).await.ok()?;
            migration.done.then_some(migration)
        })
        .await
    }
}

pub const MACHINES: &str = "/v1/apps/default/machines";

/// Looks until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let until = tokio::time::Instant::now() + Duration::from_secs(40);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "not within 40 s: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
