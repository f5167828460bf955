//! Certificates whose key is made here and never leaves the machine: the agent makes the key and a request, and puts the chain beside it.
//!
//! ```text
//! control ── exec: agent certificate request NAME… ──▶ key.pem (made once)   ── request ──▶ control ──▶ issuer
//!         ── exec: agent certificate install NAME ───▶ fullchain.pem (one rename), then the hook
//! ```
//!
//! Invariants: the key is readable by root alone, is whole or not there, and is printed nowhere; a chain for another key is refused; what
//! was installed before stays until the next is whole.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, Ia5String, ObjectIdentifier};
use x509_cert::der::{Decode as _, DecodePem as _, Encode as _, EncodePem as _};
use x509_cert::ext::ToExtension as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use x509_cert::spki::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// `ecdsa-with-SHA256` (RFC 5758 §3.2).
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// Where they are: a directory for each, with `key.pem` and `fullchain.pem`.
pub const DIRECTORY: &str = "/etc/mashines/certificates";

/// Run after a chain was installed, when it is there: with the name and the directory.
pub const HOOK: &str = "/etc/mashines/certificate-installed";

/// The longest chain, bytes.
pub const MAX_CHAIN: usize = 64 << 10;

/// Names of one certificate.
const MAX_NAMES: usize = 20;

/// A request (PEM) for these names, by the key in the directory of the first; the key is made when there is none.
///
/// # Errors
/// A name is none; the disk's; the key there is damaged.
pub fn request(root: &Path, names: &[String]) -> Result<String> {
    let Some(first) = names.first() else { bail!("a certificate is requested for a name: give one") };
    if names.len() > MAX_NAMES {
        bail!("a certificate has at most {MAX_NAMES} names");
    }
    let mut general = Vec::new();
    for name in names {
        check(name)?;
        general.push(GeneralName::DnsName(Ia5String::new(name).context("a name in a certificate")?));
    }
    let directory = directory(root, first)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    let key = key(&directory.join("key.pem"))?;
    signed(&key, general).context("a certificate request")
}

/// PKCS#10 (RFC 2986): no subject but the names.
fn signed(key: &SigningKey, names: Vec<GeneralName>) -> Result<String> {
    let subject = Name::default();
    let names = SubjectAltName(names).to_extension(&subject, &[])?;
    let public = key.verifying_key().to_public_key_der()?;
    let mut info = CertReqInfo {
        version: Version::V1,
        subject,
        public_key: SubjectPublicKeyInfo::from_der(public.as_bytes())?,
        attributes: Default::default(),
    };
    info.attributes.insert(ExtensionReq(vec![names]).try_into()?)?;
    let signature: DerSignature = key.try_sign(&info.to_der()?)?;
    let request = CertReq {
        info,
        algorithm: AlgorithmIdentifier { oid: ECDSA_WITH_SHA256, parameters: None },
        signature: BitString::from_bytes(signature.as_bytes())?,
    };
    Ok(request.to_pem(LineEnding::LF)?)
}

/// Puts a chain beside its key, and runs the hook.
///
/// # Errors
/// The chain is for another key; the disk's; the hook failed (the chain is there then).
pub fn install(root: &Path, name: &str, chain: &str, hook: &Path) -> Result<()> {
    check(name)?;
    let directory = directory(root, name)?;
    if chain.len() > MAX_CHAIN {
        bail!("the chain for {name} is longer than {MAX_CHAIN} bytes");
    }
    let path = directory.join("key.pem");
    let pem = fs::read_to_string(&path)
        .with_context(|| format!("no key for {name} is in this machine: reading {}", path.display()))?;
    let key = SigningKey::from_pkcs8_pem(&pem).with_context(|| format!("the key {}", path.display()))?;
    let leaf =
        Certificate::from_pem(first_certificate(chain)).with_context(|| format!("the chain for {name}"))?;
    let ours = key.verifying_key().to_public_key_der().context("the key's public half")?;
    let theirs =
        leaf.tbs_certificate().subject_public_key_info().to_der().context("the chain's public key")?;
    if ours.as_bytes() != theirs {
        bail!("the chain for {name} is for another key than {}", path.display());
    }
    write(&directory.join("fullchain.pem"), chain, 0o644)?;
    if hook.exists() {
        let ended = Command::new(hook).arg(name).arg(&directory).status();
        let ended = ended.with_context(|| format!("running {}", hook.display()))?;
        if !ended.success() {
            bail!("the chain for {name} is installed, but {} ended with {ended}", hook.display());
        }
    }
    Ok(())
}

/// What is before the second certificate of a chain.
fn first_certificate(chain: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    chain.find(END).and_then(|at| chain.get(..at + END.len())).unwrap_or(chain)
}

/// Names come from control, and become part of a path.
fn check(name: &str) -> Result<()> {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    if name.len() > 253 || !plain.contains('.') || !plain.split('.').all(label) {
        bail!("{:?} is no domain name", name.chars().take(80).collect::<String>());
    }
    Ok(())
}

/// The directory of a name. A wildcard's begins with an underscore, which no name of a host does.
fn directory(root: &Path, name: &str) -> Result<PathBuf> {
    check(name)?;
    Ok(root.join(match name.strip_prefix("*.") {
        Some(rest) => format!("_wildcard.{rest}"),
        None => name.to_owned(),
    }))
}

fn key(path: &Path) -> Result<SigningKey> {
    match fs::read_to_string(path) {
        Ok(pem) => SigningKey::from_pkcs8_pem(&pem).with_context(|| {
            format!("the key {} is damaged: remove it, and another is made", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = p256::SecretKey::try_generate().context("no randomness for a key")?;
            let pem = key.to_pkcs8_pem(LineEnding::LF).context("a key in PEM")?;
            write(path, &pem, 0o600)?;
            Ok(SigningKey::from(key))
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Whole or not at all, and with its mode from its first byte on.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let _stale = fs::remove_file(&new);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_key_is_made_once_is_roots_alone_and_is_in_no_request() {
        let root = tempfile::tempdir().unwrap();
        let one = request(root.path(), &names(&["web.mashine.dev"])).unwrap();
        let path = root.path().join("web.mashine.dev/key.pem");
        let key = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let two = request(root.path(), &names(&["web.mashine.dev", "*.web.mashine.dev"])).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), key);
        for text in [one, two] {
            assert!(text.starts_with("-----BEGIN CERTIFICATE REQUEST-----") && !text.contains("PRIVATE"));
        }
        request(root.path(), &names(&["*.web.mashine.dev"])).unwrap();
        assert!(root.path().join("_wildcard.web.mashine.dev/key.pem").exists());
    }

    #[test]
    fn names_that_are_paths_are_refused_and_so_is_a_chain_without_a_key() {
        let root = tempfile::tempdir().unwrap();
        for bad in ["../../etc", "a/b.c", "", ".", "..", "a..b", "A.b", "*", "*.*.a", "web"] {
            assert!(request(root.path(), &names(&[bad])).is_err(), "{bad:?}");
            assert!(install(root.path(), bad, "", Path::new("/none")).is_err(), "{bad:?}");
        }
        let error = install(root.path(), "a.example", "x", Path::new("/none")).unwrap_err();
        assert!(format!("{error:#}").contains("no key for a.example"), "{error:#}");
        request(root.path(), &names(&["a.example"])).unwrap();
        assert!(install(root.path(), "a.example", "x", Path::new("/none")).is_err());
        assert!(!root.path().join("a.example/fullchain.pem").exists());
    }
}
