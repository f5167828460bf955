//! What this role asks of control.

use http::Method;
use mashines_fleet::entry_api::{
    ACME_ACCOUNTS, CERTIFICATES, CHALLENGES, Failed, Issued, Lease, Order, Platform, PutAccount, Roll,
    ShowChallenge, Shown, SigningRequest, Window,
};
use mashines_fleet::id::{ChallengeId, DomainName, IssuerName};
use mashines_fleet::pki::{Identity, PkiError};
use mashines_fleet::record::AcmeAccount;
use mashines_fleet::rpc::{self, Empty, RpcError};

/// Control, by this role's calls.
#[derive(Clone)]
pub struct Control(rpc::Control);

impl Control {
    /// Control at `urls`, which is shown `identity`.
    ///
    /// # Errors
    /// The identity's key does not fit.
    pub fn new(identity: &Identity, urls: &[String]) -> Result<Self, PkiError> {
        Ok(Self(rpc::Control::new(identity, urls)?))
    }

    /// The platform's own certificate is to be there.
    pub async fn want(&self, names: Vec<DomainName>) -> Result<(), RpcError> {
        self.0.tell(Method::POST, CERTIFICATES, &Platform { names }).await.map(|Empty {}| ())
    }

    /// Takes or renews the lease.
    pub async fn lease(&self, name: &DomainName) -> Result<Lease, RpcError> {
        self.0.tell(Method::POST, &of(name, "lease"), &Empty {}).await
    }

    /// Gives it back.
    pub async fn release(&self, name: &DomainName) -> Result<(), RpcError> {
        self.0.tell(Method::DELETE, &of(name, "lease"), &Empty {}).await.map(|Empty {}| ())
    }

    /// Counts an order.
    pub async fn order(&self, name: &DomainName, issuer: &IssuerName) -> Result<(), RpcError> {
        let body = Order { issuer: issuer.clone() };
        self.0.tell(Method::POST, &of(name, "order"), &body).await.map(|Empty {}| ())
    }

    /// A request that the machine signs.
    pub async fn request(&self, name: &DomainName) -> Result<String, RpcError> {
        let answer: SigningRequest = self.0.tell(Method::POST, &of(name, "request"), &Empty {}).await?;
        Ok(answer.csr_pem)
    }

    /// There is a certificate.
    pub async fn issued(&self, name: &DomainName, body: &Issued) -> Result<(), RpcError> {
        self.0.tell(Method::POST, &of(name, "issued"), body).await.map(|Empty {}| ())
    }

    /// There is none.
    pub async fn failed(&self, name: &DomainName, body: &Failed) -> Result<(), RpcError> {
        self.0.tell(Method::POST, &of(name, "failed"), body).await.map(|Empty {}| ())
    }

    /// When it is to be renewed.
    pub async fn window(&self, name: &DomainName, body: &Window) -> Result<(), RpcError> {
        self.0.tell(Method::POST, &of(name, "window"), body).await.map(|Empty {}| ())
    }

    /// Has a challenge shown.
    pub async fn show(&self, body: &ShowChallenge) -> Result<ChallengeId, RpcError> {
        let shown: Shown = self.0.tell(Method::POST, CHALLENGES, body).await?;
        Ok(shown.id)
    }

    /// Ends that.
    pub async fn hide(&self, id: &ChallengeId) -> Result<(), RpcError> {
        self.0.tell(Method::DELETE, &format!("{CHALLENGES}/{id}"), &Empty {}).await.map(|Empty {}| ())
    }

    /// A step of the change of an account's key; the account as it is then.
    pub async fn roll(&self, issuer: &IssuerName, body: &Roll) -> Result<AcmeAccount, RpcError> {
        self.0.tell(Method::POST, &format!("{ACME_ACCOUNTS}/{issuer}/rollover"), body).await
    }

    /// Our account at an issuer, as it is now.
    pub async fn account(&self, issuer: &IssuerName) -> Result<Option<AcmeAccount>, RpcError> {
        self.0.get(&format!("{ACME_ACCOUNTS}/{issuer}")).await
    }

    /// Keeps an account at an issuer; the one in force.
    pub async fn keep_account(
        &self,
        issuer: &IssuerName,
        body: &PutAccount,
    ) -> Result<AcmeAccount, RpcError> {
        self.0.tell(Method::PUT, &format!("{ACME_ACCOUNTS}/{issuer}"), body).await
    }
}

fn of(name: &DomainName, what: &str) -> String {
    format!("{CERTIFICATES}/{name}/{what}")
}
