//! The account that asks.

use axum::Json;
use axum::extract::State;
use mashines_fleet::api::{Account, AddKey, CurrentToken, TokenInfo};
use mashines_fleet::key::Key;
use mashines_fleet::record;

use super::answer::Answer;
use super::auth::Caller;
use super::render;
use super::request::Payload;
use crate::control::Control;
use crate::failure::Failure;
use crate::ssh_ca::normal_key;

/// More would make each machine's `authorized_keys` a burden.
const MOST_KEYS: usize = 100;

pub async fn show(State(control): State<Control>, caller: Caller) -> Answer<Account> {
    Ok(Json(render::account(&control.view(), &caller.account)))
}

pub async fn add_key(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<AddKey>,
) -> Answer<Account> {
    let line = normal_key(&body.public_key)?;
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut record::Account| {
        if account.ssh_keys.contains(&line) {
            return Ok(false);
        }
        if account.ssh_keys.len() >= MOST_KEYS {
            return Err(Failure::conflict(format!(
                "the account has {MOST_KEYS} keys already, which is the most"
            )));
        }
        account.ssh_keys.push(line.clone());
        Ok(true)
    });
    let account = update.await?;
    Ok(Json(render::account(&control.view(), &account)))
}

pub async fn token(caller: Caller) -> Answer<CurrentToken> {
    let (id, admin) = (caller.account.id.clone(), caller.account.admin);
    Ok(Json(CurrentToken { tokens: vec![TokenInfo { org_slug: id.clone(), organization: id, admin }] }))
}
