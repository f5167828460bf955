//! The `[acme]` section of `mashinesd`'s configuration.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use mashines_fleet::id::IssuerName;
use serde::Deserialize;

/// How certificates are had.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who is asked, in this order: the next one after some failures. The same on all entries.
    pub issuers: Vec<Issuer>,
    /// Control's addresses; the daemon's when empty.
    #[serde(default)]
    pub control: Vec<String>,
    /// Failures in a row after which the next issuer is asked.
    #[serde(default = "three")]
    pub failures_before_next: u32,
    /// How long one call to an issuer may take, seconds.
    #[serde(default = "call")]
    pub call_timeout_s: u64,
    /// How long one order may take, seconds.
    #[serde(default = "order")]
    pub order_timeout_s: u64,
    /// Ports of the fleet's own doors, where it is looked whether a challenge is shown.
    #[serde(default)]
    pub ports: Ports,
}

/// An issuer of certificates that speaks ACME (RFC 8555).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What it is called here: part of the key of our account there.
    pub name: IssuerName,
    /// Its directory: `https://acme-v02.api.letsencrypt.org/directory`.
    pub directory: String,
    /// `mailto:` addresses that it may write to.
    #[serde(default)]
    pub contact: Vec<String>,
    /// The profile to ask for, where it has several.
    #[serde(default)]
    pub profile: Option<String>,
    /// The binding to an account outside of ACME, where it wants one.
    #[serde(default)]
    pub eab: Option<Eab>,
    /// PEM of the CA that its own TLS certificate is from, when that is not a public one.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// External account binding (RFC 8555 §7.3.4).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eab {
    /// The key's id.
    pub kid: String,
    /// The file that holds the HMAC key, base64url. A file, so that the configuration holds no secret.
    pub key_file: PathBuf,
}

/// Ports of name servers and edges.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// Of the name servers.
    pub dns: u16,
    /// Of the edge, for http-01.
    pub http: u16,
    /// Of the edge, for tls-alpn-01.
    pub tls: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { dns: 53, http: 80, tls: 443 }
    }
}

fn three() -> u32 {
    3
}

fn call() -> u64 {
    30
}

fn order() -> u64 {
    300
}

impl Config {
    /// How long one call may take.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.call_timeout_s.clamp(1, 600))
    }

    /// How long one order may take.
    pub fn order_timeout(&self) -> Duration {
        Duration::from_secs(self.order_timeout_s.clamp(10, 3600))
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// No issuer, two of one name, a directory that is no https URL.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.issuers.is_empty() {
            bail!("[acme] names no issuer: add one to `issuers`, or leave the section out");
        }
        for (n, issuer) in self.issuers.iter().enumerate() {
            if self.issuers.iter().take(n).any(|other| other.name == issuer.name) {
                bail!(
                    "[acme] has two issuers named {}: the name is the key of our account there",
                    issuer.name
                );
            }
            if !issuer.directory.starts_with("https://") {
                bail!("[acme] issuer {}: `directory` must begin with https://", issuer.name);
            }
            if let Some(bad) = issuer.contact.iter().find(|contact| !contact.starts_with("mailto:")) {
                bail!("[acme] issuer {}: contact {bad:?} is no mailto: address", issuer.name);
            }
        }
        Ok(())
    }
}
