//! Control, as the gateway calls it: the first of its addresses that can be reached.

use std::net::Ipv4Addr;

use http::{HeaderName, HeaderValue, Method, Response};
use mashines_fleet::access::Standing;
use mashines_fleet::api::{ACCOUNT_HEADER, ACT_FOR_HEADER, ROLE_HEADER};
use mashines_fleet::id::AccountId;
use mashines_fleet::pki::{Identity, PkiError};
use mashines_fleet::rpc::{Client, RpcError};
use serde::{Deserialize, Serialize};

/// A public key to be certified.
#[derive(Debug, Serialize)]
struct CertificateRequest<'a> {
    public_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
}

/// The certificate, one line.
#[derive(Debug, Deserialize)]
struct CertificateAnswer {
    certificate: String,
}

/// For whom the gateway asks, and as what they are known there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The account.
    pub account: AccountId,
    /// What they are in it.
    pub standing: Standing,
}

/// An account to be made.
#[derive(Debug, Serialize)]
pub struct NewAccount<'a> {
    /// The key that was proved, one line.
    pub public_key: &'a str,
    /// The wanted name.
    pub name: &'a str,
    /// An invite, where one is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invite: Option<&'a str>,
    /// Where the person is, for limits.
    pub source: std::net::IpAddr,
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
        self.ask_certificate("/internal/v1/ssh/certificates", public_key, None).await
    }

    /// A host certificate of the platform's SSH CA for `public_key`: it answers to the names of this entry, and to those of the
    /// machines at one of its shared addresses.
    pub async fn certify_host(
        &self,
        public_key: &str,
        address: Option<Ipv4Addr>,
    ) -> Result<String, ControlError> {
        self.ask_certificate("/internal/v1/ssh/host-certificates", public_key, address).await
    }

    /// Makes an account for somebody whom nobody knows yet.
    pub async fn sign_up(&self, new: &NewAccount<'_>) -> Result<(), ControlError> {
        let mut last = ControlError::NoAddress;
        for client in &self.clients {
            match client.post::<_, serde_json::Value>("/internal/v1/sign-up", new).await {
                Ok(_account) => return Ok(()),
                Err(error @ RpcError::Unanswered { sent: false, .. }) => last = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last)
    }

    async fn ask_certificate(
        &self,
        path: &str,
        public_key: &str,
        address: Option<Ipv4Addr>,
    ) -> Result<String, ControlError> {
        let mut last = ControlError::NoAddress;
        for client in &self.clients {
            let request = CertificateRequest { public_key, address };
            match client.post::<_, CertificateAnswer>(path, &request).await {
                Ok(answer) => return Ok(answer.certificate),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// A call of the public API for `caller`. Another address is tried only while the request surely reached nobody.
    pub async fn on_behalf(
        &self,
        caller: &Caller,
        call: Call,
    ) -> Result<Response<bytes::Bytes>, ControlError> {
        let mut last = ControlError::NoAddress;
        // An account's id is a DNS label, so it always is a header value.
        let Ok(account) = HeaderValue::from_str(caller.account.as_str()) else { return Err(last) };
        let mut headers = vec![(HeaderName::from_static(ACCOUNT_HEADER), account)];
        if let Standing::As(role) = caller.standing {
            let Ok(role) = HeaderValue::from_str(&role.to_string()) else { return Err(last) };
            headers.push((HeaderName::from_static(ROLE_HEADER), role));
        }
        if let Some(account) = &call.act_for {
            let Ok(account) = HeaderValue::from_str(account) else { return Err(last) };
            headers.push((HeaderName::from_static(ACT_FOR_HEADER), account));
        }
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
    /// The account it is for, when that is not the caller's own.
    pub act_for: Option<String>,
}
