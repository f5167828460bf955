//! An edge in this process, with a certificate of a CA made here, and machines that are servers on the loopback.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use mashines_fleet::daemon::Common;
use mashines_fleet::key::Key;
use mashines_fleet::pki::{Ca, PeerName};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, Change, View};
use mashines_gateway::{Config, Doors};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::watch;

use super::clients::tool;
use super::{account, fleet_config, machine, put};

/// A CA that browsers would trust.
pub struct WebCa {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl WebCa {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Chain and key in PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, names[0].clone());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let now = std::time::SystemTime::now();
        params.not_before = (now - std::time::Duration::from_secs(86_400)).into();
        params.not_after = (now + std::time::Duration::from_secs(80 * 86_400)).into();
        params.crl_distribution_points =
            vec![CrlDistributionPoint { uris: vec!["http://crl.example/crl".to_owned()] }];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate's record, its key sealed.
    pub fn record(&self, secret: &EntrySecret, names: &[&str]) -> Change {
        let (chain, key) = self.issue(names);
        let id = Key::Certificate(names[0].parse().unwrap());
        let sealed = secret.seal(&id, key.as_bytes()).unwrap();
        put(
            &id.to_string(),
            json!({"id": names[0], "names": names, "source": "acme", "chain_pem": chain, "key": sealed, "created_at": 0}),
        )
    }
}

/// One edge and what it knows.
pub struct EdgeStage {
    pub directory: TempDir,
    pub ca: Arc<WebCa>,
    pub secret: EntrySecret,
    /// Public port 443.
    pub https: SocketAddr,
    /// Public port 80.
    pub http: SocketAddr,
    /// Public port 8443.
    pub other: SocketAddr,
    views: watch::Sender<Arc<View>>,
    records: Mutex<BTreeMap<String, Option<Value>>>,
    revision: Mutex<u64>,
    _secret: watch::Sender<Option<EntrySecret>>,
    shutdown: watch::Sender<bool>,
}

impl EdgeStage {
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::sharing(Arc::new(WebCa::new()), EntrySecret::random(), change).await
    }

    /// One of several entries of a fleet.
    pub async fn sharing(ca: Arc<WebCa>, secret: EntrySecret, change: impl FnOnce(&mut Config)) -> Self {
        Self::open(ca, secret, Ca::create("test").unwrap(), change).await
    }

    /// An edge whose control is `api`.
    pub async fn with_control(api: Router, change: impl FnOnce(&mut Config)) -> Self {
        let fleet = Ca::create("test").unwrap();
        let (url, _running) = super::serve_control(&fleet, api).await;
        let with_url = |config: &mut Config| {
            config.control.push(url);
            change(config);
        };
        Self::open(Arc::new(WebCa::new()), EntrySecret::random(), fleet, with_url).await
    }

    async fn open(ca: Arc<WebCa>, secret: EntrySecret, fleet: Ca, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config: Config = serde_json::from_value(json!({
            "ssh_listen": [], "tls_listen": ["127.0.0.1:0"], "http_listen": ["127.0.0.1:0"],
            "service_listen": [{"listen": "127.0.0.1:0", "port": 8443}],
        }))
        .unwrap();
        config.edge.limits.per_source = 100_000;
        config.edge.limits.per_source_per_second = 1_000_000;
        change(&mut config);
        let (views, view) = watch::channel(Arc::new(View::default()));
        let (shutdown, stop) = watch::channel(false);
        let (secrets, secret_seen) = watch::channel(Some(secret.clone()));
        let identity = fleet.issue(&PeerName::host(&"entry1".parse().unwrap()), &[]).unwrap();
        let state_dir = directory.path().to_owned();
        let common = Common { state_dir, identity, view, secret: secret_seen, shutdown: stop };
        let doors = Doors::open(&config, &common).await.unwrap();
        let https = doors.ssh_addresses().unwrap()[0];
        let web = doors.web_addresses().unwrap();
        std::fs::write(directory.path().join("ca.pem"), &ca.pem).unwrap();
        let wildcard = ca.record(&secret, &["*.mashine.dev", "mashine.dev"]);
        let stage = Self {
            directory,
            ca,
            secret,
            https,
            http: web[0],
            other: web[1],
            views,
            records: Mutex::default(),
            revision: Mutex::new(0),
            _secret: secrets,
            shutdown,
        };
        tokio::spawn(doors.serve(common));
        stage.publish(vec![fleet_config(), account("ann", &[]), account("bob", &[]), wildcard]).await;
        stage
    }

    /// Adds those records to what the edge knows, and waits until it acts on them: it follows its replica in a task of its own.
    pub async fn publish(&self, changes: Vec<Change>) {
        let marker = {
            let mut records = self.records.lock().unwrap();
            for change in changes {
                records.insert(change.key, change.value);
            }
            let mut revision = self.revision.lock().unwrap();
            *revision += 1;
            // A machine that is nowhere and stands still: its page says that this revision is known.
            let marker = format!("revision{revision}");
            let mut changes =
                vec![machine(*revision, &marker, "ann", "2001:db8::dead".parse().unwrap(), "stopped")];
            changes
                .extend(records.iter().map(|(key, value)| Change { key: key.clone(), value: value.clone() }));
            let mut view = View::default();
            assert_eq!(view.apply(&Batch { revision: *revision, changes }), []);
            self.views.send_replace(Arc::new(view));
            marker
        };
        let ask = format!("GET / HTTP/1.0\r\nHost: {marker}.mashine.dev\r\n\r\n");
        for _ in 0..1000 {
            let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            if !answer.contains(" 404 ") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the edge does not follow its replica");
    }

    /// A machine whose service is at that port of the loopback: HTTP at 443, 80 and 8443.
    pub async fn machine(&self, slug: &str, port: u16) {
        self.machine_with(slug, port, |_| ()).await;
    }

    /// The same, changed: the whole record.
    pub async fn machine_with(&self, slug: &str, port: u16, change: impl FnOnce(&mut Value)) {
        let number = slug.bytes().fold(7u64, |n, byte| (n * 31 + u64::from(byte)) & 0xffff_ffff);
        let mut record = machine(number, slug, "ann", Ipv6Addr::LOCALHOST, "started");
        let value = record.value.as_mut().unwrap();
        value["config"]["services"] = json!([{
            "internal_port": port,
            "ports": [{"port": 443, "handlers": ["tls", "http"]}, {"port": 80, "handlers": ["http"]},
                      {"port": 8443, "handlers": ["tls", "http"]}],
        }]);
        change(value);
        self.publish(vec![record]).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `curl` that finds every name here and trusts the CA.
    pub fn curl(&self, arguments: &[&str]) -> Command {
        let mut curl = tool("curl", "curl");
        curl.args([
            "-sS",
            "--max-time",
            "30",
            "--noproxy",
            "*",
            "--cacert",
            self.path("ca.pem").to_str().unwrap(),
        ]);
        for (public, at) in [(443, self.https), (80, self.http), (8443, self.other)] {
            curl.args(["--connect-to", &format!(":{public}:127.0.0.1:{}", at.port())]);
        }
        curl.args(arguments);
        curl
    }

    /// The daemon is told to end.
    pub fn stop(&self) {
        self.shutdown.send_replace(true);
    }

    /// TLS settings of a client that trusts the CA.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        client_config(&self.ca, alpn)
    }

    /// A TLS connection for that name.
    pub async fn tls(
        &self,
        name: &str,
        alpn: &[&[u8]],
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let stream = tokio::net::TcpStream::connect(self.https).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(self.client_config(alpn)).connect(name, stream).await.unwrap()
    }
}

pub fn client_config(ca: &WebCa, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A machine's HTTP server. Its port.
pub async fn serve(app: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}
