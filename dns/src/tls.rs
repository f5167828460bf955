//! The certificate that DNS over TLS shows: the platform's where it covers a name server's name, else one signed by itself.
//!
//! Resolvers that ask authorities over TLS do so opportunistically (RFC 9539) and look at no name; who does look finds the platform's.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use mashines_fleet::key::Key;
use mashines_fleet::record::Certificate;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::warn;

/// Shows the newest certificate there is.
#[derive(Debug)]
pub struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Shown {
    /// One signed by itself, for the time before there is another.
    ///
    /// # Errors
    /// The cryptographic library's.
    pub fn self_signed() -> anyhow::Result<Arc<Self>> {
        let made = rcgen::generate_simple_self_signed(["dns.mashines.internal".to_owned()])
            .context("a certificate of its own for DNS over TLS")?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let certified =
            CertifiedKey::from_der(vec![made.cert.der().clone()], key, &aws_lc_rs::default_provider())?;
        Ok(Arc::new(Self(RwLock::new(Arc::new(certified)))))
    }

    /// Takes the certificate of the view that covers a name server's name and is good the longest, if there is one.
    pub fn update(&self, view: &View, secret: Option<&EntrySecret>) {
        let (Some(config), Some(secret)) = (&view.config, secret) else { return };
        let covers = |certificate: &&Arc<Certificate>| {
            let servers = config.name_servers.iter().map(|server| server.name.trim_end_matches('.'));
            servers
                .into_iter()
                .any(|server| certificate.names.iter().any(|name| matches(name.as_str(), server)))
        };
        let usable =
            view.certificates.values().filter(|c| c.chain_pem.is_some() && c.key.is_some()).filter(covers);
        let Some(best) = usable.max_by_key(|certificate| certificate.not_after) else { return };
        match open(best, secret) {
            Ok(opened) => *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(opened),
            Err(error) => {
                warn!(certificate = %best.id, %error, "this certificate is not shown by DNS over TLS")
            }
        }
    }
}

fn open(certificate: &Certificate, secret: &EntrySecret) -> anyhow::Result<CertifiedKey> {
    let chain = certificate.chain_pem.as_deref().unwrap_or_default();
    let sealed = certificate.key.as_ref().context("its key is with the machine")?;
    let pem = secret.open(&Key::Certificate(certificate.id.clone()), sealed)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| anyhow::anyhow!("its key is no PEM"))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
    Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
}

/// Whether a certificate's name (perhaps `*.…`) stands for a server's.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// What listeners of TLS need.
///
/// # Errors
/// The cryptographic library's.
pub fn server_config(shown: Arc<Shown>) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"dot".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(matches("*.mashine.dev", "ns1.mashine.dev"));
        assert!(matches("ns1.mashine.dev", "NS1.mashine.dev"));
        assert!(!matches("*.mashine.dev", "a.ns.mashine.dev"));
        assert!(!matches("*.mashine.dev", "mashine.dev"));
    }
}
