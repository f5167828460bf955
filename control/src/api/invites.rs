//! Invites of an account: made, listed, withdrawn, used.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use mashines_fleet::api::{
    AcceptFor, AcceptInvite, Accepted, Code, CreateInvite, Done, Invite, InviteMade, InviteTo,
};
use mashines_fleet::id::{AccountId, BadId};
use mashines_fleet::record::Role;

use super::answer::{Answer, done};
use super::auth::{Caller, Entry};
use super::members::{end, to_give};
use super::request::Payload;
use super::{machines, suggest};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::invites::{self, Record, To};
use crate::records::retrying;
use crate::ssh_ca::normal_key;
use crate::time::now;

/// How long an invite may be used when nobody says, seconds: a week.
const LIFE_S: u64 = 7 * 24 * 3600;
/// The longest, seconds.
const LONGEST_S: u64 = 90 * 24 * 3600;
/// The most uses of one.
const MOST_USES: u32 = 1000;
/// The most of an account that are not expired.
const MOST: usize = 100;

pub async fn create(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<CreateInvite>,
) -> Result<(StatusCode, Json<InviteMade>)> {
    let to = match &body.to {
        InviteTo::Fleet => {
            caller.must_be_admin("invite newcomers to the fleet")?;
            caller.must(Role::Admin, "make invites")?;
            To::Fleet
        }
        InviteTo::Account { role } => {
            caller.must(to_give(*role), &format!("invite members as {role}"))?;
            To::Account(*role)
        }
        InviteTo::Machine { machine, role, ttl } => {
            let machine = machines::find(&control.view(), &caller, None, machine)?;
            caller.must_at(&machine, Role::Admin, "share")?;
            if *role > Role::Operator {
                return Err(Failure::invalid(
                    "a machine is shared with viewers and operators, not with admins",
                ));
            }
            To::Machine { machine: machine.id.clone(), role: *role, until: end(*ttl)? }
        }
    };
    let (valid, uses) = (body.valid.unwrap_or(LIFE_S), body.uses.unwrap_or(1));
    if !(1..=LONGEST_S).contains(&valid) || !(1..=MOST_USES).contains(&uses) {
        return Err(Failure::invalid(format!("valid is 1 to {LONGEST_S} seconds, uses 1 to {MOST_USES}")));
    }
    let (code, id) = invites::new_code();
    let now = now();
    let record = Record {
        id,
        account: caller.account.id.clone(),
        by: caller.me.id.clone(),
        to,
        created_at: now,
        expires_at: now + valid * 1000,
        uses,
    };
    let known = invites::of(&control.records, &record.account).await?;
    let (over, live): (Vec<_>, Vec<_>) = known.into_iter().partition(|(_, invite)| invite.expires_at <= now);
    if live.len() >= MOST {
        return Err(Failure::conflict(format!(
            "account {} has {MOST} invites that were not used, which is the most: `mashines invites rm` withdraws some",
            record.account
        )));
    }
    let mut edit = control.records.edit();
    over.iter().for_each(|(hash, invite)| invites::remove(&mut edit, hash, invite));
    invites::put(&mut edit, &code, &record)?;
    edit.commit().await?;
    caller.audit(&format!("made invite {}", record.id));
    Ok((StatusCode::CREATED, Json(InviteMade { code, invite: record.shown(&control.view()) })))
}

pub async fn list(State(control): State<Control>, caller: Caller) -> Answer<Vec<Invite>> {
    caller.must(Role::Admin, "see the invites")?;
    let all = invites::of(&control.records, &caller.account.id).await?;
    let view = control.view();
    let mut live: Vec<_> =
        all.iter().map(|(_, invite)| invite).filter(|invite| invite.expires_at > now()).collect();
    live.sort_by_key(|invite| invite.created_at);
    Ok(Json(live.into_iter().map(|invite| invite.shown(&view)).collect()))
}

pub async fn remove(State(control): State<Control>, caller: Caller, Path(id): Path<String>) -> Answer<Done> {
    caller.must(Role::Admin, "withdraw invites")?;
    let all = invites::of(&control.records, &caller.account.id).await?;
    let Some((hash, invite)) = all.iter().find(|(_, invite)| invite.id == id) else {
        let hint = suggest::did_you_mean(&id, all.iter().map(|(_, invite)| invite.id.as_str()));
        let id: String = id.chars().take(80).collect();
        return Err(Failure::not_found(format!("account {} has no invite {id:?}{hint}", caller.account.id)));
    };
    let mut edit = control.records.edit();
    invites::remove(&mut edit, hash, invite);
    edit.commit().await?;
    caller.audit(&format!("withdrew invite {id}"));
    Ok(done())
}

async fn redeem(control: &Control, code: &Code, account: AccountId) -> Answer<Accepted> {
    let id = &account;
    let given = retrying(|| async {
        let mut edit = control.records.edit();
        let given = invites::redeem(&mut edit, &control.view(), code, (id, false)).await?;
        edit.commit().await?;
        Ok(given)
    })
    .await?;
    tracing::info!(target: "audit", %account, ?given, "used an invite");
    Ok(Json(Accepted { account, given }))
}

/// Somebody who has an account uses one.
pub async fn accept(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<AcceptInvite>,
) -> Answer<Accepted> {
    caller.must(Role::Admin, "use invites")?;
    redeem(&control, &body.invite, caller.account.id.clone()).await
}

/// An entry's word for somebody who proved a key.
pub async fn accept_for(
    State(control): State<Control>,
    _: Entry,
    Payload(body): Payload<AcceptFor>,
) -> Answer<Accepted> {
    let account = match (&body.account, &body.public_key) {
        (Some(account), None) => {
            account.parse().map_err(|error: BadId| Failure::invalid(error.to_string()))?
        }
        (None, Some(key)) => of_key(&control, key)?,
        (None, None) | (Some(_), Some(_)) => {
            return Err(Failure::invalid("give `account` or `public_key`, and only one"));
        }
    };
    if !control.view().accounts.contains_key(&account) {
        return Err(Failure::not_found(format!("there is no account {account}")));
    }
    redeem(&control, &body.invite, account).await
}

/// The one account of a key.
fn of_key(control: &Control, key: &str) -> Result<AccountId> {
    let line = normal_key(key)?;
    let view = control.view();
    let mut known = view.accounts.values().filter(|account| account.ssh_keys.contains(&line));
    match (known.next(), known.next()) {
        (Some(account), None) => Ok(account.id.clone()),
        (Some(one), Some(two)) => Err(Failure::conflict(format!(
            "the key is in several accounts ({}, {}, …): name the one that uses the invite",
            one.id, two.id
        ))),
        (None, _) => Err(Failure::not_found("the key is in no account: sign up with the invite")),
    }
}
