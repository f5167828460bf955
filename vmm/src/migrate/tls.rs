//! mTLS between two monitors: TLS 1.3 only, both sides show a certificate of the fleet's CA, and each demands the one
//! DNS name that control told it. There is no fallback.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::cipher;
use crate::api::Tls;

/// What one side brings to each connection of one migration.
#[derive(Clone)]
pub struct Credentials {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    peer: ServerName<'static>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable or holds nothing usable.
    pub fn load(tls: &Tls) -> Result<Self> {
        let chain = certificates(&tls.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&tls.private_key)
            .map_err(|error| anyhow!("reading the private key {}: {error}", tls.private_key.display()))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&tls.ca)? {
            roots.add(certificate).with_context(|| format!("{} holds no usable CA", tls.ca.display()))?;
        }
        let roots = Arc::new(roots);
        let peer = ServerName::try_from(tls.peer_name.clone())
            .with_context(|| format!("the peer's name {:?} is no DNS name", tls.peer_name))?;

        let provider = Arc::new(provider());
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .with_context(|| format!("{} does not fit its key", tls.certificate.display()))?;
        client.resumption = rustls::client::Resumption::disabled();

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .with_context(|| format!("{} does not fit its key", tls.certificate.display()))?;
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server), peer })
    }

    /// A connection of the side that connects. It verifies the peer's name in the handshake.
    pub(super) fn connect(&self) -> Result<Connection> {
        Ok(ClientConnection::new(Arc::clone(&self.client), self.peer.clone())?.into())
    }

    /// A connection of the side that accepts.
    pub(super) fn accept(&self) -> Result<Connection> {
        Ok(ServerConnection::new(Arc::clone(&self.server))?.into())
    }

    /// After the handshake: the peer's certificate carries the name demanded.
    ///
    /// # Errors
    /// When it does not: another host of the fleet, which has no business here.
    pub(super) fn verify_peer(&self, connection: &Connection) -> Result<()> {
        let shown = connection
            .peer_certificates()
            .and_then(<[_]>::first)
            .context("the peer showed no certificate")?;
        let parsed = ParsedCertificate::try_from(shown)?;
        verify_server_name(&parsed, &self.peer)
            .with_context(|| format!("the peer's certificate is not that of {}", self.peer.to_str()))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| anyhow!("reading certificates from {}: {error}", path.display()))?;
    if all.is_empty() {
        return Err(anyhow!("{} holds no certificate", path.display()));
    }
    Ok(all)
}

/// aws-lc with the ciphers of TLS 1.3, the fastest of this CPU first. The source's order counts.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_256_GCM_SHA384];
    if cipher::chacha_is_faster() {
        cipher_suites.swap(0, 1);
    }
    CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() }
}
