//! TLS 1.2 and 1.3 as the edge speaks it: which settings a handshake has.
//!
//! One certificate resolver and one maker of tickets serve all names; what differs between ports (ALPN, versions) is a configuration of its
//! own, kept. Key exchange prefers the post-quantum hybrid X25519MLKEM768, then X25519, P-256, P-384. There is no early data: a
//! request that came in it could be played back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use mashines_fleet::sealed::EntrySecret;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::sync::watch;

use super::certs::Certs;
use super::tickets::Tickets;

/// The protocol of an issuer that validates a name (RFC 8737).
pub const ACME_TLS_1: &[u8] = b"acme-tls/1";

/// Configurations that are kept: tenants may think of many.
const KEPT: usize = 256;

/// What of TLS a port's owner may choose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Terms {
    /// What ALPN offers, the best first.
    pub alpn: Vec<Vec<u8>>,
    /// TLS 1.2 as well as 1.3.
    pub tls12: bool,
    /// TLS 1.3 as well as 1.2.
    pub tls13: bool,
}

/// Makes configurations.
#[derive(Debug)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
    tickets: Arc<Tickets>,
    kept: Mutex<HashMap<Terms, Arc<ServerConfig>>>,
}

impl Tls {
    /// With those certificates and the secret that tickets are sealed with.
    pub fn new(certs: watch::Receiver<Arc<Certs>>, secret: watch::Receiver<Option<EntrySecret>>) -> Self {
        Self {
            provider: Arc::new(provider()),
            resolver: Arc::new(Resolver { certs }),
            tickets: Arc::new(Tickets::new(secret)),
            kept: Mutex::default(),
        }
    }

    /// The configuration for those terms.
    ///
    /// # Errors
    /// None that is known: rustls' own algorithms fit together.
    pub fn config(&self, terms: &Terms) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = kept.get(terms) {
            return Ok(Arc::clone(config));
        }
        let versions: &[&SupportedProtocolVersion] = match (terms.tls12, terms.tls13) {
            (true, false) => &[&TLS12],
            (false, true) => &[&TLS13],
            (true, true) | (false, false) => &[&TLS12, &TLS13],
        };
        let resolver = Arc::clone(&self.resolver);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols.clone_from(&terms.alpn);
        config.ticketer = Arc::clone(&self.tickets) as _;
        // Sessions are in tickets alone: a store would be of this entry only.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        // All of them are good; testssl.sh, which people judge us by, wants it to be the server that chooses.
        config.ignore_client_order = true;
        if kept.len() >= KEPT {
            kept.clear();
        }
        let config = Arc::new(config);
        kept.insert(terms.clone(), Arc::clone(&config));
        Ok(config)
    }

    /// The configuration that answers an issuer: a self-signed certificate with the digest in it, and no other protocol (RFC 8737 §3).
    ///
    /// # Errors
    /// The digest is none, or the name is none.
    pub fn challenge(&self, name: &str, digest: &str) -> anyhow::Result<Arc<ServerConfig>> {
        let mut sha256 = [0; 32];
        hex::decode_to_slice(digest, &mut sha256).context("the challenge's digest is not 64 hex digits")?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions.push(rcgen::CustomExtension::new_acme_identifier(&sha256));
        let key = rcgen::KeyPair::generate()?;
        let chain = vec![params.self_signed(&key)?.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS12, &TLS13])?
            .with_no_client_auth()
            // Without rustls' check that key and chain are a pair: it takes no certificate with a critical extension that it does not know.
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
                chain,
                any_supported_type(&key)?,
            ))));
        config.alpn_protocols = vec![ACME_TLS_1.to_vec()];
        Ok(Arc::new(config))
    }
}

/// rustls' algorithms, AES-128 first: it is the fastest wherever there are instructions for it.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

/// The certificate of the name that the client wants, as it is at the moment.
struct Resolver {
    certs: watch::Receiver<Arc<Certs>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.trim_end_matches('.').to_ascii_lowercase();
        self.certs.borrow().find(&name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hex_digits() {
        let (_, certs) = watch::channel(Arc::default());
        let (_, secret) = watch::channel(None);
        let tls = Tls::new(certs, secret);
        assert!(tls.challenge("a.example", &"0f".repeat(32)).is_ok());
        for bad in ["", "0f", &"0g".repeat(32), &"+f".repeat(32), &"0f".repeat(33)] {
            assert!(tls.challenge("a.example", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn configurations_are_kept_and_bounded() {
        let (_, certs) = watch::channel(Arc::default());
        let (_, secret) = watch::channel(None);
        let tls = Tls::new(certs, secret);
        let terms =
            |name: usize| Terms { alpn: vec![name.to_string().into_bytes()], tls12: true, tls13: true };
        let one = tls.config(&terms(0)).unwrap();
        assert!(Arc::ptr_eq(&one, &tls.config(&terms(0)).unwrap()));
        for name in 0..KEPT * 2 {
            tls.config(&terms(name)).unwrap();
        }
        assert!(tls.kept.lock().unwrap().len() <= KEPT);
    }
}
