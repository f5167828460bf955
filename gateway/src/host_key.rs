//! What the gateway proves its name with: a key of its own, and the certificate that the fleet's SSH CA gives it.
//!
//! With the certificate, people who trust the CA (`mashines known-hosts`) are asked no question. It is kept on disk, and
//! asked for anew at each start and once a day, so that it never comes near its end while control can be reached at all.
//!
//! Where an address is shared among accounts' machines, whoever connects expects a machine's name: there is a certificate for each such
//! address, with the names of the machines there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use russh::keys::{Certificate, PrivateKey};
use russh::server;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::control::Control;
use crate::directory::Directory;
use crate::keys::{certificate_of, load_or_create, write_private};
use crate::ssh::server_config;

/// Between two certificates.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// First and longest pause after a refusal.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Between a change of the names at an address and the certificate for it: several come at once.
const SETTLE: Duration = Duration::from_millis(100);

/// The key, and where its certificate is kept.
pub struct HostKey {
    key: PrivateKey,
    file: PathBuf,
    settings: watch::Sender<Arc<Settings>>,
}

/// russh's settings, by the address that a client connected to: the key is the same, the names in its certificate are not.
#[derive(Debug, Clone)]
pub struct Settings {
    usual: Arc<server::Config>,
    at: HashMap<Ipv4Addr, Arc<server::Config>>,
}

impl Settings {
    /// Those for a client at `address`.
    pub fn at(&self, address: IpAddr) -> &Arc<server::Config> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.at.get(&address).unwrap_or(&self.usual),
            IpAddr::V6(_) => &self.usual,
        }
    }
}

impl HostKey {
    /// The key at `path`, made where there is none. A certificate that is unreadable or of another key is as none.
    ///
    /// # Errors
    /// The key's file cannot be read or written.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let key = load_or_create(path)?;
        let file = certificate_file(path, None);
        let kept = std::fs::read_to_string(&file).ok().and_then(|text| host_certificate_of(&text, &key).ok());
        let usual = server_config(key.clone(), kept);
        let settings = watch::Sender::new(Arc::new(Settings { usual, at: HashMap::new() }));
        Ok(Self { key, file: path.to_owned(), settings })
    }

    /// russh's settings, as they are now and as they come.
    pub fn settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    /// Has the key certified, for ever: for the entry once a day, and for each of its shared addresses as often as its machines change.
    pub async fn keep_certified(self, control: Control, mut directory: watch::Receiver<Arc<Directory>>) {
        let mut certified: HashMap<Option<Ipv4Addr>, (Vec<String>, Instant)> = HashMap::new();
        let mut pause = RETRY.0;
        loop {
            let now = Arc::clone(&directory.borrow_and_update());
            let mut failed = None;
            for (address, names) in [(None, Vec::new())].into_iter().chain(now.names_at_entries()) {
                let known =
                    certified.get(&address).is_some_and(|(known, at)| *known == names && at.elapsed() < DAY);
                if known {
                    continue;
                }
                match self.certify(&control, address).await {
                    Ok(()) => {
                        certified.insert(address, (names, Instant::now()));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            let rest = match failed {
                None => {
                    pause = RETRY.0;
                    DAY / 8
                }
                Some(error) => {
                    warn!("no certificate for the gateway's host key, trying again in {pause:?}: {error:#}");
                    pause = (pause * 2).min(RETRY.1);
                    pause
                }
            };
            // What changes is not worth a certificate each time; and a closed stream of changes changes nothing.
            match timeout(rest, directory.changed()).await {
                Ok(Ok(())) => sleep(SETTLE).await,
                Ok(Err(_over)) => sleep(rest).await,
                Err(_quiet) => (),
            }
        }
    }

    async fn certify(&self, control: &Control, address: Option<Ipv4Addr>) -> anyhow::Result<()> {
        let public = self.key.public_key().to_openssh().context("encoding the gateway's host key")?;
        let text = control.certify_host(&public, address).await?;
        let certificate =
            host_certificate_of(&text, &self.key).context("the host certificate that control sent")?;
        let file = certificate_file(&self.file, address);
        if let Err(error) = write_private(&file, text.as_bytes()) {
            warn!(%error, file = %file.display(), "the host certificate is used, but could not be kept on disk");
        }
        info!(?address, names = ?certificate.valid_principals(), "new certificate for the gateway's host key");
        let config = server_config(self.key.clone(), Some(certificate));
        self.settings.send_modify(|settings| {
            let settings = Arc::make_mut(settings);
            match address {
                None => settings.usual = config,
                Some(address) => {
                    settings.at.insert(address, config);
                }
            }
        });
        Ok(())
    }
}

fn certificate_file(key: &Path, address: Option<Ipv4Addr>) -> PathBuf {
    let mut file = key.as_os_str().to_owned();
    if let Some(address) = address {
        file.push(format!("-{address}"));
    }
    file.push("-cert.pub");
    PathBuf::from(file)
}

fn host_certificate_of(text: &str, key: &PrivateKey) -> anyhow::Result<Certificate> {
    let certificate = certificate_of(key, text)?;
    anyhow::ensure!(certificate.cert_type().is_host(), "it is no host's");
    Ok(certificate)
}
