//! What time does to names and certificates: proofs are looked for again, claims are heard, challenges and leases end, and what
//! belonged to a machine goes with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::id::{AccountId, DomainName};
use mashines_fleet::issuance::{NotEntitled, Proof, entitled};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Certificate, Desired, Domain, MachineState, UnixMs};
use mashines_fleet::view::View;
use tokio::sync::Mutex;

use super::ownership::{Ours, judge, take_in};
use super::{Claim, hand_over};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Private, retrying};
use crate::resolver::Dns;
use crate::time::{ms, now};

/// Between two looks at everything.
const TICK: Duration = Duration::from_secs(5);

/// A domain that was just added is looked at this often, for so long.
const EAGER_EVERY: Duration = Duration::from_secs(60);
const EAGER_FOR: Duration = Duration::from_secs(3600);

/// One that is not in order, later on.
const PATIENT_EVERY: Duration = Duration::from_secs(3600);

/// One that is in order.
const SETTLED_EVERY: Duration = Duration::from_secs(6 * 3600);

/// A name that nobody ever proved is given up after that, and a claim of one.
const UNPROVED_LIFE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Domains looked at in one round: their name servers may be slow.
const ROUND: usize = 16;

/// Looks at domains, one after the other for each name.
#[derive(Default)]
pub struct Keeper {
    dns: Mutex<Option<Arc<Dns>>>,
}

impl Keeper {
    /// Goes on until it is dropped.
    pub async fn run(control: Control) {
        loop {
            if let Err(failure) = sweep(&control).await {
                tracing::warn!(%failure, "names that are over stay for now");
            }
            for name in due(&control.view(), now()).into_iter().take(ROUND) {
                if let Err(failure) = control.keeper.check(&control, &name).await {
                    tracing::warn!(%name, %failure, "a domain cannot be looked at");
                }
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Looks at a domain now, for its holder and for those who claim it.
    ///
    /// # Errors
    /// There is no resolver; the store's.
    pub async fn check(&self, control: &Control, name: &DomainName) -> Result<()> {
        if !control.view().domains.contains_key(name) {
            return Ok(());
        }
        let dns = self.dns(control).await?;
        let look = dns.look(name).await;
        retrying(|| async {
            let view = control.view();
            let mut edit = control.records.edit();
            let Some(mut domain): Option<Domain> = edit.get(&Key::Domain(name.clone())).await? else {
                return Ok(());
            };
            for (account, claim) in claims(control, name).await? {
                let mut claimed = claim.domain(name, &account);
                let verdict = judge(&claimed, &Ours::of(&view, &claimed), &look);
                if verdict.proof == Proof::Seen && lives(&view, &claimed) {
                    take_in(&mut claimed, &verdict);
                    tracing::info!(target: "audit", %name, from = %domain.account, to = %account, "a domain changes hands by proof");
                    hand_over(&mut edit, claimed).await?;
                    return edit.commit().await;
                }
            }
            let verdict = judge(&domain, &Ours::of(&view, &domain), &look);
            if take_in(&mut domain, &verdict) {
                tracing::info!(%name, account = %domain.account, served = domain.verified_at.is_some(), "a domain's proof");
            }
            edit.put(&domain)?;
            edit.commit().await
        })
        .await
    }

    async fn dns(&self, control: &Control) -> Result<Arc<Dns>> {
        let mut kept = self.dns.lock().await;
        if let Some(dns) = &*kept {
            return Ok(Arc::clone(dns));
        }
        let dns = Arc::new(Dns::new(&control.config.resolvers)?);
        *kept = Some(Arc::clone(&dns));
        Ok(dns)
    }
}

/// Who claims a name.
pub async fn claims(control: &Control, name: &DomainName) -> Result<Vec<(AccountId, Claim)>> {
    let all: Vec<(String, Claim)> = control.records.private_below("domain-claim/").await?;
    let of = all.into_iter().filter_map(|(rest, claim)| {
        let (account, of) = rest.split_once('/')?;
        (of == name.as_str()).then_some(())?;
        Some((account.parse().ok()?, claim))
    });
    Ok(of.collect())
}

/// Its machine is there and the account's.
fn lives(view: &View, domain: &Domain) -> bool {
    view.machines.get(&domain.machine).is_some_and(|machine| {
        machine.account == domain.account
            && machine.state != MachineState::Destroyed
            && machine.desired != Desired::Destroyed
    })
}

/// Domains to be looked at, those that wait longest first.
fn due(view: &View, now: UnixMs) -> Vec<DomainName> {
    let at = |domain: &Domain| {
        let Some(last) = domain.checked_at else { return 0 };
        let young = now < domain.created_at.saturating_add(ms(EAGER_FOR));
        let every = match (domain.problem.is_none() && domain.verified_at.is_some(), young) {
            (true, _) => SETTLED_EVERY,
            (false, true) => EAGER_EVERY,
            (false, false) => PATIENT_EVERY,
        };
        last.saturating_add(ms(every))
    };
    let mut due: BTreeMap<(UnixMs, &DomainName), ()> =
        view.domains.values().map(|domain| ((at(domain), &domain.id), ())).collect();
    due.retain(|(at, _), ()| *at <= now);
    due.into_keys().map(|(_, name)| name.clone()).collect()
}

/// What is over.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    Challenge(Key),
    /// A name with its domain, if it is one.
    Name(DomainName),
}

fn over(view: &View, now: UnixMs) -> Vec<Over> {
    let challenges = view.challenges.iter().filter(|(_, challenge)| challenge.expires_at <= now);
    let challenges = challenges.map(|(id, _)| Over::Challenge(Key::Challenge(id.clone())));
    let ends = |certificate: &Certificate| match entitled(certificate, view) {
        Err(NotEntitled::NoMachine | NotEntitled::Anothers) => true,
        Err(NotEntitled::NoProof) => view.domains.get(&certificate.id).is_none_or(|domain| {
            // One that lapsed was looked at lately; its verification is gone, its age is not.
            let age = now.saturating_sub(domain.created_at);
            domain.verified_at.is_none() && age > ms(UNPROVED_LIFE) && certificate.chain_pem.is_none()
        }),
        Ok(()) => false,
    };
    let names = view.certificates.values().filter(|certificate| ends(certificate));
    challenges.chain(names.map(|certificate| Over::Name(certificate.id.clone()))).collect()
}

async fn sweep(control: &Control) -> Result<()> {
    for over in over(&control.view(), now()) {
        match over {
            Over::Challenge(key) => {
                let mut edit = control.records.edit();
                edit.delete(&key);
                edit.commit().await?;
            }
            Over::Name(name) => remove(control, &name, |certificate, view| {
                let still = !matches!(entitled(certificate, view), Ok(()));
                still.then_some(()).ok_or_else(|| Failure::conflict("it came back meanwhile"))
            })
            .await
            .or_else(|failure| {
                if failure.kind == crate::failure::Kind::Conflict { Ok(()) } else { Err(failure) }
            })?,
        }
    }
    for (rest, claim) in control.records.private_below::<Claim>("domain-claim/").await? {
        let machine = control.view().machines.get(&claim.machine).cloned();
        let gone = machine.is_none_or(|machine| machine.state == MachineState::Destroyed);
        let old = now().saturating_sub(claim.created_at) > ms(UNPROVED_LIFE);
        let owner = rest.split_once('/').and_then(|(a, n)| Some((a.parse().ok()?, n.parse().ok()?)));
        if let Some((account, name)) = owner.filter(|_| gone || old) {
            let mut edit = control.records.edit();
            edit.delete_private(Private::DomainClaim(&account, &name));
            edit.commit().await?;
        }
    }
    Ok(())
}

/// Removes a name: its certificate and its domain. `may` is asked about the certificate as it is then.
///
/// # Errors
/// What `may` answers; the store's.
pub async fn remove(
    control: &Control,
    name: &DomainName,
    may: impl Fn(&Certificate, &View) -> Result<()>,
) -> Result<()> {
    retrying(|| async {
        let mut edit = control.records.edit();
        let certificate: Option<Certificate> = edit.get(&Key::Certificate(name.clone())).await?;
        let domain: Option<Domain> = edit.get(&Key::Domain(name.clone())).await?;
        let Some(certificate) = certificate else { return Ok(()) };
        may(&certificate, &control.view())?;
        edit.delete(&Key::Certificate(name.clone()));
        if domain.is_some_and(|domain| Some(&domain.account) == certificate.account.as_ref()) {
            edit.delete(&Key::Domain(name.clone()));
        }
        edit.commit().await
    })
    .await?;
    tracing::info!(%name, "a name and its certificate are gone");
    Ok(())
}
