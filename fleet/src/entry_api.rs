//! What entries ask of control about certificates (leases, orders, challenges, outcomes), and what they tell it of health checks. Entries
//! decide, control writes.
//!
//! C = `/internal/v1/certificates/{name}`. All take an entry's certificate; all but the first two and the challenges need the lease.
//!
//! | call | body → answer |
//! | --- | --- |
//! | `POST /internal/v1/certificates` | [`Platform`] → [`Empty`](crate::rpc::Empty): the platform's own are wanted |
//! | `POST C/lease` | → [`Lease`], or 409: who has it; `DELETE` gives it back |
//! | `POST C/order` | [`Order`] → `Empty`, or 429: the issuer's limits are reached |
//! | `POST C/request` | → [`SigningRequest`]: made in the machine, whose key it is |
//! | `POST C/issued` | [`Issued`] |
//! | `POST C/failed` | [`Failed`] |
//! | `POST C/window` | [`Window`] |
//! | `POST /internal/v1/challenges` | [`ShowChallenge`] → [`Shown`]; `DELETE …/{id}` |
//! | `POST /internal/v1/checks` | [`CheckReport`] → `Empty`: what the entry's health checks find; in memory only |
//! | `GET /internal/v1/acme-accounts/{issuer}` | → [`AcmeAccount`](crate::record::AcmeAccount) or `null` |
//! | `PUT /internal/v1/acme-accounts/{issuer}` | [`PutAccount`] → [`AcmeAccount`](crate::record::AcmeAccount): the one in force |
//! | `POST /internal/v1/acme-accounts/{issuer}/rollover` | [`Roll`] → `AcmeAccount`: a step of a change of its key |

use serde::{Deserialize, Serialize};

use crate::api::CheckStatus;
use crate::id::{ChallengeId, DomainName, IssuerName, MachineId};
use crate::record::{Certificate, Show, UnixMs};
use crate::sealed::Sealed;

/// Where certificates are worked on.
pub const CERTIFICATES: &str = "/internal/v1/certificates";

/// Where challenges are put.
pub const CHALLENGES: &str = "/internal/v1/challenges";

/// Where accounts at issuers are put.
pub const ACME_ACCOUNTS: &str = "/internal/v1/acme-accounts";

/// The platform's own certificate is to be there: its first name, and all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `*.APEX` and `APEX`.
    pub names: Vec<DomainName>,
}

/// The certificate is the asker's until then, and longer when it asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// By control's clock.
    pub until: UnixMs,
    /// The record under the lease: what is to be done is decided by this, since a replica may lag behind.
    pub certificate: Certificate,
}

/// An order is about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Where.
    pub issuer: IssuerName,
}

/// A certificate request whose key is in the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningRequest {
    /// PKCS#10 in PEM.
    pub csr_pem: String,
}

/// A certificate is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// By whom.
    pub issuer: IssuerName,
    /// PEM, the certificate first.
    pub chain_pem: String,
    /// The private key in PEM (PKCS#8), sealed to `certificates/NAME`; none when the machine holds it.
    #[serde(default)]
    pub key: Option<Sealed>,
    /// When it is to be renewed.
    pub renew_at: UnixMs,
    /// When the issuer is asked for its window; none when it has none.
    #[serde(default)]
    pub ask_window_at: Option<UnixMs>,
}

/// An attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Where.
    pub issuer: IssuerName,
    /// What was tried and what came back.
    pub what: String,
    /// What a person can do.
    pub hint: String,
    /// Not tried before.
    pub next_try_at: UnixMs,
    /// Names whose validation failed: they count at the issuer.
    #[serde(default)]
    pub invalid: Vec<DomainName>,
    /// The issuer said that it is too much.
    #[serde(default)]
    pub limited: Option<Limited>,
}

/// What an issuer wants to hear less of (429, 503, `Retry-After`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    /// Not before.
    pub until: UnixMs,
    /// Of all that is ours; of this certificate alone when not, so that one name's limit stops no other.
    pub all: bool,
}

/// When the issuer wants the certificate to be renewed (RFC 9773).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// A moment in the window; none: as it was.
    #[serde(default)]
    pub renew_at: Option<UnixMs>,
    /// When it is asked again.
    pub ask_window_at: UnixMs,
}

/// A challenge is to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowChallenge {
    /// For which certificate: the asker has its lease.
    pub certificate: DomainName,
    /// The name that is validated, without `*.`.
    pub name: DomainName,
    /// What.
    pub show: Show,
}

/// The challenge's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// For its removal.
    pub id: ChallengeId,
}

/// An account at an issuer was made, or its key changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAccount {
    /// The issuer's directory.
    pub directory: String,
    /// Sealed to `acme-accounts/ISSUER`.
    pub credentials: Sealed,
    /// What it takes the place of: none for a first one. When something else is on record, that stays and is the answer.
    #[serde(default)]
    pub replaces: Option<Sealed>,
}

/// Where entries tell what their health checks find.
pub const CHECKS: &str = "/internal/v1/checks";

/// The most checks in one report.
pub const MOST_CHECKS: usize = 20_000;

/// The longest output of a check, characters.
pub const LONGEST_OUTPUT: usize = 200;

/// What an entry's health checks find: what has changed since its last report, and now and then all of it, since control keeps it in
/// memory only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// It is all: what is not in it is not looked at any more.
    pub whole: bool,
    /// The checks.
    pub checks: Vec<CheckFound>,
}

/// What was found of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFound {
    /// Whose.
    pub machine: MachineId,
    /// The service, by its `internal_port`.
    pub port: u16,
    /// The check's place in the service.
    pub number: usize,
    /// What it comes to.
    pub status: CheckStatus,
    /// For people.
    pub output: String,
    /// Since when, by the entry's clock.
    pub since: UnixMs,
}

/// A step of the change of an account's key. Nothing happens where the present one is not the one that was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The present one, as it is on record.
    pub credentials: Sealed,
    /// The step.
    pub step: RollStep,
}

/// The steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollStep {
    /// This is to be the next key, where there is none: before the issuer hears of it.
    Next(Sealed),
    /// The issuer has changed to the next key.
    Done,
    /// The issuer will not change.
    Refused {
        /// Its words.
        what: String,
        /// What a person can do.
        hint: String,
    },
}
