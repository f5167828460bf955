//! Names and their certificates: which may be had, who has proved what, what goes when its machine goes.
//!
//! ```text
//!  a person adds a name ──▶ its own? (below the apex) ────────────────▶ Certificate, wanted ──▶ entries order it
//!                           └ a domain ─▶ Domain + Certificate ─ proof seen ┘
//!                             └ another account's ─▶ claim (private) ─ proof seen ─▶ the domain changes hands, its old key goes
//! ```
//!
//! Invariants:
//! - A name is one account's at a time. It changes hands only by a proof that the new account alone can have given: a TXT record with
//!   the text that it was told, or a CNAME to a machine of its own.
//! - A certificate has the name, account and machine of its domain; both are written in one transaction.
//! - What its owner has not proved is not ordered and not served ([`mashines_fleet::issuance::entitled`]).

pub mod in_machine;
pub mod keeper;
pub mod names;
pub mod ownership;

use mashines_fleet::id::{AccountId, DomainName, MachineId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Certificate, CertificateSource, Domain, UnixMs};
use mashines_fleet::view::View;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::records::{Edit, Private};
use crate::time::now;

/// Names of an account, its machines' own among them.
pub const MOST_NAMES: usize = 100;

/// What an account has to show for a name that another account has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claim {
    /// The machine that is to serve it.
    pub machine: MachineId,
    /// As in [`Domain`].
    pub proof: String,
    /// When it was made.
    pub created_at: UnixMs,
}

impl Claim {
    /// The domain as it is once the claim is proved.
    pub fn domain(&self, name: &DomainName, account: &AccountId) -> Domain {
        Domain {
            id: name.clone(),
            account: account.clone(),
            machine: self.machine.clone(),
            proof: self.proof.clone(),
            verified_at: None,
            checked_at: None,
            problem: None,
            created_at: self.created_at,
        }
    }
}

/// A new text to be put into a zone. Who knows it gains nothing: it must be in the zone.
pub fn new_proof() -> String {
    format!("mashines-{}", hex::encode(rand::random::<[u8; 16]>()))
}

/// The platform's own names.
pub fn platform(view: &View) -> Option<Vec<DomainName>> {
    let domain = &view.config.as_ref()?.domain;
    Some(vec![format!("*.{domain}").parse().ok()?, domain.parse().ok()?])
}

/// A certificate that is not there yet.
pub fn wanted(
    names: Vec<DomainName>,
    of: Option<(&AccountId, &MachineId)>,
    source: CertificateSource,
) -> Result<Certificate> {
    let id = names.first().cloned().ok_or_else(|| Failure::internal("a certificate without a name"))?;
    Ok(Certificate {
        id,
        names,
        account: of.map(|(account, _)| account.clone()),
        machine: of.map(|(_, machine)| machine.clone()),
        source,
        chain_pem: None,
        key: None,
        issuer: None,
        not_before: None,
        not_after: None,
        renew_at: None,
        ask_window_at: None,
        failures: 0,
        next_try_at: None,
        problem: None,
        lease: None,
        created_at: now(),
        updated_at: now(),
    })
}

/// What becomes of a name that is added, or added again.
pub enum Added {
    /// The account has it, proved or not.
    Has(Certificate),
    /// Another account has it: this one must show its proof first.
    Claims(Claim),
}

/// Writes that an account wants a name for a machine, with a certificate of that source. A chain that is there stays when nothing
/// but the machine changes.
pub async fn add(
    edit: &mut Edit<'_>,
    name: &DomainName,
    (account, machine): (&AccountId, &MachineId),
    source: CertificateSource,
    custom: bool,
) -> Result<Added> {
    let known: Option<Certificate> = edit.get(&Key::Certificate(name.clone())).await?;
    if custom {
        let domain: Option<Domain> = edit.get(&Key::Domain(name.clone())).await?;
        match domain {
            Some(domain) if domain.account != *account => {
                let kept: Option<Claim> = edit.private(Private::DomainClaim(account, name)).await?;
                let fresh = || Claim { machine: machine.clone(), proof: new_proof(), created_at: now() };
                let claim = Claim { machine: machine.clone(), ..kept.unwrap_or_else(fresh) };
                edit.put_private(Private::DomainClaim(account, name), &claim)?;
                return Ok(Added::Claims(claim));
            }
            Some(domain) => {
                edit.put(&Domain { machine: machine.clone(), ..domain })?;
            }
            None => {
                let claim = Claim { machine: machine.clone(), proof: new_proof(), created_at: now() };
                edit.put(&claim.domain(name, account))?;
            }
        }
    }
    let mine = known.filter(|known| known.account.as_ref() == Some(account) && known.source == source);
    let certificate = match mine {
        // A key that is in a machine is of no use to another.
        Some(known) if source != CertificateSource::Machine || known.machine.as_ref() == Some(machine) => {
            Certificate { machine: Some(machine.clone()), ..known }
        }
        Some(_) | None => wanted(vec![name.clone()], Some((account, machine)), source)?,
    };
    edit.put(&certificate)?;
    Ok(Added::Has(certificate))
}

/// Hands a name over to an account that proved it. Nothing of the former owner's stays.
pub async fn hand_over(edit: &mut Edit<'_>, proved: Domain) -> Result<()> {
    let owner = (&proved.account, &proved.machine);
    edit.put(&wanted(vec![proved.id.clone()], Some(owner), CertificateSource::Acme)?)?;
    edit.delete_private(Private::DomainClaim(&proved.account, &proved.id));
    edit.put(&proved)?;
    Ok(())
}
