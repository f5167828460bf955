//! Who may order a certificate, and when: pure decisions of the records and the clock, for control and the entries alike.
//!
//! Invariants, held by the property test in `acme/src/plan.rs`:
//! - One entry works on a certificate at a time: [`Certificate::take`] is refused while another's lease lasts, and control writes it by
//!   compare-and-swap. An entry that dies loses it by time.
//! - An issuer never sees more orders or failed validations than it allows: [`AcmeAccount::admit`] is asked in the transaction
//!   that notes the order. We stay below what Let's Encrypt publishes, for what was counted differently at the two ends.
//! - Nothing is ordered or served for a name whose owner has not been seen to want it: [`entitled`].

use std::time::Duration;

use crate::id::{DomainName, HostId};
use crate::record::{
    AcmeAccount, Certificate, CertificateLease, CertificateSource, Desired, Domain, MachineState, UnixMs,
};
use crate::view::View;

/// How long a lease lasts that is not renewed.
pub const LEASE: Duration = Duration::from_secs(20);

/// How long a challenge is shown at most, whatever becomes of the entry that asked for it.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(15 * 60);

/// Orders of an account in [`ORDERS_SPAN`]. Let's Encrypt allows 300.
pub const MOST_ORDERS: usize = 280;

/// Of these as many for names that have no certificate yet: whoever adds many names must not hold up renewals.
pub const MOST_FIRST_ORDERS: usize = 200;

/// The span of [`MOST_ORDERS`].
pub const ORDERS_SPAN: Duration = Duration::from_secs(3 * 3600);

/// Failed validations of one name in [`FAILURES_SPAN`]. Let's Encrypt allows 5.
pub const MOST_FAILURES: usize = 4;

/// The span of [`MOST_FAILURES`].
pub const FAILURES_SPAN: Duration = Duration::from_secs(3600);

/// How long an owner's proof may be gone before the name stops: a zone that is edited, a provider that is moved.
pub const PROOF_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long a domain is served while nobody can say whether the proof is there, since its name servers do not answer.
pub const SILENCE_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A span in the unit of records.
pub fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A lease that somebody else has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{holder} works on it until {until}")]
pub struct Held {
    /// Who.
    pub holder: HostId,
    /// Until when, unless it is renewed.
    pub until: UnixMs,
}

/// An issuer that must not be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// It said so.
    #[error("the issuer asked for a pause")]
    Paused(UnixMs),
    /// Too many orders.
    #[error("the account has made as many orders as it may within three hours")]
    Orders(UnixMs),
    /// Too many failures of this name.
    #[error("{MOST_FAILURES} validations of the name failed within an hour")]
    Failures(UnixMs),
}

impl Exhausted {
    /// When it may be asked again.
    pub fn until(self) -> UnixMs {
        match self {
            Self::Paused(until) | Self::Orders(until) | Self::Failures(until) => until,
        }
    }
}

/// Why nothing is ordered or served for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotEntitled {
    /// Its machine is gone.
    NoMachine,
    /// The name's owner has not proved it, or not lately.
    NoProof,
    /// The name is another account's now.
    Anothers,
}

impl Certificate {
    /// The lease of somebody else that lasts.
    pub fn held_by_other(&self, me: &HostId, now: UnixMs) -> Option<Held> {
        let lease = self.lease.as_ref()?;
        let held = lease.holder != *me && now < lease.until;
        held.then(|| Held { holder: lease.holder.clone(), until: lease.until })
    }

    /// Takes or renews the lease.
    ///
    /// # Errors
    /// [`Held`]: another has it.
    pub fn take(&mut self, me: &HostId, now: UnixMs) -> Result<UnixMs, Held> {
        if let Some(held) = self.held_by_other(me, now) {
            return Err(held);
        }
        let until = now.saturating_add(ms(LEASE));
        self.lease = Some(CertificateLease { holder: me.clone(), until });
        Ok(until)
    }

    /// `me` has the lease.
    pub fn is_held(&self, me: &HostId, now: UnixMs) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.holder == *me && now < lease.until)
    }

    /// When the chain is to be replaced: what was written down, else after two thirds of its life.
    pub fn due_at(&self) -> Option<UnixMs> {
        let (from, to) = (self.not_before?, self.not_after?);
        let two_thirds = from.saturating_add(to.saturating_sub(from) / 3 * 2);
        Some(self.renew_at.unwrap_or(two_thirds).min(to))
    }

    /// It has a chain that is good now.
    pub fn is_good(&self, now: UnixMs) -> bool {
        self.chain_pem.is_some() && self.not_after.is_some_and(|end| now < end)
    }
}

impl AcmeAccount {
    /// Whether an order for that certificate may be made now.
    ///
    /// # Errors
    /// [`Exhausted`]: when it may.
    pub fn admit(&self, certificate: &Certificate, now: UnixMs) -> Result<(), Exhausted> {
        if let Some(until) = self.paused.get(&certificate.id).copied().filter(|until| now < *until) {
            return Err(Exhausted::Paused(until));
        }
        let first = certificate.chain_pem.is_none() && certificate.account.is_some();
        self.admits(&certificate.names, if first { MOST_FIRST_ORDERS } else { MOST_ORDERS }, now)
    }

    fn admits(&self, names: &[DomainName], most: usize, now: UnixMs) -> Result<(), Exhausted> {
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Err(Exhausted::Paused(until));
        }
        if let Some(until) = full(&self.orders, most, ORDERS_SPAN, now) {
            return Err(Exhausted::Orders(until));
        }
        let of =
            |name: &DomainName| full(self.failures.get(&name.base())?, MOST_FAILURES, FAILURES_SPAN, now);
        names.iter().filter_map(of).max().map_or(Ok(()), |until| Err(Exhausted::Failures(until)))
    }

    /// Notes an order.
    pub fn note_order(&mut self, now: UnixMs) {
        forget(&mut self.orders, ORDERS_SPAN, now);
        self.orders.push(now);
    }

    /// Notes that the issuer wants to hear nothing before then: of anything, or of one certificate.
    pub fn note_pause(&mut self, only: Option<&DomainName>, until: UnixMs, now: UnixMs) {
        self.paused.retain(|_, until| now < *until);
        match only {
            Some(name) => drop(self.paused.insert(name.clone(), until)),
            None => self.paused_until = self.paused_until.max(Some(until)),
        }
    }

    /// Notes that the validation of a name failed.
    pub fn note_failure(&mut self, name: &DomainName, now: UnixMs) {
        self.failures.retain(|_, times| {
            forget(times, FAILURES_SPAN, now);
            !times.is_empty()
        });
        self.failures.entry(name.base()).or_default().push(now);
    }
}

/// When there is room again, if there is none now.
fn full(times: &[UnixMs], most: usize, span: Duration, now: UnixMs) -> Option<UnixMs> {
    let live = |at: &&UnixMs| now < at.saturating_add(ms(span));
    let count = times.iter().filter(live).count();
    let frees = times.iter().filter(live).nth(count.checked_sub(most)?)?;
    Some(frees.saturating_add(ms(span)))
}

fn forget(times: &mut Vec<UnixMs>, span: Duration, now: UnixMs) {
    times.retain(|at| now < at.saturating_add(ms(span)));
}

/// Whether a certificate may be ordered and served: its machine is there, and for a name outside of the fleet's zones its owner was
/// seen to want it. The platform's own have neither machine nor account.
///
/// # Errors
/// [`NotEntitled`].
pub fn entitled(certificate: &Certificate, view: &View) -> Result<(), NotEntitled> {
    let Some(account) = &certificate.account else { return Ok(()) };
    let machine = certificate.machine.as_ref().and_then(|id| view.machines.get(id));
    let there = machine.is_some_and(|machine| {
        machine.state != MachineState::Destroyed && machine.desired != Desired::Destroyed
    });
    if !there {
        return Err(NotEntitled::NoMachine);
    }
    let apex = view.config.as_ref().map(|config| config.domain.as_str()).unwrap_or_default();
    if !apex.is_empty() && certificate.id.is_within(apex) {
        return Ok(());
    }
    match view.domains.get(&certificate.id) {
        Some(domain) if domain.account != *account => Err(NotEntitled::Anothers),
        Some(domain) if domain.verified_at.is_some() => Ok(()),
        Some(_) | None => Err(NotEntitled::NoProof),
    }
}

/// What a look at a name's proof found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is there.
    Seen,
    /// The name's servers say that it is not.
    Absent,
    /// Nobody could say.
    Unknown,
}

impl Domain {
    /// Takes in what a look found; true when it changes whether the name is served.
    pub fn looked(&mut self, proof: Proof, now: UnixMs) -> bool {
        let before = self.verified_at.is_some();
        self.checked_at = Some(now);
        let lapsed = |grace| self.verified_at.is_some_and(|at| at.saturating_add(ms(grace)) <= now);
        match proof {
            Proof::Seen => self.verified_at = Some(now),
            Proof::Absent if lapsed(PROOF_GRACE) => self.verified_at = None,
            Proof::Unknown if lapsed(SILENCE_GRACE) => self.verified_at = None,
            Proof::Absent | Proof::Unknown => {}
        }
        before != self.verified_at.is_some()
    }
}

/// The platform holds its key: it is not made in a machine.
pub fn is_keyed_here(source: CertificateSource) -> bool {
    match source {
        CertificateSource::Acme | CertificateSource::Imported => true,
        CertificateSource::Machine => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::EntrySecret;

    const HOUR: u64 = 3_600_000;

    fn account() -> AcmeAccount {
        let key = crate::key::Key::AcmeAccount("ca".parse().unwrap());
        AcmeAccount {
            id: "ca".parse().unwrap(),
            directory: String::new(),
            credentials: EntrySecret::random().seal(&key, b"").unwrap(),
            orders: Vec::new(),
            failures: Default::default(),
            paused_until: None,
            paused: Default::default(),
            rollover: None,
            key_since: None,
            created_at: 0,
        }
    }

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn an_account_is_not_used_beyond_its_limits_and_gets_room_back_by_time() {
        let mut account = account();
        let names = [name("*.a.example"), name("a.example")];
        for _ in 0..MOST_FAILURES {
            assert_eq!(account.admits(&names, MOST_ORDERS, 10), Ok(()));
            account.note_failure(&name("a.example"), 10);
        }
        assert_eq!(account.admits(&names, MOST_ORDERS, 11), Err(Exhausted::Failures(10 + HOUR)));
        assert_eq!(
            account.admits(&[name("b.example")], MOST_ORDERS, 11),
            Ok(()),
            "another name is another matter"
        );
        assert_eq!(account.admits(&names, MOST_ORDERS, 10 + HOUR), Ok(()));
        for at in 0..MOST_ORDERS as u64 {
            account.note_order(100 + at);
        }
        assert_eq!(
            account.admits(&[name("b.example")], MOST_ORDERS, 500),
            Err(Exhausted::Orders(100 + 3 * HOUR))
        );
        assert_eq!(account.admits(&[name("b.example")], 1000, 500), Ok(()));
        account.paused_until = Some(100 * HOUR);
        assert_eq!(account.admits(&names, MOST_ORDERS, 99 * HOUR), Err(Exhausted::Paused(100 * HOUR)));
        account.note_order(200 * HOUR);
        account.note_failure(&name("b.example"), 200 * HOUR);
        assert_eq!((account.orders.len(), account.failures.len()), (1, 1), "what is past is forgotten");
    }

    #[test]
    fn a_proof_may_be_gone_for_a_day_and_servers_for_a_week() {
        let mut domain = Domain {
            id: name("a.example"),
            account: "ann".parse().unwrap(),
            machine: crate::id::MachineId::random(),
            proof: String::new(),
            verified_at: None,
            checked_at: None,
            problem: None,
            created_at: 0,
        };
        assert!(!domain.looked(Proof::Absent, HOUR) && domain.verified_at.is_none());
        assert!(domain.looked(Proof::Seen, 2 * HOUR));
        assert!(!domain.looked(Proof::Absent, 25 * HOUR), "within a day");
        assert!(!domain.looked(Proof::Unknown, 100 * HOUR), "within a week");
        assert!(domain.looked(Proof::Absent, 101 * HOUR) && domain.verified_at.is_none());
        assert!(domain.looked(Proof::Seen, 102 * HOUR));
        assert!(domain.looked(Proof::Unknown, 102 * HOUR + 7 * 24 * HOUR));
    }

    #[test]
    fn a_wildcard_covers_one_label_and_names_know_their_zone() {
        assert!(name("*.a.example").covers(&name("x.a.example")));
        for other in ["a.example", "x.y.a.example", "*.x.a.example", "xa.example"] {
            assert!(!name("*.a.example").covers(&name(other)), "{other}");
        }
        assert!(name("x.a.example").is_within("a.example") && name("a.example").is_within("a.example"));
        assert!(!name("xa.example").is_within("a.example"));
        assert_eq!(name("*.a.example").base(), name("a.example"));
    }
}
