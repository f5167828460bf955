//! SSH: who may log in, and what the machine proves its own name with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mashines_guest::Config;
use mashines_guest::config::HostKey;

use super::{identity, process};
use crate::log;

const SSH: &str = "/etc/ssh";
const DROP_IN: &str = "/etc/ssh/sshd_config.d/10-mashines.conf";
const USER_CA: &str = "/etc/ssh/mashines_user_ca.pub";

/// Writes authorized keys, host keys and the part of sshd's configuration that names them. An image without sshd gets
/// the authorized keys alone.
pub fn apply(config: &Config) -> Result<()> {
    authorized_keys(&config.ssh_authorized_keys)?;
    if !Path::new(SSH).is_dir() {
        return Ok(());
    }
    if config.ssh_host_keys.is_empty() {
        first_host_key()?;
    }
    config.ssh_host_keys.iter().try_for_each(host_key)?;
    if let Some(authority) = &config.ssh_user_ca {
        identity::write(USER_CA, format!("{}\n", authority.trim()), 0o644)?;
    }
    identity::write(DROP_IN, sshd_options(config), 0o644)
}

fn authorized_keys(keys: &[String]) -> Result<()> {
    let directory = "/root/.ssh";
    if keys.is_empty() && !Path::new(directory).exists() {
        return Ok(());
    }
    fs::create_dir_all(directory).with_context(|| format!("making {directory}"))?;
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .with_context(|| format!("closing {directory}"))?;
    identity::edit_block(&format!("{directory}/authorized_keys"), keys, 0o600)
}

fn host_key(key: &HostKey) -> Result<()> {
    let path = key_path(key)?;
    identity::write(&path, format!("{}\n", key.private_pem.trim_end()), 0o600)?;
    identity::write(&format!("{path}.pub"), format!("{}\n", key.public.trim()), 0o644)?;
    match &key.certificate {
        Some(certificate) => {
            identity::write(&format!("{path}-cert.pub"), format!("{}\n", certificate.trim()), 0o644)
        }
        None => Ok(()),
    }
}

fn key_path(key: &HostKey) -> Result<String> {
    if key.kind.is_empty() || !key.kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    {
        bail!("'{}' is no type of an SSH host key", key.kind);
    }
    Ok(format!("{SSH}/ssh_host_{}_key", key.kind))
}

/// A key of its own at first boot. One type is enough and keeps the boot short: RSA takes seconds.
fn first_host_key() -> Result<()> {
    let path = format!("{SSH}/ssh_host_ed25519_key");
    if Path::new(&path).exists() {
        return Ok(());
    }
    match process::image_program("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &path])? {
        Some(0) => Ok(()),
        Some(code) => {
            bail!("ssh-keygen ended with exit code {code} when it made {path} (its words are above)")
        }
        None => {
            log::note("the image has no ssh-keygen and the configuration no host keys: sshd will have none");
            Ok(())
        }
    }
}

fn sshd_options(config: &Config) -> String {
    let mut text = "# Written at every boot from the machine's configuration.\n".to_owned();
    for key in &config.ssh_host_keys {
        let path = format!("{SSH}/ssh_host_{}_key", key.kind);
        text.push_str(&format!("HostKey {path}\n"));
        if key.certificate.is_some() {
            text.push_str(&format!("HostCertificate {path}-cert.pub\n"));
        }
    }
    if config.ssh_user_ca.is_some() {
        text.push_str(&format!("TrustedUserCAKeys {USER_CA}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str) -> HostKey {
        HostKey {
            kind: kind.into(),
            private_pem: "p".into(),
            public: "q".into(),
            certificate: Some("c".into()),
        }
    }

    #[test]
    fn sshd_is_told_keys_certificates_and_the_authority() {
        let mut config = Config::new("m", "h");
        config.ssh_host_keys.push(key("ed25519"));
        config.ssh_user_ca = Some("ssh-ed25519 AAAA ca".into());
        let lines: Vec<String> = sshd_options(&config).lines().skip(1).map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "HostKey /etc/ssh/ssh_host_ed25519_key",
                "HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub",
                "TrustedUserCAKeys /etc/ssh/mashines_user_ca.pub"
            ]
        );
    }

    #[test]
    fn a_key_type_cannot_leave_its_directory() {
        assert!(key_path(&key("../../x")).is_err());
        assert_eq!(key_path(&key("rsa")).unwrap(), "/etc/ssh/ssh_host_rsa_key");
    }
}
