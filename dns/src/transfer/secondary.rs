//! The servers that may have copies, from the configuration.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::message::shown;
use crate::name::Name;
use crate::tsig::{Algorithm, Key};

/// One of `[[dns.secondaries]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondaryConfig {
    /// Its name, for logs.
    pub name: String,
    /// Where it is told of changes.
    pub address: SocketAddr,
    /// Where its questions come from; the same address when absent.
    #[serde(default)]
    pub from: Vec<IpAddr>,
    /// What it signs with. Without one its address alone lets it in.
    #[serde(default)]
    pub key: Option<KeyConfig>,
}

/// A key that is shared with a secondary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Its name, the same on both sides.
    pub name: String,
    /// `hmac-sha256` when absent, `hmac-sha384`, `hmac-sha512`.
    #[serde(default = "sha256")]
    pub algorithm: Algorithm,
    /// A file with the secret in base64, which nobody but its owner reads.
    pub secret_file: PathBuf,
}

fn sha256() -> Algorithm {
    Algorithm::Sha256
}

/// A server that may have copies.
#[derive(Debug, Clone)]
pub struct Secondary {
    /// For logs.
    pub name: String,
    /// Where it is told of changes.
    pub address: SocketAddr,
    from: Vec<IpAddr>,
    /// What it signs with.
    pub key: Option<Key>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Secondaries(Arc<[Secondary]>);

impl Secondaries {
    /// Reads their keys.
    ///
    /// # Errors
    /// A file that cannot be read, that others can read, or that holds no key; the error says what to do.
    pub fn load(configs: &[SecondaryConfig]) -> Result<Self> {
        let all: Result<Vec<Secondary>> = configs.iter().map(load).collect();
        Ok(Self(all?.into()))
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Secondary> {
        self.0.iter()
    }

    /// Whether a question from there is one of theirs.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|secondary| secondary.is_at(ip))
    }

    /// The key of that name.
    pub fn key(&self, name: &[u8]) -> Option<Key> {
        self.0.iter().filter_map(|secondary| secondary.key.as_ref()).find(|key| key.name == name).cloned()
    }

    /// Whether who asks from there, with this key or none, may have copies.
    pub fn may_have(&self, ip: IpAddr, key: Option<&[u8]>) -> bool {
        self.0.iter().filter(|secondary| secondary.is_at(ip)).any(|secondary| match &secondary.key {
            Some(needed) => key == Some(needed.name.as_slice()),
            None => true,
        })
    }
}

impl Secondary {
    fn is_at(&self, ip: IpAddr) -> bool {
        self.from.contains(&ip.to_canonical())
    }
}

fn load(config: &SecondaryConfig) -> Result<Secondary> {
    let key = config.key.as_ref().map(load_key).transpose();
    let key = key.with_context(|| format!("[dns] secondary {}", config.name))?;
    let from = match config.from.is_empty() {
        true => vec![config.address.ip()],
        false => config.from.clone(),
    };
    let from = from.into_iter().map(|ip| ip.to_canonical()).collect();
    Ok(Secondary { name: config.name.clone(), address: config.address, from, key })
}

fn load_key(config: &KeyConfig) -> Result<Key> {
    let name: Name = config.name.parse().context("the key's name")?;
    let secret = secret(&config.secret_file).with_context(|| format!("key {}", shown(name.as_wire())))?;
    Ok(Key::new(name.as_wire(), config.algorithm, &secret))
}

fn secret(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("look at {shown}"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "{shown} can be read by others than its owner: chmod 600 {shown}");
    let text = std::fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
    let bytes = STANDARD.decode(text.trim());
    let bytes =
        bytes.with_context(|| format!("{shown} is not base64: `openssl rand -base64 32` makes a secret"))?;
    ensure!(
        bytes.len() >= 16,
        "the secret in {shown} is shorter than 16 bytes: `openssl rand -base64 32` makes one"
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: &Path) -> SecondaryConfig {
        SecondaryConfig {
            name: "ns2".into(),
            address: "192.0.2.53:53".parse().unwrap(),
            from: vec![],
            key: Some(KeyConfig {
                name: "Xfer".into(),
                algorithm: Algorithm::Sha256,
                secret_file: file.into(),
            }),
        }
    }

    #[test]
    fn a_key_is_read_from_a_file_that_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        let told = |text: &str, mode: u32| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            Secondaries::load(&[config(&file)]).map(|_| ()).map_err(|error| format!("{error:#}"))
        };
        let good = STANDARD.encode([7; 32]);
        assert!(told(&good, 0o644).unwrap_err().contains("chmod 600"));
        assert!(told("!", 0o600).unwrap_err().contains("openssl rand"));
        assert!(told("AAAA", 0o600).unwrap_err().contains("shorter than 16"));
        told(&format!("{good}\n"), 0o600).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(Secondaries::load(&[config(&file)]).is_err());
    }

    #[test]
    fn who_has_a_key_must_use_it_and_from_its_address() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, STANDARD.encode([7; 32])).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let all = Secondaries::load(&[config(&file)]).unwrap();
        let (here, there) = ("::ffff:192.0.2.53".parse().unwrap(), "192.0.2.54".parse().unwrap());
        let name = b"\x04xfer\x00";
        assert!(all.key(name).is_some() && all.knows(here) && !all.knows(there));
        assert!(all.may_have(here, Some(name)));
        assert!(
            !all.may_have(here, None)
                && !all.may_have(here, Some(b"\x00"))
                && !all.may_have(there, Some(name))
        );
        let open = Secondaries::load(&[SecondaryConfig { key: None, ..config(&file) }]).unwrap();
        assert!(open.may_have(here, None));
    }
}
