//! Bodies about names and their certificates, in the shape of the Fly Machines API; what it lacks is added.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{AppName, DomainName, IssuerName, Slug};
use crate::record::CertificateSource;

/// Asks for a certificate of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddCertificate {
    /// The name: a machine's own (`web.mashine.dev`, `*.web.mashine.dev`) or a domain of the owner's.
    pub hostname: String,
    /// The machine that serves it, by name or id; the app's only one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The machine's agent makes the key, which never leaves the machine.
    #[serde(default)]
    pub key_in_machine: bool,
}

/// A private key in PEM. It belongs in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrivateKeyPem(pub String);

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyPem(…)")
    }
}

/// Brings a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportCertificate {
    /// The name.
    pub hostname: String,
    /// PEM: the certificate, then who signed it.
    pub fullchain: String,
    /// Its private key.
    pub private_key: PrivateKeyPem,
    /// As in [`AddCertificate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// A list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// By name.
    pub certificates: Vec<Certificate>,
    /// How many.
    pub total_count: usize,
    /// The list is whole.
    pub next_cursor: Option<String>,
}

/// Where a name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateState {
    /// Its owner has still to prove it.
    AwaitingProof,
    /// The proof was there and is gone: nothing is served.
    Lapsed,
    /// The name is proved and leads elsewhere.
    AwaitingAddress,
    /// Soon ordered.
    Wanted,
    /// An entry works on it.
    Issuing,
    /// The last attempt failed; there is no certificate.
    Failing,
    /// It serves.
    Issued,
    /// It serves, and its successor could not be had so far; or it was brought, and nobody has brought the next.
    Expiring,
    /// It was not renewed in time.
    Expired,
}

/// A name, its certificate, and what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The name.
    pub hostname: DomainName,
    /// All names of the certificate.
    pub names: Vec<DomainName>,
    /// The app of its machine; none for the platform's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The machine that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Slug>,
    /// Where it stands.
    pub state: CertificateState,
    /// The same in Fly's words: `Ready`, `Awaiting configuration`, `Awaiting certificates`.
    pub status: String,
    /// It is proved, and its addresses are ours.
    pub configured: bool,
    /// An issuer is asked for it.
    pub acme_requested: bool,
    /// Where it comes from and who holds the key.
    pub source: CertificateSource,
    /// Who issued it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// From when it is good, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<String>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When it is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<String>,
    /// After failures: not tried before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<String>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// What the owner has to have in the domain's zone; none for names of the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_requirements: Option<DnsRequirements>,
    /// What went wrong last, and what to do.
    #[serde(default)]
    pub validation_errors: Vec<ValidationError>,
    /// Creation.
    pub created_at: String,
    /// Last change of the chain.
    pub updated_at: String,
}

/// What the owner of a domain puts into its zone: addresses (or the CNAME), and the proof, which a CNAME is already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRequirements {
    /// The proof.
    pub ownership: Ownership,
    /// In place of the addresses and the proof, where the name is not its zone's apex.
    pub cname: String,
    /// Addresses, IPv4.
    pub a: Vec<IpAddr>,
    /// Addresses, IPv6.
    pub aaaa: Vec<IpAddr>,
}

/// A TXT record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Its name.
    pub name: String,
    /// Its text.
    pub app_value: String,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationError {
    /// What was tried and what came back.
    pub message: String,
    /// What to do.
    pub remediation: String,
    /// When, RFC 3339.
    pub timestamp: String,
}

/// The platform's account at an issuer of certificates, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerAccount {
    /// What the configuration calls the issuer.
    pub issuer: IssuerName,
    /// Its directory.
    pub directory: String,
    /// RFC 3339.
    pub created_at: String,
    /// Since when it has its key, RFC 3339.
    pub key_since: String,
    /// A change of its key is under way since, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling_since: Option<String>,
    /// The issuer refused the last one that was asked for: why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ValidationError>,
}
