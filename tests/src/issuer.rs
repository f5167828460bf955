//! A real issuer of certificates on the test's internet: Debian's pebble, which looks for itself whether a name is whose it is asked for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::{ENTRY_IPV4, Place, Topology};
use crate::run::{run, wait_for};

/// Where it listens, in the client's place.
const ADDRESS: &str = "198.51.100.2";

/// Pebble, ended with this value.
pub struct Issuer {
    process: Child,
    topology: Topology,
    directory: PathBuf,
}

impl Issuer {
    /// Starts one that resolves names by the fleet's own name server.
    pub fn start(topology: &Topology, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let mut certificate = topology.command(Place::Client, "openssl");
        certificate.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ]);
        certificate.args(["-subj", "/CN=issuer", "-addext", &format!("subjectAltName=IP:{ADDRESS}")]);
        // What rustls takes for a server's certificate is no CA.
        certificate.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        run(certificate.args(["-keyout", &path("key.pem"), "-out", &path("cert.pem")]))?;
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("{ADDRESS}:14000"), "managementListenAddress": "127.0.0.1:15000",
            "certificate": path("cert.pem"), "privateKey": path("key.pem"), "httpPort": 80, "tlsPort": 443,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        std::fs::write(path("config.json"), config.to_string())?;
        let log = File::create(path("log"))?;
        let mut pebble = topology.command(Place::Client, "pebble");
        pebble.args(["-config", &path("config.json"), "-dnsserver", &format!("{ENTRY_IPV4}:53")]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = pebble.spawn().context("cannot start pebble")?;
        Ok(Self { process, topology: topology.clone(), directory: directory.to_owned() })
    }

    /// What an entry's configuration says of it.
    pub fn section(&self) -> String {
        format!(
            "[acme]\nissuers = [{{ name = \"pebble\", directory = \"https://{ADDRESS}:14000/dir\", ca_file = \"{}\" }}]\n",
            self.directory.join("cert.pem").display()
        )
    }

    /// The file of the root that its certificates are from: a new one at each start.
    pub fn root(&self) -> Result<PathBuf> {
        let file = self.directory.join("root.pem");
        wait_for("the issuer", Duration::from_secs(30), Duration::from_millis(300), || {
            let mut curl = self.topology.command(Place::Client, "curl");
            curl.args(["--silent", "--fail", "--insecure", "-o"]).arg(&file);
            run(curl.arg("https://127.0.0.1:15000/roots/0")).map(drop)
        })?;
        Ok(file)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
