//! The platform's accounts at issuers of certificates: for administrators, and the change of their keys, which entries do.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use mashines_fleet::api::{IssuerAccount, ValidationError};
use mashines_fleet::entry_api::{ACME_ACCOUNTS, Roll, RollStep};
use mashines_fleet::id::IssuerName;
use mashines_fleet::key::Key;
use mashines_fleet::record::{AcmeAccount, KeyRollover, Problem, UnixMs};
use mashines_fleet::sealed::Sealed;

use super::answer::Answer;
use super::auth::{Caller, Entry};
use super::issuance::{parsed, text};
use super::request::Payload;
use super::suggest::did_you_mean;
use crate::control::Control;
use crate::failure::Failure;
use crate::time::{now, rfc3339};

pub fn router() -> Router<Control> {
    Router::new()
        .route("/v1/fleet/issuers", get(list))
        .route("/v1/fleet/issuers/{issuer}/rollover", post(begin))
        .route(&format!("{ACME_ACCOUNTS}/{{issuer}}/rollover"), post(step))
}

fn shown(account: &AcmeAccount) -> IssuerAccount {
    let refused = account.rollover.as_ref().and_then(|rollover| rollover.refused.as_ref());
    IssuerAccount {
        issuer: account.id.clone(),
        directory: account.directory.clone(),
        created_at: rfc3339(account.created_at),
        key_since: rfc3339(account.key_since.unwrap_or(account.created_at)),
        rolling_since: account.rolling().map(|rollover| rfc3339(rollover.asked_at)),
        refused: refused.map(|problem| ValidationError {
            message: problem.what.clone(),
            remediation: problem.hint.clone(),
            timestamp: rfc3339(problem.at),
        }),
    }
}

async fn list(State(control): State<Control>, caller: Caller) -> Answer<Vec<IssuerAccount>> {
    caller.must_see_fleet("see the accounts at issuers")?;
    Ok(Json(control.view().acme_accounts.values().map(|account| shown(account)).collect()))
}

/// Asks for a new key; entries do the rest. Asked again while it is under way, it goes on.
async fn begin(
    State(control): State<Control>,
    caller: Caller,
    Path(issuer): Path<String>,
) -> Answer<IssuerAccount> {
    caller.must_be_admin("change the key of an account at an issuer")?;
    let view = control.view();
    let known = view.acme_accounts.keys().find(|known| known.as_str() == issuer);
    let id = known.cloned().ok_or_else(|| {
        let hint = did_you_mean(&issuer, view.acme_accounts.keys().map(IssuerName::as_str));
        let issuer: String = issuer.chars().take(80).collect();
        Failure::not_found(format!(
            "there is no account at an issuer {issuer:?}{hint}: `mashines certs issuers` lists them"
        ))
    })?;
    let key = Key::AcmeAccount(id);
    let update = control.records.update(&key, |account: &mut AcmeAccount| {
        let begins = account.rolling().is_none();
        if begins {
            // The issuer may know the key of the last attempt after all.
            let next = account.rollover.take().and_then(|last| last.next);
            account.rollover = Some(KeyRollover { asked_at: now(), next, refused: None });
        }
        Ok(begins)
    });
    let account = update.await?;
    caller.audit(&format!("asked for a new key of the account at {}", account.id));
    Ok(Json(shown(&account)))
}

async fn step(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(issuer): Path<String>,
    Payload(body): Payload<Roll>,
) -> Answer<AcmeAccount> {
    let id: IssuerName = parsed(&issuer)?;
    let key = Key::AcmeAccount(id.clone());
    if let RollStep::Next(next) = &body.step {
        control.secret.open(&key, next).map_err(|error| Failure::invalid(error.to_string()))?;
    }
    let update = control.records.update(&key, |account: &mut AcmeAccount| Ok(advance(account, &body, now())));
    let account = update.await?;
    if matches!(body.step, RollStep::Done) && account.rollover.is_none() {
        tracing::info!(%entry, issuer = %id, "the account at the issuer has a new key");
    }
    Ok(Json(account))
}

/// Makes a step; whether anything changed.
fn advance(account: &mut AcmeAccount, roll: &Roll, now: UnixMs) -> bool {
    if account.credentials != roll.credentials {
        return false;
    }
    let Some(rollover) = account.rollover.as_mut().filter(|rollover| rollover.refused.is_none()) else {
        return false;
    };
    match &roll.step {
        RollStep::Next(_) if rollover.next.is_some() => false,
        RollStep::Next(next) => {
            rollover.next = Some(Sealed::clone(next));
            true
        }
        RollStep::Done => match rollover.next.take() {
            Some(next) => {
                (account.credentials, account.rollover, account.key_since) = (next, None, Some(now));
                true
            }
            None => false,
        },
        RollStep::Refused { what, hint } => {
            rollover.refused = Some(Problem { what: text(what), hint: text(hint), at: now });
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use mashines_fleet::sealed::EntrySecret;

    use super::*;

    #[test]
    fn the_next_key_is_the_first_one_and_nothing_changes_under_another_present_one() {
        let (secret, key) = (EntrySecret::random(), Key::AcmeAccount("ca".parse().unwrap()));
        let sealed = |text: &str| secret.seal(&key, text.as_bytes()).unwrap();
        let (old, first, second) = (sealed("old"), sealed("first"), sealed("second"));
        let mut account = AcmeAccount {
            id: "ca".parse().unwrap(),
            directory: String::new(),
            credentials: old.clone(),
            orders: Vec::new(),
            failures: Default::default(),
            paused_until: None,
            paused: Default::default(),
            rollover: None,
            key_since: None,
            created_at: 0,
        };
        let step = |account: &mut AcmeAccount, present: &Sealed, step| {
            advance(account, &Roll { credentials: present.clone(), step }, 7)
        };
        assert!(!step(&mut account, &old, RollStep::Next(first.clone())), "nobody asked for it");
        let asked = KeyRollover { asked_at: 1, next: None, refused: None };
        account.rollover = Some(asked.clone());
        assert!(!step(&mut account, &old, RollStep::Done), "there is no next one");
        assert!(step(&mut account, &old, RollStep::Next(first.clone())));
        assert!(!step(&mut account, &old, RollStep::Next(second.clone())), "another entry was faster");
        assert!(!step(&mut account, &second, RollStep::Done));
        assert!(step(&mut account, &old, RollStep::Done));
        assert_eq!((&account.credentials, &account.rollover, account.key_since), (&first, &None, Some(7)));
        assert!(!step(&mut account, &old, RollStep::Done), "twice is once");

        account.rollover = Some(asked);
        let refused = RollStep::Refused { what: "no\n".repeat(2000), hint: String::new() };
        assert!(
            step(&mut account, &first, RollStep::Next(second.clone())) && step(&mut account, &first, refused)
        );
        assert!(account.rolling().is_none());
        assert_eq!(
            account.rollover.as_ref().unwrap().next,
            Some(second.clone()),
            "the issuer may know it after all"
        );
        assert!(!step(&mut account, &first, RollStep::Next(second)), "that one is over");
        assert_eq!(account.credentials, first);
    }
}
