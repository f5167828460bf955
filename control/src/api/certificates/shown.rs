//! A name as the API shows it: records in, words out.

use std::net::IpAddr;

use mashines_fleet::api::{self, CertificateState, DnsRequirements, Ownership, ValidationError};
use mashines_fleet::id::DomainName;
use mashines_fleet::record::{Certificate, CertificateSource, Domain, Problem, UnixMs};
use mashines_fleet::view::View;

use super::Mine;
use crate::certificates::Claim;
use crate::certificates::ownership::{LABEL, Ours};
use crate::time::rfc3339;

/// A brought certificate is told to be near its end this long before.
const WARN_MS: u64 = 14 * 24 * 3_600_000;

/// What the API says of a name.
pub fn shown(view: &View, mine: &Mine, now: UnixMs) -> api::Certificate {
    match mine {
        Mine::Has(certificate) => of_certificate(view, certificate, now),
        Mine::Claims(name, claim) => of_claim(view, name, claim),
    }
}

fn of_certificate(view: &View, certificate: &Certificate, now: UnixMs) -> api::Certificate {
    let machine = certificate.machine.as_ref().and_then(|id| view.machines.get(id));
    let domain = view
        .domains
        .get(&certificate.id)
        .filter(|domain| Some(&domain.account) == certificate.account.as_ref());
    let state = state(certificate, domain.map(AsRef::as_ref), now);
    let missing = domain.and_then(|domain| domain.problem.as_ref());
    let expires = expiring_import(certificate, state, now);
    let errors = missing.into_iter().chain(&certificate.problem).chain(&expires).map(error).collect();
    let time = |at: Option<UnixMs>| at.map(rfc3339);
    api::Certificate {
        hostname: certificate.id.clone(),
        names: certificate.names.clone(),
        app: machine.map(|machine| machine.app.clone()),
        machine: machine.map(|machine| machine.slug.clone()),
        state,
        status: status(state).to_owned(),
        configured: domain.is_none_or(|domain| domain.verified_at.is_some() && domain.problem.is_none()),
        acme_requested: is_renewed(certificate.source),
        source: certificate.source,
        issuer: certificate.issuer.clone(),
        issued_at: time(certificate.not_before),
        expires_at: time(certificate.not_after),
        renew_at: time(certificate.due_at().filter(|_| is_renewed(certificate.source))),
        next_try_at: time(certificate.next_try_at),
        failures: certificate.failures,
        dns_requirements: domain.map(|domain| requirements(view, domain)),
        validation_errors: errors,
        created_at: rfc3339(certificate.created_at),
        updated_at: rfc3339(certificate.updated_at),
    }
}

/// Another account has the name: what this one has to show to get it.
fn of_claim(view: &View, name: &DomainName, claim: &Claim) -> api::Certificate {
    let machine = view.machines.get(&claim.machine);
    let requirements = machine.map(|machine| requirements(view, &claim.domain(name, &machine.account)));
    let hint = format!("add TXT {LABEL}.{} with \"{}\"", name.base(), claim.proof);
    let what = format!("{name} is another account's: it becomes yours once its zone proves that");
    let state = CertificateState::AwaitingProof;
    api::Certificate {
        hostname: name.clone(),
        names: vec![name.clone()],
        app: machine.map(|machine| machine.app.clone()),
        machine: machine.map(|machine| machine.slug.clone()),
        state,
        status: status(state).to_owned(),
        configured: false,
        acme_requested: true,
        source: CertificateSource::Acme,
        issuer: None,
        issued_at: None,
        expires_at: None,
        renew_at: None,
        next_try_at: None,
        failures: 0,
        dns_requirements: requirements,
        validation_errors: vec![error(&Problem { what, hint, at: claim.created_at })],
        created_at: rfc3339(claim.created_at),
        updated_at: rfc3339(claim.created_at),
    }
}

/// We renew it.
fn is_renewed(source: CertificateSource) -> bool {
    match source {
        CertificateSource::Acme | CertificateSource::Machine => true,
        CertificateSource::Imported => false,
    }
}

/// Where a name stands. The first that is wrong counts.
fn state(certificate: &Certificate, domain: Option<&Domain>, now: UnixMs) -> CertificateState {
    if let Some(domain) = domain.filter(|domain| domain.verified_at.is_none()) {
        // What was never proved has no certificate, except one that was brought.
        let had =
            certificate.chain_pem.is_some() && is_renewed(certificate.source) && domain.checked_at.is_some();
        return if had { CertificateState::Lapsed } else { CertificateState::AwaitingProof };
    }
    let good = certificate.is_good(now);
    let over = certificate.chain_pem.is_some() && !good;
    let leased = certificate.lease.as_ref().is_some_and(|lease| now < lease.until);
    let elsewhere = domain.is_some_and(|domain| domain.problem.is_some());
    let near = certificate.not_after.is_some_and(|end| end.saturating_sub(now) < WARN_MS);
    match (good, is_renewed(certificate.source)) {
        (true, true) if certificate.failures > 0 => CertificateState::Expiring,
        (true, false) if near => CertificateState::Expiring,
        (true, true | false) => CertificateState::Issued,
        (false, _) if over => CertificateState::Expired,
        (false, _) if elsewhere => CertificateState::AwaitingAddress,
        (false, _) if leased => CertificateState::Issuing,
        (false, _) if certificate.failures > 0 => CertificateState::Failing,
        (false, true | false) => CertificateState::Wanted,
    }
}

/// In Fly's words.
fn status(state: CertificateState) -> &'static str {
    match state {
        CertificateState::Issued | CertificateState::Expiring => "Ready",
        CertificateState::AwaitingProof | CertificateState::Lapsed | CertificateState::AwaitingAddress => {
            "Awaiting configuration"
        }
        CertificateState::Wanted
        | CertificateState::Issuing
        | CertificateState::Failing
        | CertificateState::Expired => "Awaiting certificates",
    }
}

fn expiring_import(certificate: &Certificate, state: CertificateState, now: UnixMs) -> Option<Problem> {
    let end = certificate.not_after.filter(|_| !is_renewed(certificate.source))?;
    let what = match state {
        CertificateState::Expiring => format!("the certificate that you brought ends at {}", rfc3339(end)),
        CertificateState::Expired => format!("the certificate that you brought ended at {}", rfc3339(end)),
        CertificateState::AwaitingProof
        | CertificateState::Lapsed
        | CertificateState::AwaitingAddress
        | CertificateState::Wanted
        | CertificateState::Issuing
        | CertificateState::Failing
        | CertificateState::Issued => return None,
    };
    let hint = format!(
        "bring the next with `mashines certs import {}`, or let an issuer give one with `mashines certs add {0}`",
        certificate.id
    );
    Some(Problem { what, hint, at: now })
}

fn requirements(view: &View, domain: &Domain) -> DnsRequirements {
    let ours = Ours::of(view, domain);
    let (a, aaaa) = ours.addresses.iter().partition(|address: &&IpAddr| address.is_ipv4());
    DnsRequirements {
        ownership: Ownership {
            name: format!("{LABEL}.{}", domain.id.base()),
            app_value: domain.proof.clone(),
        },
        cname: ours.target,
        a,
        aaaa,
    }
}

fn error(problem: &Problem) -> ValidationError {
    ValidationError {
        message: problem.what.clone(),
        remediation: problem.hint.clone(),
        timestamp: rfc3339(problem.at),
    }
}
