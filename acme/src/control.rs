//! Control, as this role calls it: the first of its addresses that can be reached.

use bytes::Bytes;
use http::Method;
use mashines_fleet::entry_api::{
    ACME_ACCOUNTS, CERTIFICATES, CHALLENGES, Failed, Issued, Lease, Order, Platform, PutAccount,
    ShowChallenge, Shown, SigningRequest, Window,
};
use mashines_fleet::id::{ChallengeId, DomainName, IssuerName};
use mashines_fleet::pki::{Identity, PkiError};
use mashines_fleet::record::AcmeAccount;
use mashines_fleet::rpc::{Client, Empty, RpcError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Clients of control's addresses, in the order of preference.
#[derive(Clone)]
pub struct Control {
    clients: Vec<Client>,
}

impl Control {
    /// Clients of `urls` that show `identity`.
    ///
    /// # Errors
    /// The identity's key does not fit.
    pub fn new(identity: &Identity, urls: &[String]) -> Result<Self, PkiError> {
        let clients = urls.iter().map(|url| Client::to_control(identity, url)).collect::<Result<_, _>>()?;
        Ok(Self { clients })
    }

    /// The platform's own certificate is to be there.
    pub async fn want(&self, names: Vec<DomainName>) -> Result<(), RpcError> {
        self.call(Method::POST, CERTIFICATES, &Platform { names }).await.map(|Empty {}| ())
    }

    /// Takes or renews the lease.
    pub async fn lease(&self, name: &DomainName) -> Result<Lease, RpcError> {
        self.call(Method::POST, &of(name, "lease"), &Empty {}).await
    }

    /// Gives it back.
    pub async fn release(&self, name: &DomainName) -> Result<(), RpcError> {
        self.call(Method::DELETE, &of(name, "lease"), &Empty {}).await.map(|Empty {}| ())
    }

    /// Counts an order.
    pub async fn order(&self, name: &DomainName, issuer: &IssuerName) -> Result<(), RpcError> {
        let body = Order { issuer: issuer.clone() };
        self.call(Method::POST, &of(name, "order"), &body).await.map(|Empty {}| ())
    }

    /// A request that the machine signs.
    pub async fn request(&self, name: &DomainName) -> Result<String, RpcError> {
        let answer: SigningRequest = self.call(Method::POST, &of(name, "request"), &Empty {}).await?;
        Ok(answer.csr_pem)
    }

    /// There is a certificate.
    pub async fn issued(&self, name: &DomainName, body: &Issued) -> Result<(), RpcError> {
        self.call(Method::POST, &of(name, "issued"), body).await.map(|Empty {}| ())
    }

    /// There is none.
    pub async fn failed(&self, name: &DomainName, body: &Failed) -> Result<(), RpcError> {
        self.call(Method::POST, &of(name, "failed"), body).await.map(|Empty {}| ())
    }

    /// When it is to be renewed.
    pub async fn window(&self, name: &DomainName, body: &Window) -> Result<(), RpcError> {
        self.call(Method::POST, &of(name, "window"), body).await.map(|Empty {}| ())
    }

    /// Has a challenge shown.
    pub async fn show(&self, body: &ShowChallenge) -> Result<ChallengeId, RpcError> {
        let shown: Shown = self.call(Method::POST, CHALLENGES, body).await?;
        Ok(shown.id)
    }

    /// Ends that.
    pub async fn hide(&self, id: &ChallengeId) -> Result<(), RpcError> {
        self.call(Method::DELETE, &format!("{CHALLENGES}/{id}"), &Empty {}).await.map(|Empty {}| ())
    }

    /// Keeps an account at an issuer; the one in force.
    pub async fn account(&self, issuer: &IssuerName, body: &PutAccount) -> Result<AcmeAccount, RpcError> {
        self.call(Method::PUT, &format!("{ACME_ACCOUNTS}/{issuer}"), body).await
    }

    /// Another address is tried only while the request surely reached nobody.
    async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<A, RpcError> {
        let none = |why: String| RpcError::Unanswered {
            method: method.clone(),
            url: path.to_owned(),
            why,
            sent: false,
        };
        let body: Bytes = serde_json::to_vec(body).map_err(|error| none(error.to_string()))?.into();
        let mut last = none("no address of control is known: set `control_urls`".to_owned());
        for client in &self.clients {
            match client.request(method.clone(), path, &[], body.clone()).await {
                Ok(answer) => {
                    return serde_json::from_slice(answer.body()).map_err(|error| RpcError::Garbled {
                        method,
                        url: path.to_owned(),
                        why: error.to_string(),
                    });
                }
                Err(error @ RpcError::Unanswered { sent: false, .. }) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

fn of(name: &DomainName, what: &str) -> String {
    format!("{CERTIFICATES}/{name}/{what}")
}
