//! What opens the secrets among the facts: an entry asks control for it once and keeps it, so that it starts without control.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mashines_fleet::daemon::Common;
use mashines_fleet::host_api::{ENTRY_SECRET, EntrySecretAnswer};
use mashines_fleet::rpc::Control;
use mashines_fleet::sealed::EntrySecret;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::run::Ended;

/// Between two questions: control may be down, or not know this box for an entry yet.
const EVERY: Duration = Duration::from_secs(1);

/// How long control may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The secret from its file at once, else as soon as control gave it.
pub fn follow(
    config: &Config,
    common: &Common,
    tasks: &mut JoinSet<Ended>,
) -> Result<watch::Receiver<Option<EntrySecret>>> {
    let path = common.state_dir.join("entry.key");
    let kept = EntrySecret::load(&path).with_context(|| format!("the entries' secret {}", path.display()))?;
    let missing = kept.is_none();
    let (sender, receiver) = watch::channel(kept);
    let urls = config.control_urls()?;
    let common = common.clone();
    tasks.spawn(async move {
        let fetch = async {
            if missing {
                let secret = ask(&urls, &common).await?;
                secret
                    .save(&path)
                    .with_context(|| format!("write the entries' secret {}", path.display()))?;
                sender.send_replace(Some(secret));
            }
            common.stopped().await;
            Ok(())
        };
        let ended = tokio::select! {
            ended = fetch => ended,
            () = common.stopped() => Ok(()),
        };
        ("entry's secret", ended)
    });
    Ok(receiver)
}

/// Asks until somebody answers.
async fn ask(urls: &[String], common: &Common) -> Result<EntrySecret> {
    let control = Control::new(&common.identity, urls)?.with_timeout(TIMEOUT);
    let mut told = false;
    loop {
        match control.get(ENTRY_SECRET).await {
            Ok(EntrySecretAnswer { secret }) => {
                return EntrySecret::from_hex(&secret)
                    .context("control's secret for entries is not 64 hex digits");
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%error, "the entries' secret is not there yet: zones are unsigned and private keys closed until then");
            }
            Err(_) => {}
        }
        tokio::time::sleep(EVERY).await;
    }
}
