//! The platform's SSH CA. Machines trust it, and the gateway enters them with certificates of it that live a day. People trust it, and
//! machines prove their names with certificates of it: one line in `known_hosts` is all that a person needs.

use mashines_fleet::api;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Result};
use crate::found::Secret;
use crate::time::now;

/// How long a certificate lives, seconds.
const LIFE_S: u64 = 24 * 3600;
/// How long a host certificate lives, seconds. A machine gets it at its boot and may run for years; who takes its name next gets
/// another key.
const HOST_LIFE_S: u64 = 5 * 366 * 24 * 3600;
/// Clocks of machines may be this much behind, seconds.
const BEHIND_S: u64 = 600;

/// The CA's key. Only control holds it.
pub struct SshCa(PrivateKey);

fn failed(action: &str) -> impl Fn(russh::keys::ssh_key::Error) -> Failure {
    move |error| Failure::internal(format!("cannot {action}: {error}"))
}

impl SshCa {
    /// Makes a new one.
    pub fn create() -> Self {
        Self(PrivateKey::from(Ed25519Keypair::from_seed(&rand::random())))
    }

    /// From [`SshCa::secret`].
    ///
    /// # Errors
    /// The text is damaged.
    pub fn from_secret(text: &str) -> Result<Self> {
        PrivateKey::from_openssh(text).map(Self).map_err(failed("read the SSH CA's key"))
    }

    /// The private key: it never leaves control's store.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn secret(&self) -> Result<String> {
        let text = self.0.to_openssh(LineEnding::LF).map_err(failed("write the SSH CA's key"))?;
        Ok((*text).clone())
    }

    /// The public key, one line.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn public(&self) -> Result<String> {
        self.0.public_key().to_openssh().map_err(failed("write the SSH CA's public key"))
    }

    /// A certificate for the public key that enters machines as root, one line.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::failure::Kind::Invalid): the key is none.
    pub fn certify(&self, public_key: &str, who: &str) -> Result<String> {
        let key = parse_key(public_key)?;
        let failed = failed("sign an SSH certificate");
        let mut builder = begun(&key, who, CertType::User, LIFE_S)?;
        builder.valid_principal("root").map_err(&failed)?;
        for extension in ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"]
        {
            builder.extension(extension, "").map_err(&failed)?;
        }
        builder.sign(&self.0).map_err(&failed)?.to_openssh().map_err(failed)
    }

    /// A certificate for a machine's host key: it is who answers to these names. One line.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::failure::Kind::Invalid): the key is none.
    pub fn certify_host(&self, public_key: &str, who: &str, names: &[String]) -> Result<String> {
        let key = parse_key(public_key)?;
        let failed = failed("sign an SSH host certificate");
        let mut builder = begun(&key, who, CertType::Host, HOST_LIFE_S)?;
        names.iter().try_for_each(|name| builder.valid_principal(name).map(drop)).map_err(&failed)?;
        builder.sign(&self.0).map_err(&failed)?.to_openssh().map_err(failed)
    }
}

fn begun(key: &PublicKey, who: &str, kind: CertType, life_s: u64) -> Result<Builder> {
    let failed = failed("make an SSH certificate");
    let now_s = now() / 1000;
    let nonce: [u8; 32] = rand::random();
    let mut builder =
        Builder::new(nonce, key.key_data().clone(), now_s.saturating_sub(BEHIND_S), now_s + life_s)
            .map_err(&failed)?;
    builder.serial(rand::random()).map_err(&failed)?;
    builder.cert_type(kind).map_err(&failed)?;
    builder.key_id(who).map_err(&failed)?;
    Ok(builder)
}

/// A new host key: what stays in control's store.
///
/// # Errors
/// It cannot be encoded.
pub fn new_host_key() -> Result<Secret> {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()));
    let failed = failed("write a host key");
    let secret = key.to_openssh(LineEnding::LF).map_err(&failed)?;
    Ok(Secret { public: key.public_key().to_openssh().map_err(&failed)?, secret: (*secret).clone() })
}

fn parse_key(text: &str) -> Result<PublicKey> {
    PublicKey::from_openssh(text.trim()).map_err(|error| {
        let start: String = text.chars().take(40).collect();
        Failure::invalid(format!("{start:?} is no public key in OpenSSH's form (ssh-ed25519 AAAA…): {error}"))
    })
}

/// A person's public key in the form that accounts keep: one line, no comment.
///
/// # Errors
/// [`Kind::Invalid`](crate::failure::Kind::Invalid): it is none.
pub fn normal_key(text: &str) -> Result<String> {
    let mut key = parse_key(text)?;
    key.set_comment("");
    key.to_openssh().map(|line| line.trim().to_owned()).map_err(failed("write a public key"))
}

/// A public key as the API lists it; none for a line that is no key.
pub fn shown_key(line: &str) -> Option<api::SshKey> {
    let key = PublicKey::from_openssh(line.trim()).ok()?;
    let mut id = hex::encode(Sha256::digest(key.to_bytes().ok()?));
    id.truncate(12);
    Some(api::SshKey {
        id,
        algorithm: key.algorithm().to_string(),
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        public_key: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use russh::keys::Certificate;

    use super::*;

    #[test]
    fn a_certificate_is_for_root_for_a_day_and_of_this_ca() {
        let ca = SshCa::from_secret(&SshCa::create().secret().unwrap()).unwrap();
        let user = SshCa::create().public().unwrap();
        let certificate = Certificate::from_openssh(&ca.certify(&user, "entry160").unwrap()).unwrap();
        assert_eq!(certificate.valid_principals(), ["root"]);
        assert_eq!(certificate.valid_before() - certificate.valid_after(), LIFE_S + BEHIND_S);
        let fingerprint = ca.0.public_key().fingerprint(Default::default());
        assert!(certificate.validate([&fingerprint]).is_ok());
        assert!(ca.certify("ssh-ed25519 nonsense", "x").is_err());
    }

    #[test]
    fn a_host_certificate_is_for_the_machines_names_and_lives_for_years() {
        let ca = SshCa::create();
        let key = new_host_key().unwrap();
        let names = ["web.mashine.dev".to_owned(), "2001:db8::7".to_owned()];
        let certificate = ca.certify_host(&key.public, "web", &names).unwrap();
        let certificate = Certificate::from_openssh(&certificate).unwrap();
        assert!(certificate.cert_type().is_host());
        assert_eq!(certificate.valid_principals(), names);
        assert!(certificate.valid_before() - certificate.valid_after() > 4 * 365 * 24 * 3600);
        let fingerprint = ca.0.public_key().fingerprint(Default::default());
        assert!(certificate.validate([&fingerprint]).is_ok());
        assert!(PrivateKey::from_openssh(&key.secret).is_ok());
    }

    #[test]
    fn keys_are_kept_without_their_comment() {
        let key = SshCa::create().public().unwrap();
        assert_eq!(normal_key(&format!("  {key} ann@home\n")).unwrap(), key);
        assert!(normal_key("command=\"x\" ssh-ed25519 AAAA").is_err());
    }
}
