//! Who may enter, and on which terms. Pure but for the two files of the machine that list keys.
//!
//! | proof | rule |
//! | --- | --- |
//! | any | the user is root: a machine of a single process has no other |
//! | a key | a line of the machine's configuration (the account's keys), or of root's own `authorized_keys`, without options |
//! | a certificate | a user's, of the platform's CA, for the principal `root`, within its dates; `force-command` and the `permit-…` extensions are kept to, any other critical option refuses it |

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mashines_guest::Config;
use russh::keys::ssh_key::authorized_keys::AuthorizedKeys;
use russh::keys::{Certificate, PublicKey};

/// The one user.
pub const USER: &str = "root";

/// What somebody who has proved something may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// This runs, whatever is asked for.
    pub force_command: Option<String>,
    /// Terminals.
    pub pty: bool,
    /// Ports and sockets, in every direction.
    pub forwarding: bool,
    /// The client's agent.
    pub agent: bool,
}

impl Terms {
    /// A key's: everything.
    pub const FREE: Self = Self { force_command: None, pty: true, forwarding: true, agent: true };
}

/// What the machine knows of who may enter.
#[derive(Debug)]
pub struct Access {
    account: Vec<PublicKey>,
    authority: Option<PublicKey>,
    own: PathBuf,
}

impl Access {
    /// Of a machine's configuration, and of `own`: root's `authorized_keys`, read anew for each key.
    pub fn new(config: &Config, own: PathBuf) -> Self {
        let authority = config.ssh_user_ca.as_deref().map(str::trim).and_then(|line| {
            let key = line.parse().inspect_err(|error| {
                crate::note(format_args!(
                    "the platform's CA is no public key ({error}): no certificate is taken"
                ));
            });
            key.ok()
        });
        Self { account: plain_keys(&config.ssh_authorized_keys.join("\n")), authority, own }
    }

    /// Whether a key opens the machine.
    pub fn knows(&self, key: &PublicKey) -> bool {
        let is = |known: &PublicKey| known.key_data() == key.key_data();
        self.account.iter().any(is) || own_keys(&self.own).iter().any(is)
    }

    /// Whether a key that is offered may belong to a certificate, which russh shows as the key in it.
    pub fn takes_certificates(&self) -> bool {
        self.authority.is_some()
    }

    /// On which terms a certificate opens the machine. Its holder and its signature are proved already.
    ///
    /// # Errors
    /// Why it does not.
    pub fn judge(&self, certificate: &Certificate, now: SystemTime) -> Result<Terms, String> {
        if self.authority.as_ref().is_none_or(|ours| ours.key_data() != certificate.signature_key()) {
            return Err("it is not of the platform's CA".to_owned());
        }
        if !certificate.cert_type().is_user() {
            return Err("it is a host's".to_owned());
        }
        if !certificate.valid_principals().iter().any(|principal| principal == USER) {
            return Err(format!("it is not for {USER}"));
        }
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        if second < certificate.valid_after() {
            return Err("it is not valid yet: do the clocks agree?".to_owned());
        }
        if second >= certificate.valid_before() {
            return Err("it has expired".to_owned());
        }
        terms(certificate)
    }
}

fn terms(certificate: &Certificate) -> Result<Terms, String> {
    let mut force_command = None;
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            "force-command" => force_command = Some(value.clone()),
            other => return Err(format!("it has an option that is not known here: {other}")),
        }
    }
    let permits = |name: &str| certificate.extensions().iter().any(|(extension, _)| extension == name);
    Ok(Terms {
        force_command,
        pty: permits("permit-pty"),
        forwarding: permits("permit-port-forwarding"),
        agent: permits("permit-agent-forwarding"),
    })
}

/// The keys of a list whose lines have no options: an option restricts, and one that is not kept to must not open the door.
fn plain_keys(text: &str) -> Vec<PublicKey> {
    let keys = text.lines().flat_map(AuthorizedKeys::new).flatten();
    keys.filter(|entry| entry.config_opts().is_empty()).map(|entry| entry.public_key().clone()).collect()
}

/// What anybody but root can change is not believed (`sshd_config(5)`, StrictModes).
fn own_keys(path: &Path) -> Vec<PublicKey> {
    use std::os::unix::fs::MetadataExt as _;
    let safe = |found: fs::Metadata| found.uid() == 0 && found.mode() & 0o022 == 0;
    let folders = path.ancestors().take(2);
    if !folders.into_iter().all(|path| fs::metadata(path).is_ok_and(safe)) {
        return Vec::new();
    }
    fs::read_to_string(path).map(|text| plain_keys(&text)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use russh::keys::key::safe_rng;
    use russh::keys::ssh_key::certificate::{Builder, CertType};
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key() -> PrivateKey {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
    }

    fn line(key: &PrivateKey) -> String {
        key.public_key().to_openssh().unwrap()
    }

    fn judged(change: impl FnOnce(&mut Builder)) -> Result<Terms, String> {
        let ca = key();
        let holder = key().public_key().key_data().clone();
        let mut builder = Builder::new(vec![7; 16], holder, NOW - 60, NOW + 60).unwrap();
        change(&mut builder);
        let _set = builder.cert_type(CertType::User);
        let certificate = builder.sign(&ca).unwrap();
        let mut config = Config::new("m", "h");
        config.ssh_user_ca = Some(format!("{}\n", line(&ca)));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        Access::new(&config, PathBuf::new()).judge(&certificate, now)
    }

    #[test]
    fn a_certificate_for_root_opens_with_what_it_permits() {
        let terms = judged(|b| {
            b.valid_principal("root").unwrap();
            b.extension("permit-pty", "").unwrap();
        });
        assert_eq!(terms.unwrap(), Terms { pty: true, forwarding: false, agent: false, force_command: None });
    }

    #[test]
    fn every_other_certificate_is_refused_with_its_reason() {
        let root = |b: &mut Builder| drop(b.valid_principal("root").map(drop));
        assert!(judged(|b| drop(b.valid_principal("ann").map(drop))).unwrap_err().contains("not for root"));
        let host = |b: &mut Builder| {
            root(b);
            b.cert_type(CertType::Host).unwrap();
        };
        assert!(judged(host).unwrap_err().contains("host's"));
        let optioned = |b: &mut Builder| {
            root(b);
            b.critical_option("source-address", "192.0.2.0/24").unwrap();
        };
        assert!(judged(optioned).unwrap_err().contains("source-address"));
        let other = Access::new(&Config::new("m", "h"), PathBuf::new());
        let mut builder = Builder::new(vec![7; 16], key().public_key().key_data().clone(), 1, 2).unwrap();
        root(&mut builder);
        let certificate = builder.sign(&key()).unwrap();
        assert!(other.judge(&certificate, SystemTime::now()).unwrap_err().contains("CA"));
    }

    #[test]
    fn a_forced_command_is_kept() {
        let terms = judged(|b| {
            b.valid_principal("root").unwrap();
            b.critical_option("force-command", "uptime").unwrap();
        });
        assert_eq!(terms.unwrap().force_command.as_deref(), Some("uptime"));
    }

    #[test]
    fn a_key_with_options_opens_nothing() {
        let (plain, bound) = (key(), key());
        let text = format!("# ours\n{}\ncommand=\"true\" {}\nrubbish\n", line(&plain), line(&bound));
        let keys = plain_keys(&text);
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].key_data(), plain.public_key().key_data());
    }

    #[test]
    fn a_list_of_keys_that_others_can_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized_keys");
        let mine = key();
        fs::write(&path, line(&mine)).unwrap();
        let access = Access::new(&Config::new("m", "h"), path.clone());
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(access.knows(mine.public_key()), is_root);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(!access.knows(mine.public_key()));
    }
}
