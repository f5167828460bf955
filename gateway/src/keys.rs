//! Keys of the gateway's own, kept in files: its host key, and the key it enters machines with.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, Certificate, PrivateKey, load_secret_key};

/// The key at `path`; made and written (mode 0600, whole or not at all) where there is none.
///
/// # Errors
/// The file cannot be read as an unencrypted OpenSSH key, or a new one cannot be written.
pub fn load_or_create(path: &Path) -> anyhow::Result<PrivateKey> {
    if path.exists() {
        return load_secret_key(path, None).with_context(|| {
            format!(
                "{} is not an unencrypted OpenSSH private key; move it away to have one made",
                path.display()
            )
        });
    }
    let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).context("making an Ed25519 key")?;
    let text = key.to_openssh(LineEnding::LF).context("encoding a new key")?;
    write_private(path, text.as_bytes())
        .with_context(|| format!("writing a new key to {}", path.display()))?;
    Ok(key)
}

/// Reads a certificate, one line, of `key`.
///
/// # Errors
/// It is none, or another key's.
pub fn certificate_of(key: &PrivateKey, text: &str) -> anyhow::Result<Certificate> {
    let certificate = Certificate::from_openssh(text.trim()).context("not an OpenSSH certificate")?;
    anyhow::ensure!(certificate.public_key() == key.public_key().key_data(), "it certifies another key");
    Ok(certificate)
}

/// Writes `contents` to `path`, mode 0600, so that a reader finds the old file or the whole new one.
pub fn write_private(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/host_key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().public_key(), made.public_key());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_key_file_is_an_error_and_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host_key");
        std::fs::write(&path, "junk").unwrap();
        assert!(load_or_create(&path).unwrap_err().to_string().contains("move it away"));
        assert_eq!(std::fs::read(&path).unwrap(), b"junk");
    }
}
