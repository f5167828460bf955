//! The fleet's own certificates: who may speak to whom inside it.
//!
//! One CA, made by `mashinesd init`, whose key stays in control's store below `private/`. Every daemon has one
//! certificate for both directions, with exactly one name below `mashines.internal`:
//!
//! | who | name |
//! | --- | --- |
//! | control | `control.mashines.internal` |
//! | a host or an entry | `ID.host.mashines.internal` |
//!
//! Invariants: what a request for a certificate *asks* to be called is never looked at, the CA writes the name; a
//! client states whom it expects and no other member's certificate satisfies it; the CA signs nothing but leaves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::id::HostId;

const SUFFIX: &str = ".mashines.internal";
const HOST_SUFFIX: &str = ".host.mashines.internal";
const CA_YEARS: u64 = 30;
const LEAF_YEARS: u64 = 10;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why certificates could not be read, made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file of the identity.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// PEM that does not hold what it should.
    #[error("{what} is no valid PEM: {why}")]
    Pem {
        /// Which.
        what: &'static str,
        /// What the parser said.
        why: String,
    },
    /// The certificate library refused.
    #[error("cannot {action}: {source}")]
    Make {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: rcgen::Error,
    },
    /// The TLS library refused.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// A certificate without exactly one name below `mashines.internal`.
    #[error("the certificate does not name one member of a fleet: {0}")]
    Name(String),
}

/// The verified name of a member: what its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(String);

impl PeerName {
    /// Control.
    pub fn control() -> Self {
        Self(format!("control{SUFFIX}"))
    }

    /// A host or an entry.
    pub fn host(id: &HostId) -> Self {
        Self(format!("{id}{HOST_SUFFIX}"))
    }

    /// The host or entry that this is.
    pub fn as_host(&self) -> Option<HostId> {
        self.0.strip_suffix(HOST_SUFFIX)?.parse().ok()
    }

    /// Whether this is control.
    pub fn is_control(&self) -> bool {
        self.0.strip_suffix(SUFFIX) == Some("control")
    }

    /// The DNS name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for a TLS client to expect.
    ///
    /// # Errors
    /// [`PkiError::Name`]: the name is too long for DNS.
    pub fn server_name(&self) -> Result<ServerName<'static>, PkiError> {
        ServerName::try_from(self.0.clone()).map_err(|error| PkiError::Name(error.to_string()))
    }

    /// Reads the one name below `mashines.internal` from a certificate. It does not verify the certificate.
    ///
    /// # Errors
    /// [`PkiError::Name`] when there is none, or more than one.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
        let bad = |why: String| PkiError::Name(why);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| bad(e.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|e| bad(e.to_string()))?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let members: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(dns) if dns.ends_with(SUFFIX) => Some(*dns),
                _ => None,
            })
            .collect();
        match members.as_slice() {
            [name] => Ok(Self((*name).to_owned())),
            others => Err(bad(format!("names below {SUFFIX}: {others:?}"))),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fleet's certificate authority. Only control holds it.
pub struct Ca {
    certificate_pem: String,
    key_pem: String,
}

impl Ca {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`PkiError::Make`]: the machine gives no randomness.
    pub fn create(fleet: &str) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make { action: "make the fleet's CA", source };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("mashines fleet {fleet}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = validity(CA_YEARS);
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Self { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The one that [`Ca::certificate_pem`] and [`Ca::key_pem`] were taken from.
    pub fn from_pem(certificate_pem: String, key_pem: String) -> Self {
        Self { certificate_pem, key_pem }
    }

    /// The certificate that everyone trusts.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key: it never leaves control's store.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs the public key of a request for the name given; the names inside the request are not looked at.
    ///
    /// # Errors
    /// [`PkiError::Make`]: the request is not well formed or its signature is wrong.
    pub fn sign(&self, request_pem: &str, name: &PeerName) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|source| PkiError::Make { action: "read the certificate request", source })?;
        self.issue_for(&request.public_key, name, &[])
    }

    /// A key and its certificate, for control itself; `also` are names and addresses that people reach it by.
    ///
    /// # Errors
    /// [`PkiError::Make`]: a name in `also` is not ASCII.
    pub fn issue(&self, name: &PeerName, also: &[String]) -> Result<Identity, PkiError> {
        let key = KeyPair::generate().map_err(|source| PkiError::Make { action: "make a key", source })?;
        let certificate = self.issue_for(&key, name, also)?;
        Identity::from_pem(self.certificate_pem.clone(), certificate, key.serialize_pem())
    }

    fn issue_for(
        &self,
        key: &impl PublicKeyData,
        name: &PeerName,
        also: &[String],
    ) -> Result<String, PkiError> {
        let make = |source| PkiError::Make { action: "sign a certificate", source };
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(make)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, ca_key).map_err(make)?;
        let mut names = vec![name.as_str().to_owned()];
        names.extend(also.iter().cloned());
        let mut params = CertificateParams::new(names).map_err(make)?;
        params.distinguished_name = DistinguishedName::new();
        // No common name: RFC 5280 allows it with a critical SAN, and common names longer than 64 are refused.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(LEAF_YEARS);
        Ok(params.signed_by(key, &issuer).map_err(make)?.pem())
    }
}

/// From a day ago, for members whose clocks are behind, for so many years.
fn validity<T: From<SystemTime>>(years: u64) -> (T, T) {
    let now = SystemTime::now();
    let lifetime = YEAR.saturating_mul(u32::try_from(years).unwrap_or(1));
    ((now - Duration::from_secs(24 * 3600)).into(), (now + lifetime).into())
}

/// A new key and the request to sign it, for a member that joins: `(request, key)` in PEM.
///
/// # Errors
/// [`PkiError::Make`]: the machine gives no randomness.
pub fn certificate_request() -> Result<(String, String), PkiError> {
    let make = |source| PkiError::Make { action: "make a certificate request", source };
    let key = KeyPair::generate().map_err(make)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(make)?;
    Ok((request.pem().map_err(make)?, key.serialize_pem()))
}

/// The SHA-256 of the certificate, hex: what a join token carries, so that the joiner knows the fleet from an impostor.
///
/// # Errors
/// [`PkiError::Pem`].
pub fn fingerprint(certificate_pem: &str) -> Result<String, PkiError> {
    Ok(hex::encode(Sha256::digest(parse_certificate("the CA", certificate_pem)?)))
}

fn parse_certificate(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Pem { what, why: error.to_string() })
}

/// Whether a server insists on a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Members only.
    Required,
    /// A certificate that is shown must be good, but people with tokens show none.
    Optional,
}

/// A member's certificate, its key and the CA that it trusts. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<IdentityParts>);

struct IdentityParts {
    ca_pem: String,
    certificate_pem: String,
    key_pem: String,
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    name: PeerName,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.0.name.as_str()).finish()
    }
}

impl Identity {
    /// Reads `ca.pem`, `host.pem` and `host.key`.
    ///
    /// # Errors
    /// A file that is missing or does not hold what it should.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| PkiError::File { action: "read", path, source })
        };
        Self::from_pem(read("ca.pem")?, read("host.pem")?, read("host.key")?)
    }

    /// From the texts of the three files.
    ///
    /// # Errors
    /// [`PkiError::Pem`], or [`PkiError::Name`] when the certificate names no member.
    pub fn from_pem(ca_pem: String, certificate_pem: String, key_pem: String) -> Result<Self, PkiError> {
        let ca = parse_certificate("ca.pem", &ca_pem)?;
        let certificate = parse_certificate("host.pem", &certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| PkiError::Pem { what: "host.key", why: error.to_string() })?;
        let name = PeerName::of_certificate(&certificate)?;
        Ok(Self(Arc::new(IdentityParts { ca_pem, certificate_pem, key_pem, ca, certificate, key, name })))
    }

    /// Writes the three files; the key is readable by its owner alone.
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn save(&self, directory: &Path) -> Result<(), PkiError> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |path: &Path, source| PkiError::File { action: "write", path: path.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        let files = [
            ("ca.pem", &self.0.ca_pem, 0o644),
            ("host.pem", &self.0.certificate_pem, 0o644),
            ("host.key", &self.0.key_pem, 0o600),
        ];
        for (name, text, mode) in files {
            let path = directory.join(name);
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(mode);
            let mut file = options.open(&path).map_err(|error| failed(&path, error))?;
            std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }

    /// The name in the certificate.
    pub fn name(&self) -> &PeerName {
        &self.0.name
    }

    /// The host or entry that this is, if it is one.
    pub fn host(&self) -> Option<HostId> {
        self.0.name.as_host()
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    /// For a listener. The chain that it shows includes the CA, so that a joiner can compare its fingerprint.
    ///
    /// # Errors
    /// [`PkiError::Tls`]: the key does not fit the certificate.
    pub fn server_config(&self, clients: ClientCertificates) -> Result<ServerConfig, PkiError> {
        let tls = |error: &dyn fmt::Display| PkiError::Tls(error.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider());
        let verifier = match clients {
            ClientCertificates::Required => verifier,
            ClientCertificates::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier.build().map_err(|e| tls(&e))?;
        let chain = vec![self.0.certificate.clone(), self.0.ca.clone()];
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, self.0.key.clone_key())
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// For calls to other members. The caller states the expected [`PeerName`] as the TLS server name.
    ///
    /// # Errors
    /// [`PkiError::Tls`]: the key does not fit the certificate.
    pub fn client_config(&self) -> Result<ClientConfig, PkiError> {
        let tls = |error: &dyn fmt::Display| PkiError::Tls(error.to_string());
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![self.0.certificate.clone()], self.0.key.clone_key())
            .map_err(|e| tls(&e))
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        roots_of(&self.0.ca)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots_of(ca: &CertificateDer<'static>) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(|error| PkiError::Tls(error.to_string()))?;
    Ok(roots)
}

/// For a client without a certificate of its own (the command line with a token): trusts this CA.
///
/// # Errors
/// [`PkiError::Pem`].
pub fn anonymous_client_config(ca_pem: &str) -> Result<ClientConfig, PkiError> {
    let roots = roots_of(&parse_certificate("the CA", ca_pem)?)?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| PkiError::Tls(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// For a joiner, which has nothing but the CA's fingerprint: trusts the CA in the server's chain that has it.
///
/// # Errors
/// [`PkiError::Tls`].
pub fn pinned_client_config(ca_fingerprint: &str) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| PkiError::Tls(error.to_string()))?;
    let pin = Pinned { fingerprint: ca_fingerprint.to_ascii_lowercase(), provider: provider() };
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(pin)).with_no_client_auth())
}

/// Verifies a chain as usual, with the one root whose fingerprint is known.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = |why: String| rustls::Error::General(why);
        let ca = intermediates
            .iter()
            .find(|certificate| hex::encode(Sha256::digest(certificate)) == self.fingerprint)
            .ok_or_else(|| other("the server is not of the fleet that the join token is for".to_owned()))?;
        let roots = roots_of(&ca.clone().into_owned()).map_err(|error| other(error.to_string()))?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| other(error.to_string()))?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str) -> PeerName {
        PeerName::host(&id.parse().unwrap())
    }

    #[test]
    fn an_identity_survives_its_files() {
        let ca = Ca::create("test").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let identity = ca.issue(&host("hosta"), &["api.mashine.test".into(), "127.0.0.1".into()]).unwrap();
        identity.save(directory.path()).unwrap();
        let loaded = Identity::load(directory.path()).unwrap();
        assert_eq!(loaded.host(), Some("hosta".parse().unwrap()));
        assert!(loaded.server_config(ClientCertificates::Required).is_ok());
        assert!(loaded.client_config().is_ok());
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(directory.path().join("host.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_ca_writes_the_name_whatever_the_request_says() {
        let ca = Ca::create("test").unwrap();
        let key = KeyPair::generate().unwrap();
        let hostile = CertificateParams::new(vec!["control.mashines.internal".to_owned()]).unwrap();
        let request = hostile.serialize_request(&key).unwrap().pem().unwrap();
        let signed = ca.sign(&request, &host("hostb")).unwrap();
        let name = PeerName::of_certificate(&parse_certificate("it", &signed).unwrap()).unwrap();
        assert_eq!(name, host("hostb"));
        assert!(!name.is_control());
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        let ca = Ca::create("test").unwrap();
        assert!(ca.sign("-----BEGIN NONSENSE-----", &host("hostb")).is_err());
    }

    #[test]
    fn an_identity_without_a_member_name_is_refused() {
        let ca = Ca::create("test").unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["example.org".to_owned()]).unwrap();
        let stray = params.self_signed(&key).unwrap().pem();
        let outcome = Identity::from_pem(ca.certificate_pem().to_owned(), stray, key.serialize_pem());
        assert!(matches!(outcome, Err(PkiError::Name(_))));
    }
}
