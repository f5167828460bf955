//! `init`, `token` and `join`: how a fleet begins and grows.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mashines_control::{Founded, Founding};
use mashines_fleet::daemon::Common;
use mashines_fleet::id::{AccountId, HostId};
use mashines_fleet::join::{JoinError, join as join_fleet};
use mashines_fleet::pki::Identity;
use mashines_fleet::replica::{ReplicaConfig, follow};
use netd::config::Underlay;
use tokio::sync::watch;

use crate::config::{Config, Role, own_url};

/// How long control may take to open its listener when this box joins its own fleet.
const OWN_CONTROL_PATIENCE: Duration = Duration::from_secs(10);

/// Founds the fleet that the configuration describes. A box with more roles than control joins it at once.
pub async fn init(config: &Config, account: AccountId, ssh_keys: Vec<String>) -> Result<Founded> {
    let control = config.control.as_ref().filter(|_| config.roles.contains(&Role::Control));
    let Some(control) = control else {
        bail!(
            "`mashinesd init` founds a fleet on the box that runs control: `roles` lacks it, or there is no [control]"
        );
    };
    private_dir(&config.state_dir)?;
    let founding = Founding { fleet: config.founding()?, account, ssh_keys };
    let founded = mashines_control::init(control, &config.state_dir, founding).await?;
    private_dir(&config.identity_dir())?;
    founded.identity.save(&config.control_identity_dir())?;
    // Where people look for it: `mashines login --ca`.
    write(&config.identity_dir().join("ca.pem"), founded.identity.ca_pem())?;
    if config.roles.iter().any(|role| *role != Role::Control) {
        join_own(config, control, &founded.identity)
            .await
            .context("join this box to the fleet that it founded")?;
    }
    Ok(founded)
}

/// A token for one box to join with.
pub async fn join_token(config: &Config, host: Option<HostId>) -> Result<String> {
    let Some(control) = &config.control else {
        bail!("tokens are made on the box that runs control: this configuration has no [control]");
    };
    Ok(mashines_control::join_token(control, &config.state_dir, host).await?)
}

/// Joins the fleet whose control is at `url`.
pub async fn join(config: &Config, url: &str, token: &str) -> Result<()> {
    let dir = config.identity_dir();
    if dir.join("host.key").exists() {
        bail!(
            "{} holds a certificate already: this box has joined. Remove the folder to join anew",
            dir.display()
        );
    }
    private_dir(&config.state_dir)?;
    let identity = join_fleet(url, token, &config.id).await?;
    save_member(config, &identity)?;
    write(&config.joined_file(), &format!("{url}\n"))
}

/// The certificate, and the WireGuard key: made now, so that the roles' processes never race to make it.
fn save_member(config: &Config, identity: &Identity) -> Result<()> {
    identity.save(&config.identity_dir())?;
    let netd = config.netd(None)?;
    if netd.underlay == Underlay::Wireguard {
        netd::wireguard_public_key(&netd).context("make the WireGuard key of this box")?;
    }
    Ok(())
}

/// Runs control for as long as this box needs to join it.
async fn join_own(config: &Config, control: &mashines_control::Config, identity: &Identity) -> Result<()> {
    let token = mashines_control::join_token(control, &config.state_dir, Some(config.id.clone())).await?;
    let url = own_url(control.listen);
    let replica = ReplicaConfig {
        control: vec![url.clone()],
        tls: identity.clone(),
        file: config.state_dir.join("replica-control.json"),
    };
    let (stop, shutdown) = watch::channel(false);
    let (view, following) = follow(replica);
    let (_nobody, secret) = watch::channel(None);
    let common =
        Common { state_dir: config.state_dir.clone(), identity: identity.clone(), view, secret, shutdown };
    let serving = tokio::spawn(mashines_control::run(control.clone(), common));
    let joined = tokio::time::timeout(OWN_CONTROL_PATIENCE, async {
        loop {
            match join_fleet(&url, &token, &config.id).await {
                // The listener may not be open yet.
                Err(JoinError::Call { .. }) if !serving.is_finished() => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    });
    let joined = joined.await;
    stop.send_replace(true);
    following.abort();
    match (joined, serving.await) {
        (Ok(Ok(identity)), _) => save_member(config, &identity),
        (_, Ok(Err(e))) => Err(e.context("control did not serve")),
        (Ok(Err(e)), _) => Err(e.into()),
        (Err(_), _) => bail!("control at {url} did not let this box join within {OWN_CONTROL_PATIENCE:?}"),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// A directory that others cannot look into: it holds keys.
fn private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("make the directory {}", path.display()))
}
