//! Founding a fleet: CA, SSH CA, the fleet's configuration, the first account; and tokens for those who join.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mashines_fleet::api::DEFAULT_APP;
use mashines_fleet::id::{AccountId, HostId};
use mashines_fleet::join::JoinToken;
use mashines_fleet::key::Key;
use mashines_fleet::pki::{Ca, Identity, PeerName, fingerprint};
use mashines_fleet::record::{Account, FleetConfig};
use mashines_fleet::store::{SqliteStore, Store};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::addresses::random_ula;
use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::records::{Private, Records};
use crate::ssh_ca::{SshCa, normal_key};
use crate::time::now;

/// How long a join token is good, milliseconds.
const JOIN_LIFE_MS: u64 = 3600 * 1000;

/// What is to be founded.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Domain, prefix, name servers, ports. `ssh_ca` is filled in.
    pub fleet: FleetConfig,
    /// The first account, an administrator's.
    pub account: AccountId,
    /// Its public keys.
    pub ssh_keys: Vec<String>,
}

/// What was founded. The token is shown once and not kept.
#[derive(Debug, Clone)]
pub struct Founded {
    /// Control's certificate, to be saved where the daemon reads it.
    pub identity: Identity,
    /// The first account's API token.
    pub token: String,
    /// The first account.
    pub account: AccountId,
}

/// A CA or SSH CA in the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct Secret {
    pub public: String,
    pub secret: String,
}

/// A person's token in the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub account: AccountId,
    pub created_at: u64,
}

/// That a signed token is refused.
#[derive(Serialize, Deserialize)]
pub(crate) struct RevokedRecord {
    pub at: u64,
    /// No token that could carry the nonce lives longer.
    pub until: u64,
}

/// A join token in the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRecord {
    pub expires_at: u64,
    /// The only name it is good for.
    pub host: Option<HostId>,
}

/// The hash under which a secret of ours is kept. It has 256 random bits, so a plain hash is enough.
pub(crate) fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

pub(crate) fn new_token() -> String {
    format!("msh_{}", hex::encode(rand::random::<[u8; 32]>()))
}

async fn open(config: &Config, state_dir: &Path) -> Result<Records> {
    let path = config.store_path(state_dir);
    if let Some(directory) = path.parent() {
        let made = std::fs::create_dir_all(directory);
        made.map_err(|error| Failure::internal(format!("cannot make {}: {error}", directory.display())))?;
    }
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path)?);
    Records::open(store).await
}

/// Makes a new fleet in an empty store.
///
/// # Errors
/// [`Kind::Conflict`](crate::Kind::Conflict) when the store holds a fleet already; a key that is none; the disk's.
pub async fn init(config: &Config, state_dir: &Path, founding: Founding) -> Result<Founded> {
    let records = open(config, state_dir).await?;
    if records.view().config.is_some() {
        let path = config.store_path(state_dir);
        return Err(Failure::conflict(format!(
            "{} holds a fleet already: nothing was changed",
            path.display()
        )));
    }
    let pki = |error: mashines_fleet::pki::PkiError| Failure::internal(error.to_string());
    let ca = Ca::create(&founding.fleet.domain).map_err(pki)?;
    let ssh_ca = SshCa::create();
    let keys = founding.ssh_keys.iter().map(|key| normal_key(key)).collect::<Result<Vec<_>>>()?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.push(format!("api.{}", founding.fleet.domain));
    names.extend(config.names.iter().cloned());
    let identity = ca.issue(&PeerName::control(), &names).map_err(pki)?;

    let token = new_token();
    let app = DEFAULT_APP.parse().map_err(|_| Failure::internal("the default app has no valid name"))?;
    let account = Account {
        id: founding.account.clone(),
        ssh_keys: keys,
        private_prefix: random_ula(),
        admin: true,
        members: BTreeMap::new(),
        ssh_cas: Vec::new(),
    };
    let fleet = FleetConfig { ssh_ca: Some(ssh_ca.public()?), ..founding.fleet };
    let mut edit = records.edit();
    let none: Option<FleetConfig> = edit.get(&Key::Config).await?;
    if none.is_some() {
        return Err(Failure::conflict("another init was faster: nothing was changed"));
    }
    let secret = Secret { public: ca.certificate_pem().to_owned(), secret: ca.key_pem().to_owned() };
    edit.put(&fleet)?.put(&account)?.put_private(Private::Ca, &secret)?;
    let secret = Secret { public: ssh_ca.public()?, secret: ssh_ca.secret()? };
    edit.put_private(Private::SshCa, &secret)?;
    let record = TokenRecord { account: account.id.clone(), created_at: now() };
    edit.put_private(Private::Token(&hash(&token)), &record)?;
    edit.put_private(Private::App(&account.id, &app), &now())?;
    edit.commit().await?;
    Ok(Founded { identity, token, account: account.id })
}

/// Makes a join token, good for one join within an hour; `host` is the only name it is then good for.
/// It works on the store's file, beside a control that runs.
///
/// # Errors
/// The store holds no fleet.
pub async fn join_token(config: &Config, state_dir: &Path, host: Option<HostId>) -> Result<String> {
    let path = config.store_path(state_dir);
    if !path.exists() {
        return Err(Failure::not_found(format!(
            "{} is not there: `mashinesd init` makes it",
            path.display()
        )));
    }
    make_join_token(&open(config, state_dir).await?, host).await
}

pub(crate) async fn make_join_token(records: &Records, host: Option<HostId>) -> Result<String> {
    let ca: Secret = records
        .private(Private::Ca)
        .await?
        .ok_or_else(|| Failure::not_found("the store holds no fleet: `mashinesd init` makes one"))?;
    let pin = fingerprint(&ca.public).map_err(|error| Failure::internal(error.to_string()))?;
    let token = JoinToken::random(pin);
    let record = JoinRecord { expires_at: now() + JOIN_LIFE_MS, host };
    let mut edit = records.edit();
    edit.put_private(Private::Join(&token.hash()), &record)?;
    edit.commit().await?;
    Ok(token.to_string())
}
