//! What is to be done about a certificate: a pure function of the records and the clock.
//!
//! | what is known | step |
//! | --- | --- |
//! | brought by its owner; not entitled; its domain leads elsewhere | nothing: only a change of the records makes it something |
//! | another entry's lease lasts | until that ends |
//! | it failed lately | until the next try |
//! | no chain, or due | order, from the first issuer that may be asked: after some failures in a row it begins with the next one |
//! | no issuer may be asked | until one may |
//! | the issuer's window is to be asked for | ask |
//! | else | until it is due |

use mashines_fleet::id::{HostId, IssuerName};
use mashines_fleet::issuance::{entitled, ms};
use mashines_fleet::record::{Certificate, CertificateSource, UnixMs};
use mashines_fleet::view::View;

use crate::fault::Fault;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, as the records are.
    Nothing,
    /// Nothing before then.
    Until(UnixMs),
    /// Ask the issuer when it wants the certificate to be renewed.
    AskWindow,
    /// Order, from the issuer at this place of the list.
    Order(usize),
}

/// Who is asked.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// In order of preference.
    pub issuers: &'a [IssuerName],
    /// Failures in a row after which the next one is asked.
    pub failures_before_next: u32,
}

/// The next step for a certificate, as the entry `me` sees it.
pub fn next(certificate: &Certificate, view: &View, policy: Policy<'_>, me: &HostId, now: UnixMs) -> Step {
    match certificate.source {
        CertificateSource::Imported => return Step::Nothing,
        CertificateSource::Acme | CertificateSource::Machine => {}
    }
    let elsewhere = view.domains.get(&certificate.id).is_some_and(|domain| domain.problem.is_some());
    if entitled(certificate, view).is_err() || elsewhere {
        return Step::Nothing;
    }
    if let Some(held) = certificate.held_by_other(me, now) {
        return Step::Until(held.until);
    }
    if let Some(later) = certificate.next_try_at.filter(|at| now < *at) {
        return Step::Until(later);
    }
    let due = match certificate.chain_pem {
        Some(_) => certificate.due_at().unwrap_or(now),
        None => now,
    };
    if due <= now {
        return order(certificate, view, policy, now);
    }
    match certificate.ask_window_at {
        Some(at) if at <= now => Step::AskWindow,
        Some(at) => Step::Until(at.min(due)),
        None => Step::Until(due),
    }
}

/// From the first issuer that may be asked, beginning where the failures point.
fn order(certificate: &Certificate, view: &View, policy: Policy<'_>, now: UnixMs) -> Step {
    let count = policy.issuers.len();
    let begin = certificate.failures / policy.failures_before_next.max(1);
    let begin = usize::try_from(begin).unwrap_or(0);
    let mut soonest: Option<UnixMs> = None;
    for n in 0..count {
        let at = (begin % count.max(1) + n) % count.max(1);
        let account = policy.issuers.get(at).and_then(|name| view.acme_accounts.get(name));
        match account.map_or(Ok(()), |account| account.admit(certificate, now)) {
            Ok(()) => return Step::Order(at),
            Err(exhausted) => {
                let until = exhausted.until();
                soonest = Some(soonest.map_or(until, |soonest| soonest.min(until)));
            }
        }
    }
    soonest.map_or(Step::Nothing, Step::Until)
}

/// Which of two certificates is begun first: the platform's own, then what serves and must go on, then what is new.
pub fn urgency(certificate: &Certificate) -> (u8, UnixMs) {
    match (&certificate.account, &certificate.chain_pem) {
        (None, _) => (0, 0),
        (Some(_), Some(_)) => (1, certificate.not_after.unwrap_or(0)),
        (Some(_), None) => (2, certificate.created_at),
    }
}

/// The least pause after a failed validation: five of a name within an hour are the most (Let's Encrypt).
const AFTER_INVALID_MS: u64 = 5 * 60_000;

/// After anything else.
const AFTER_OTHER_MS: u64 = 60_000;

/// The longest pause.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// The longest pause while a chain that serves comes to its end.
const LONGEST_RENEWAL_MS: u64 = 6 * 3_600_000;

/// When it is tried again: later with each failure in a row, and not all at once: `jitter` is 0 to 1. What the issuer said of its own
/// limits is noted with our account there, so that another issuer may be asked meanwhile.
pub fn try_again(certificate: &Certificate, fault: &Fault, now: UnixMs, jitter: f64) -> UnixMs {
    let least = match fault {
        Fault::Invalid { .. } | Fault::Refused { .. } => AFTER_INVALID_MS,
        Fault::Unreachable(_)
        | Fault::Limited { .. }
        | Fault::NotShown(_)
        | Fault::Machine(_)
        | Fault::Ours(_) => AFTER_OTHER_MS,
    };
    let longest = if certificate.chain_pem.is_some() { LONGEST_RENEWAL_MS } else { LONGEST_MS };
    let doubled = least.saturating_mul(1 << certificate.failures.min(20));
    let pause = doubled.min(longest);
    let spread = std::time::Duration::from_millis(pause / 4).mul_f64(jitter.clamp(0.0, 1.0));
    now.saturating_add(pause).saturating_add(ms(spread))
}

#[cfg(test)]
mod tests;
