//! Control, as the gateway calls it: the first of its addresses that can be reached.

use http::{HeaderName, HeaderValue, Method, Response};
use mashines_fleet::api::ACCOUNT_HEADER;
use mashines_fleet::id::AccountId;
use mashines_fleet::pki::{Identity, PkiError};
use mashines_fleet::rpc::{Client, RpcError};
use serde::{Deserialize, Serialize};

/// A public key to be certified.
#[derive(Debug, Serialize)]
struct CertificateRequest<'a> {
    public_key: &'a str,
}

/// The certificate, one line.
#[derive(Debug, Deserialize)]
struct CertificateAnswer {
    certificate: String,
}

/// Why control gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The `[gateway]` section names no address.
    #[error("the configuration of this entry names no address of control: set `control` in [gateway]")]
    NoAddress,
    /// The call failed at each address; this is the last error.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// Clients of control's addresses, in the order of preference.
#[derive(Clone, Default)]
pub struct Control {
    clients: Vec<Client>,
}

impl Control {
    /// Clients of `urls` that show `identity`.
    pub fn new(identity: &Identity, urls: &[String]) -> Result<Self, PkiError> {
        let clients = urls.iter().map(|url| Client::to_control(identity, url)).collect::<Result<_, _>>()?;
        Ok(Self { clients })
    }

    /// A certificate of the platform's SSH CA for `public_key`, which enters machines as root.
    pub async fn certify(&self, public_key: &str) -> Result<String, ControlError> {
        self.ask_certificate("/internal/v1/ssh/certificates", public_key).await
    }

    /// A host certificate of the platform's SSH CA for `public_key`: it answers to the names of this entry.
    pub async fn certify_host(&self, public_key: &str) -> Result<String, ControlError> {
        self.ask_certificate("/internal/v1/ssh/host-certificates", public_key).await
    }

    async fn ask_certificate(&self, path: &str, public_key: &str) -> Result<String, ControlError> {
        let mut last = ControlError::NoAddress;
        for client in &self.clients {
            let request = CertificateRequest { public_key };
            match client.post::<_, CertificateAnswer>(path, &request).await {
                Ok(answer) => return Ok(answer.certificate),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// A call of the public API for `account`. Another address is tried only while the request surely reached nobody.
    pub async fn on_behalf(
        &self,
        account: &AccountId,
        call: Call,
    ) -> Result<Response<bytes::Bytes>, ControlError> {
        let mut last = ControlError::NoAddress;
        // An account's id is a DNS label, so it always is a header value.
        let Ok(value) = HeaderValue::from_str(account.as_str()) else { return Err(last) };
        let headers = [(HeaderName::from_static(ACCOUNT_HEADER), value)];
        for client in &self.clients {
            let client = client.with_timeout(call.timeout);
            match client.request(call.method.clone(), &call.path, &headers, call.body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error @ RpcError::Unanswered { sent: false, .. }) => last = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last)
    }
}

/// One call of the public API.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON, or nothing.
    pub body: bytes::Bytes,
    /// How long the answer may take.
    pub timeout: std::time::Duration,
}
