//! HTTPS towards issuers: bounded in time and size, and an ear for `Retry-After`.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Limited;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use mashines_fleet::issuance::ms;
use mashines_fleet::record::UnixMs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The longest answer, bytes: a chain is some thousand.
const MAX_ANSWER: usize = 256 << 10;

/// The longest pause that an issuer can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);

/// When an issuer said that it may be asked again.
#[derive(Debug, Clone, Default)]
pub struct Pause(Arc<Mutex<Option<UnixMs>>>);

impl Pause {
    /// What was said last, forgotten with this.
    pub fn take(&self) -> Option<UnixMs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, until: UnixMs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

/// One issuer's client. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Http {
    pool: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    timeout: Duration,
    pause: Pause,
}

impl Http {
    /// For an issuer whose TLS certificate is a public one, or from the CA in that file.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn new(ca_file: Option<&Path>, timeout: Duration) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let read = || format!("the issuer's CA {}", path.display());
                for certificate in CertificateDer::pem_file_iter(path).with_context(read)? {
                    roots.add(certificate.with_context(read)?).with_context(read)?;
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS towards issuers")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(timeout));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(connector);
        let pool = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(https);
        Ok(Self { pool, timeout, pause: Pause::default() })
    }

    /// Its ear.
    pub fn pause(&self) -> &Pause {
        &self.pause
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (pool, timeout, pause) = (self.pool.clone(), self.timeout, self.pause.clone());
        Box::pin(async move {
            let what = format!("{} {}", request.method(), request.uri());
            let whole = async {
                let answer = pool.request(request).await;
                let answer = answer.map_err(|error| failed(&what, &crate::fault::chain(&error)))?;
                let (parts, body) = answer.into_parts();
                if matches!(parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
                    && let Some(until) = parts.headers.get(header::RETRY_AFTER).and_then(retry_at)
                {
                    pause.note(until);
                }
                // Read here, so that the time-out covers the body too.
                let body = http_body_util::BodyExt::collect(Limited::new(body, MAX_ANSWER)).await;
                let body = body.map_err(|error| failed(&what, &error.to_string()))?.to_bytes();
                if !parts.status.is_success() && !body.starts_with(b"{") {
                    // A load balancer's page, or a proxy's: the client could say only that it is no JSON.
                    return Err(failed(&what, &parts.status.to_string()));
                }
                Ok(BytesResponse { parts, body: Box::new(body) })
            };
            tokio::time::timeout(timeout, whole)
                .await
                .unwrap_or_else(|_| Err(failed(&what, &format!("no answer within {timeout:?}"))))
        })
    }
}

fn failed(what: &str, why: &str) -> Error {
    Error::Other(format!("{what}: {why}").into())
}

/// RFC 9110 §10.2.3: seconds or a date.
fn retry_at(value: &http::HeaderValue) -> Option<UnixMs> {
    let text = value.to_str().ok()?.trim();
    let now = SystemTime::now();
    let at = match text.parse::<u64>() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds).min(LONGEST_PAUSE))?,
        Err(_) => httpdate::parse_http_date(text).ok()?.min(now.checked_add(LONGEST_PAUSE)?),
    };
    at.duration_since(UNIX_EPOCH).ok().map(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_never_beyond_a_week() {
        let at = |text: &str| retry_at(&http::HeaderValue::from_str(text).unwrap());
        let now = ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        let hour = at("3600").unwrap();
        assert!((now + 3_590_000..now + 3_610_000).contains(&hour));
        assert_eq!(at("Fri, 31 Dec 1999 23:59:59 GMT"), Some(946_684_799_000));
        let week = now + ms(LONGEST_PAUSE) + 10_000;
        assert!(
            at("99999999999999").unwrap() <= week && at("Tue, 31 Dec 2999 23:59:59 GMT").unwrap() <= week
        );
        assert_eq!(at("soon"), None);
    }
}
