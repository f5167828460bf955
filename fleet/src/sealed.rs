//! Secrets in the stream of facts: sealed, so that only control and the entries can open them.
//!
//! Every replica carries them, on every host's disk too; the key is nowhere but in a file of control's and of each entry's
//! ([`EntrySecret::load`]). A sealed value is bound to the key of its record: it opens nowhere else.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::key::Key;

/// Ciphertext: nonce (12 bytes), AES-256-GCM's output, base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(…)")
    }
}

/// A value could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Made with another secret, for another record, or damaged.
    #[error(
        "the secret of {0} does not open: it was sealed for another record or with another fleet's secret"
    )]
    Opens(String),
    /// The cipher refused.
    #[error("the secret of {0} cannot be sealed")]
    Seals(String),
}

/// What control and the entries share and nobody else has.
#[derive(Clone, PartialEq, Eq)]
pub struct EntrySecret([u8; 32]);

impl fmt::Debug for EntrySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntrySecret(…)")
    }
}

impl EntrySecret {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// As it is told to an entry: 64 hex digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// From [`EntrySecret::to_hex`].
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// From its file; none when there is no file.
    ///
    /// # Errors
    /// The disk's; a file that holds something else.
    pub fn load(path: &Path) -> std::io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bad =
            || std::io::Error::other("not 64 hex digits: put the file back as it was, or take control's");
        Self::from_hex(&text).map(Some).ok_or_else(bad)
    }

    /// To its file, which only its owner reads; the file is whole or not there.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{}", self.to_hex())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    }

    /// A secret of its own for each purpose (HKDF-SHA-256): cookies, session tickets of an epoch, ….
    ///
    /// # Errors
    /// None that is known: the length is fixed.
    pub fn derive(&self, purpose: &str) -> Result<[u8; 32], SealError> {
        struct Bytes32;
        impl KeyType for Bytes32 {
            fn len(&self) -> usize {
                32
            }
        }
        let mut out = [0; 32];
        let key = Salt::new(HKDF_SHA256, b"mashines entries").extract(&self.0);
        let filled = key.expand(&[purpose.as_bytes()], Bytes32).and_then(|okm| okm.fill(&mut out));
        filled.map(|()| out).map_err(|_| SealError::Seals(purpose.to_owned()))
    }

    /// Seals a secret of the record `key`.
    ///
    /// # Errors
    /// [`SealError::Seals`].
    pub fn seal(&self, key: &Key, secret: &[u8]) -> Result<Sealed, SealError> {
        let name = key.to_string();
        let failed = || SealError::Seals(name.clone());
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &self.derive("seal")?).map_err(|_| failed())?;
        let mut bytes = secret.to_vec();
        let nonce =
            cipher.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut bytes).map_err(|_| failed())?;
        Ok(Sealed(STANDARD.encode([nonce.as_ref().as_slice(), &bytes].concat())))
    }

    /// Opens a secret of the record `key`.
    ///
    /// # Errors
    /// [`SealError::Opens`].
    pub fn open(&self, key: &Key, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let name = key.to_string();
        let failed = || SealError::Opens(name.clone());
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &self.derive("seal")?).map_err(|_| failed())?;
        let bytes = STANDARD.decode(&sealed.0).map_err(|_| failed())?;
        let (nonce, rest) = bytes.split_at_checked(12).ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut rest = rest.to_vec();
        let opened =
            cipher.open_in_place(nonce, Aad::from(name.as_bytes()), &mut rest).map_err(|_| failed())?;
        Ok(opened.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::Certificate(name.parse().unwrap())
    }

    #[test]
    fn what_is_sealed_opens_for_its_record_and_its_fleet_only() {
        let ours = EntrySecret::random();
        let sealed = ours.seal(&key("a.example"), b"secret").unwrap();
        assert_eq!(ours.open(&key("a.example"), &sealed).unwrap(), b"secret");
        assert!(ours.open(&key("b.example"), &sealed).is_err());
        assert!(EntrySecret::random().open(&key("a.example"), &sealed).is_err());
        assert!(ours.open(&key("a.example"), &Sealed("AAAA".into())).is_err());
        assert_ne!(ours.seal(&key("a.example"), b"secret").unwrap(), sealed, "a nonce is never used twice");
    }

    #[test]
    fn the_file_is_its_owners_alone_and_comes_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("entry.key");
        assert_eq!(EntrySecret::load(&path).unwrap(), None);
        let secret = EntrySecret::random();
        secret.save(&path).unwrap();
        assert_eq!(EntrySecret::load(&path).unwrap(), Some(secret.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(EntrySecret::load(&path).is_err());
        assert!(!format!("{secret:?}").contains(&secret.to_hex()));
    }

    #[test]
    fn each_purpose_has_a_secret_of_its_own() {
        let secret = EntrySecret::random();
        assert_ne!(secret.derive("a").unwrap(), secret.derive("b").unwrap());
        assert_eq!(secret.derive("a").unwrap(), secret.derive("a").unwrap());
    }
}
