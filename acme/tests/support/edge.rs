//! The fleet's edge, as far as challenges go: port 80 and port 443, which show what the records say.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use mashines_fleet::record::Show;
use mashines_fleet::view::View;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Views = watch::Receiver<Arc<View>>;

pub struct Edge {
    pub http: u16,
    pub tls: u16,
}

impl Edge {
    pub async fn start(views: Views) -> Self {
        let web = TcpListener::bind((super::LOCAL, 0)).await.unwrap();
        let http = web.local_addr().unwrap().port();
        let app =
            Router::new().route("/.well-known/acme-challenge/{token}", get(token)).with_state(views.clone());
        tokio::spawn(async move { axum::serve(web, app).await });
        let listener = TcpListener::bind((super::LOCAL, 0)).await.unwrap();
        let tls = listener.local_addr().unwrap().port();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(views)));
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
            }
        });
        Self { http, tls }
    }
}

async fn token(
    State(views): State<Views>,
    Path(token): Path<String>,
    headers: axum::http::HeaderMap,
) -> Result<String, StatusCode> {
    let host = headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default();
    let view = Arc::clone(&views.borrow());
    let found = view.challenges.values().filter(|c| c.name.as_str() == host).find_map(|c| match &c.show {
        Show::Http01 { token: t, authorization } if *t == token => Some(authorization.clone()),
        _ => None,
    });
    found.ok_or(StatusCode::NOT_FOUND)
}

#[derive(Debug)]
struct Shown(Views);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        let view = Arc::clone(&self.0.borrow());
        let digest =
            view.challenges.values().filter(|c| c.name.as_str() == name).find_map(|c| match &c.show {
                Show::TlsAlpn01 { digest } => hex::decode(digest).ok(),
                _ => None,
            })?;
        let key = KeyPair::generate().ok()?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).ok()?;
        params.custom_extensions.push(CustomExtension::new_acme_identifier(&digest));
        let certificate = params.self_signed(&key).ok()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).ok()?;
        Some(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
    }
}
