//! The gateway's key and its certificate: asked of control, renewed when two thirds of its life are over, kept on disk so that
//! a gateway that starts while control is down still enters machines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use russh::keys::{Certificate, PrivateKey};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::control::Control;
use crate::keys::{certificate_of, load_or_create, write_private};

/// Longest pause between two looks at the clock, so that a clock that jumped is noticed.
const LOOK: Duration = Duration::from_secs(600);

/// First and longest pause after a refusal.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// There is no certificate to enter machines with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this gateway has no valid certificate for machines: control has not answered since the last one ran out; try again soon"
)]
pub struct NoCertificate;

/// Key and certificate.
#[derive(Debug)]
pub struct Credentials {
    key: Arc<PrivateKey>,
    certificate: watch::Sender<Option<Certificate>>,
    file: PathBuf,
}

impl Credentials {
    /// Those kept in `directory`; a key is made where there is none. A certificate that is unreadable or of another key is as none.
    pub fn load(directory: &Path) -> anyhow::Result<Arc<Self>> {
        let key = load_or_create(&directory.join("machines_key"))?;
        let file = directory.join("machines_key-cert.pub");
        let kept = std::fs::read_to_string(&file).ok();
        let certificate = kept.and_then(|text| certificate_of(&key, &text).ok());
        Ok(Arc::new(Self { key: Arc::new(key), certificate: watch::Sender::new(certificate), file }))
    }

    /// What to authenticate with at `now`.
    pub fn usable(&self, now: SystemTime) -> Result<(Arc<PrivateKey>, Certificate), NoCertificate> {
        let certificate = self.certificate.borrow().clone().ok_or(NoCertificate)?;
        let begun = certificate.valid_after_time().is_none_or(|after| after <= now);
        let ended = certificate.valid_before_time().is_some_and(|before| before <= now);
        if begun && !ended { Ok((Arc::clone(&self.key), certificate)) } else { Err(NoCertificate) }
    }

    /// Waits, up to `patience`, for a certificate: the first one is on its way when the gateway has just started.
    pub async fn wait(&self, patience: Duration) -> Result<(Arc<PrivateKey>, Certificate), NoCertificate> {
        let mut changes = self.certificate.subscribe();
        let come =
            async { while self.usable(SystemTime::now()).is_err() && changes.changed().await.is_ok() {} };
        let _late = tokio::time::timeout(patience, come).await;
        self.usable(SystemTime::now())
    }

    /// Renews for ever.
    pub async fn keep_fresh(self: Arc<Self>, control: Control) {
        let mut pause = RETRY.0;
        loop {
            let left = self.certificate.borrow().as_ref().map(|c| until_renewal(c, SystemTime::now()));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                sleep(left.min(LOOK)).await;
                continue;
            }
            match self.renew(&control).await {
                Ok(()) => pause = RETRY.0,
                Err(error) => {
                    warn!("no new certificate for machines, trying again in {pause:?}: {error:#}");
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn renew(&self, control: &Control) -> anyhow::Result<()> {
        let public = self.key.public_key().to_openssh().context("encoding the gateway's public key")?;
        let text = control.certify(&public).await?;
        let certificate = certificate_of(&self.key, &text).context("the certificate that control sent")?;
        anyhow::ensure!(
            !until_renewal(&certificate, SystemTime::now()).is_zero(),
            "control sent a certificate that is as good as over (valid before {}): do the clocks agree?",
            certificate.valid_before(),
        );
        if let Err(error) = write_private(&self.file, text.as_bytes()) {
            warn!(%error, file = %self.file.display(), "the certificate is used, but could not be kept on disk");
        }
        info!(valid_before = certificate.valid_before(), "new certificate for machines");
        self.certificate.send_replace(Some(certificate));
        Ok(())
    }
}

/// How long until two thirds of the certificate's life are over.
fn until_renewal(certificate: &Certificate, now: SystemTime) -> Duration {
    let Some(before) = certificate.valid_before_time() else { return LOOK };
    let life = Duration::from_secs(certificate.valid_before().saturating_sub(certificate.valid_after()));
    let renewal = before.checked_sub(life / 3).unwrap_or(SystemTime::UNIX_EPOCH);
    renewal.duration_since(now).unwrap_or(Duration::ZERO)
}
