//! What the gateway asks of control.

use std::net::Ipv4Addr;

use http::{HeaderName, HeaderValue, Method, Response};
use mashines_fleet::access::Standing;
use mashines_fleet::api::{ACCOUNT_HEADER, ACT_FOR_HEADER, ROLE_HEADER};
use mashines_fleet::entry_api::{CHECKS, CheckReport};
use mashines_fleet::id::AccountId;
use mashines_fleet::pki::{Identity, PkiError};
use mashines_fleet::rpc::{self, Empty, RpcError};
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

/// Control, by the gateway's calls.
#[derive(Clone, Default)]
pub struct Control(rpc::Control);

impl Control {
    /// Control at `urls`, which is shown `identity`.
    pub fn new(identity: &Identity, urls: &[String]) -> Result<Self, PkiError> {
        Ok(Self(rpc::Control::new(identity, urls)?))
    }

    /// A certificate of the platform's SSH CA for `public_key`, which enters machines as root.
    pub async fn certify(&self, public_key: &str) -> Result<String, RpcError> {
        self.ask_certificate("/internal/v1/ssh/certificates", public_key, None).await
    }

    /// A host certificate of the platform's SSH CA for `public_key`: it answers to the names of this entry, and to those of the
    /// machines at one of its shared addresses.
    pub async fn certify_host(
        &self,
        public_key: &str,
        address: Option<Ipv4Addr>,
    ) -> Result<String, RpcError> {
        self.ask_certificate("/internal/v1/ssh/host-certificates", public_key, address).await
    }

    /// Whether there is any control to ask.
    pub fn is_known(&self) -> bool {
        self.0.is_known()
    }

    /// Tells what health checks find.
    pub async fn checks(&self, report: &CheckReport) -> Result<(), RpcError> {
        self.0.ask(CHECKS, report).await.map(|Empty {}| ())
    }

    /// Makes an account for somebody whom nobody knows yet.
    pub async fn sign_up(&self, new: &NewAccount<'_>) -> Result<(), RpcError> {
        self.0.tell(Method::POST, "/internal/v1/sign-up", new).await.map(|_account: serde_json::Value| ())
    }

    async fn ask_certificate(
        &self,
        path: &str,
        public_key: &str,
        address: Option<Ipv4Addr>,
    ) -> Result<String, RpcError> {
        let request = CertificateRequest { public_key, address };
        let answer: CertificateAnswer = self.0.ask(path, &request).await?;
        Ok(answer.certificate)
    }

    /// A call of the public API for `caller`. Another address is tried only while the request surely reached nobody.
    pub async fn on_behalf(&self, caller: &Caller, call: Call) -> Result<Response<bytes::Bytes>, RpcError> {
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|error| RpcError::Unanswered {
                method: call.method.clone(),
                url: call.path.clone(),
                why: format!("{text:?} is no header: {error}"),
                sent: false,
            })
        };
        let mut headers = vec![(HeaderName::from_static(ACCOUNT_HEADER), value(caller.account.as_str())?)];
        if let Standing::As(role) = caller.standing {
            headers.push((HeaderName::from_static(ROLE_HEADER), value(&role.to_string())?));
        }
        if let Some(account) = &call.act_for {
            headers.push((HeaderName::from_static(ACT_FOR_HEADER), value(account)?));
        }
        let control = self.0.with_timeout(call.timeout);
        control.request(call.method.clone(), &call.path, &headers, call.body.clone()).await
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
