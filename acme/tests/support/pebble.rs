//! Debian's pebble: an ACME server that is strict on purpose. It refuses good nonces and looks for itself.

use std::path::PathBuf;
use std::process::Stdio;

use mashines_acme::config::Issuer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as Signer, KeyPair};
use serde_json::json;
use tokio::process::{Child, Command};

use super::{LOCAL, World, free_port};

pub struct Pebble {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

/// How it is started.
#[derive(Default)]
pub struct With {
    /// Percent of good nonces that it refuses.
    pub bad_nonces: u32,
    /// Where it looks for tls-alpn-01, when not at the edge.
    pub tls: Option<u16>,
    /// It wants an external account: `(kid, base64url key)`.
    pub eab: Option<(&'static str, &'static str)>,
}

impl Pebble {
    pub async fn start(world: &World, with: With) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, management) = (free_port(), free_port());
        let path = |name: &str| directory.path().join(name);
        let (ca, chain, key) = server_certificate();
        std::fs::write(path("ca.pem"), ca).unwrap();
        std::fs::write(path("cert.pem"), chain).unwrap();
        std::fs::write(path("key.pem"), key).unwrap();
        let keys: serde_json::Map<_, _> = with.eab.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let config = json!({"pebble": {
            "listenAddress": format!("{LOCAL}:{port}"),
            "managementListenAddress": format!("{LOCAL}:{management}"),
            "certificate": path("cert.pem"),
            "privateKey": path("key.pem"),
            "httpPort": world.edge.http,
            "tlsPort": with.tls.unwrap_or(world.edge.tls),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": with.eab.is_some(),
            "externalAccountMACKeys": keys,
        }});
        std::fs::write(path("config.json"), config.to_string()).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new("pebble")
            .arg("-config")
            .arg(path("config.json"))
            .args(["-dnsserver", &world.names.address.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_VA_ALWAYS_VALID", "0")
            .env("PEBBLE_WFE_NONCEREJECT", with.bad_nonces.to_string())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .expect("Debian's package pebble");
        let pebble = Self { child, directory, port };
        super::fleet::eventually("pebble listens", || async {
            tokio::net::TcpStream::connect((LOCAL, port)).await.ok()
        })
        .await;
        pebble
    }

    pub fn issuer(&self, name: &str) -> Issuer {
        Issuer {
            name: name.parse().unwrap(),
            directory: format!("https://{LOCAL}:{}/dir", self.port),
            contact: vec!["mailto:hostmaster@mashine.test".to_owned()],
            profile: None,
            eab: None,
            ca_file: Some(self.directory.path().join("ca.pem")),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub async fn stop(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A CA, and a certificate of it for the loopback: `(ca, certificate, key)`.
pub fn server_certificate() -> (String, String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca.self_signed(&ca_key).unwrap();
    let signer = Signer::from_ca_cert_pem(&ca.pem(), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![LOCAL.to_string(), "localhost".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &signer).unwrap();
    (ca.pem(), leaf.pem(), key.serialize_pem())
}
