//! Who acts for the account, whom its machines are shared with.
//!
//! An admin gives and takes `viewer` and `operator`; admins are made and unmade by the owner, so that none makes more of themselves.

use axum::Json;
use axum::extract::{Path, State};
use mashines_fleet::access::Standing;
use mashines_fleet::api::{self, SetMember, SetShare};
use mashines_fleet::id::{AccountId, BadId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Account, Machine, Role, Share};

use super::answer::Answer;
use super::auth::Caller;
use super::machines;
use super::request::Payload;
use super::suggest::did_you_mean;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::invites::{Replace, put_share, set_member};
use crate::time::{now, rfc3339};

/// The longest time that is still an end, seconds: ten years.
pub const LONGEST_S: u64 = 10 * 366 * 24 * 3600;

/// What it takes to give or take a role.
pub fn to_give(role: Role) -> Standing {
    match role {
        Role::Viewer | Role::Operator => Standing::As(Role::Admin),
        Role::Admin => Standing::Owner,
    }
}

/// An account that is there.
fn account(control: &Control, name: &str) -> Result<AccountId> {
    let id: AccountId = name.parse().map_err(|error: BadId| Failure::invalid(error.to_string()))?;
    match control.view().accounts.contains_key(&id) {
        true => Ok(id),
        // Which accounts there are is told to nobody, so nothing is suggested.
        false => Err(Failure::not_found(format!(
            "there is no account {id}: invite a newcomer with `mashines invite`"
        ))),
    }
}

fn shown(account: &Account) -> Vec<api::Member> {
    account.members.iter().map(|(id, role)| api::Member { account: id.clone(), role: *role }).collect()
}

pub async fn list(caller: Caller) -> Answer<Vec<api::Member>> {
    caller.must(Role::Viewer, "see the members")?;
    Ok(Json(shown(&caller.account)))
}

pub async fn set(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<SetMember>,
) -> Answer<Vec<api::Member>> {
    caller.must(to_give(body.role), &format!("make members {}", body.role))?;
    let member = account(&control, &body.account)?;
    if member == caller.account.id {
        return Err(Failure::conflict(format!("account {member} is no member of itself: it owns itself")));
    }
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut Account| {
        match account.members.get(&member) {
            Some(has) if *has == body.role => return Ok(false),
            Some(has) => caller.must(to_give(*has), &format!("change what an {has} is"))?,
            None => {}
        }
        set_member(account, member.clone(), body.role)?;
        Ok(true)
    });
    let account = update.await?;
    caller.audit(&format!("made {member} a member, as {}", body.role));
    Ok(Json(shown(&account)))
}

pub async fn remove(
    State(control): State<Control>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<Vec<api::Member>> {
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut Account| {
        let known = account.members.iter().find(|(id, _)| id.as_str() == name);
        let Some((id, role)) = known.map(|(id, role)| (id.clone(), *role)) else {
            let hint = did_you_mean(&name, account.members.keys().map(|id| id.as_str()));
            let name: String = name.chars().take(80).collect();
            return Err(Failure::not_found(format!("{name:?} is no member of account {}{hint}", account.id)));
        };
        // Whoever wants to leave may.
        if id != caller.me.id || !caller.is_themselves() {
            caller.must(to_give(role), &format!("remove members that are {role}"))?;
        }
        account.members.remove(&id);
        Ok(true)
    });
    let account = update.await?;
    caller.audit(&format!("removed member {name}"));
    Ok(Json(shown(&account)))
}

/// The end of something that lasts so many seconds.
pub fn end(ttl: Option<u64>) -> Result<Option<u64>> {
    match ttl {
        None => Ok(None),
        Some(ttl @ 1..=LONGEST_S) => Ok(Some(now() + ttl * 1000)),
        Some(ttl) => Err(Failure::invalid(format!("ttl {ttl}: it is 1 to {LONGEST_S} seconds"))),
    }
}

fn shares_of(machine: &Machine) -> Vec<api::Share> {
    let live = machine.shares.iter().filter_map(|share| {
        let role = share.gives(now())?;
        Some(api::Share { account: share.account.clone(), role, expires_at: share.expires_at.map(rfc3339) })
    });
    live.collect()
}

pub async fn shares(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Vec<api::Share>> {
    let machine = machines::of(&control, &caller, &path)?;
    let mut shares = shares_of(&machine);
    // With whom else it is shared is its owner's business.
    if machine.account != caller.account.id {
        shares.retain(|share| share.account == caller.account.id);
    }
    Ok(Json(shares))
}

pub async fn share(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Payload(body): Payload<SetShare>,
) -> Answer<Vec<api::Share>> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Admin, "share"))?;
    let with = account(&control, &body.account)?;
    let share = Share { account: with, role: body.role, expires_at: end(body.ttl)? };
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        put_share(machine, share.clone(), Replace::Always)?;
        Ok(true)
    });
    let machine = update.await?;
    caller.audit(&format!("shared machine {} with {}, as {}", machine.slug, share.account, share.role));
    Ok(Json(shares_of(&machine)))
}

pub async fn unshare(
    State(control): State<Control>,
    caller: Caller,
    Path((app, name, with)): Path<(String, String, String)>,
) -> Answer<Vec<api::Share>> {
    let machine = machines::of(&control, &caller, &(app, name))?;
    // Whoever it is shared with may give that up.
    let mine = machine.account != caller.account.id && with == caller.account.id.as_str();
    match mine {
        true => caller.must(Role::Admin, "give up shares")?,
        false => caller.must_at(&machine, Role::Admin, "unshare")?,
    }
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        let before = machine.shares.len();
        let hint = did_you_mean(&with, machine.shares.iter().map(|share| share.account.as_str()));
        machine.shares.retain(|share| share.account.as_str() != with);
        if machine.shares.len() == before {
            let with: String = with.chars().take(80).collect();
            return Err(Failure::not_found(format!(
                "machine {} is not shared with {with:?}{hint}",
                machine.slug
            )));
        }
        machine.updated_at = now();
        Ok(true)
    });
    let machine = update.await?;
    caller.audit(&format!("unshared machine {} with {with}", machine.slug));
    let shares = shares_of(&machine);
    Ok(Json(if mine { Vec::new() } else { shares }))
}
