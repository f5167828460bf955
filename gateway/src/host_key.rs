//! What the gateway proves its name with: a key of its own, and the certificate that the fleet's SSH CA gives it.
//!
//! With the certificate, people who trust the CA (`mashines known-hosts`) are asked no question. It is kept on disk, and
//! asked for anew at each start and once a day, so that it never comes near its end while control can be reached at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use russh::keys::{Certificate, PrivateKey};
use russh::server;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::control::Control;
use crate::keys::{certificate_of, load_or_create, write_private};
use crate::ssh::server_config;

/// Between two certificates.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// First and longest pause after a refusal.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The key, and where its certificate is kept.
pub struct HostKey {
    key: PrivateKey,
    file: PathBuf,
    settings: watch::Sender<Arc<server::Config>>,
}

impl HostKey {
    /// The key at `path`, made where there is none. A certificate that is unreadable or of another key is as none.
    ///
    /// # Errors
    /// The key's file cannot be read or written.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let key = load_or_create(path)?;
        let mut file = path.as_os_str().to_owned();
        file.push("-cert.pub");
        let file = PathBuf::from(file);
        let kept = std::fs::read_to_string(&file).ok().and_then(|text| host_certificate_of(&text, &key).ok());
        let settings = watch::Sender::new(server_config(key.clone(), kept));
        Ok(Self { key, file, settings })
    }

    /// russh's settings, as they are now and as they come.
    pub fn settings(&self) -> watch::Receiver<Arc<server::Config>> {
        self.settings.subscribe()
    }

    /// Has the key certified, for ever.
    pub async fn keep_certified(self, control: Control) {
        let mut pause = RETRY.0;
        loop {
            match self.certify(&control).await {
                Ok(()) => {
                    pause = RETRY.0;
                    sleep(DAY).await;
                }
                Err(error) => {
                    warn!("no certificate for the gateway's host key, trying again in {pause:?}: {error:#}");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn certify(&self, control: &Control) -> anyhow::Result<()> {
        let public = self.key.public_key().to_openssh().context("encoding the gateway's host key")?;
        let text = control.certify_host(&public).await?;
        let certificate =
            host_certificate_of(&text, &self.key).context("the host certificate that control sent")?;
        if let Err(error) = write_private(&self.file, text.as_bytes()) {
            warn!(%error, file = %self.file.display(), "the host certificate is used, but could not be kept on disk");
        }
        info!(names = ?certificate.valid_principals(), "new certificate for the gateway's host key");
        self.settings.send_replace(server_config(self.key.clone(), Some(certificate)));
        Ok(())
    }
}

fn host_certificate_of(text: &str, key: &PrivateKey) -> anyhow::Result<Certificate> {
    let certificate = certificate_of(key, text)?;
    anyhow::ensure!(certificate.cert_type().is_host(), "it is no host's");
    Ok(certificate)
}
