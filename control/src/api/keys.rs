//! What proves that somebody is of the account: SSH keys, certificate authorities, tokens.
//!
//! Keys and tokens make their bearer the owner, so only the owner adds and removes them; a certificate authority's people are at most
//! what whoever trusts it may give.

use axum::Json;
use axum::extract::{Path, Query, State};
use mashines_fleet::access::Standing;
use mashines_fleet::api::{
    self, Account, AddCa, AddKey, Claims, Done, RevokeToken, SIGNED_TOKEN, SshCa, SshKey, TokenKind,
};
use mashines_fleet::key::Key;
use mashines_fleet::record::{self, Role, TrustedCa};
use serde::Deserialize;

use super::answer::{Answer, done};
use super::auth::Caller;
use super::members::to_give;
use super::request::Payload;
use super::{render, suggest};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::found::{RevokedRecord, TokenRecord, hash};
use crate::records::Private;
use crate::signed;
use crate::ssh_ca::{normal_key, shown_key};
use crate::time::{now, rfc3339};

/// More would make each machine's `authorized_keys` a burden.
const MOST_KEYS: usize = 100;
/// The most certificate authorities of an account.
const MOST_CAS: usize = 16;
/// The most principals of one.
const MOST_PRINCIPALS: usize = 64;
/// The most revoked tokens of an account that could still be good.
const MOST_REVOKED: usize = 1000;
/// Of a kept token's hash, what its id shows.
const ID: usize = 12;

fn unknown<'a>(
    account: &record::Account,
    what: &str,
    id: &str,
    known: impl Iterator<Item = &'a str>,
) -> Failure {
    let hint = suggest::did_you_mean(id, known);
    let id: String = id.chars().take(80).collect();
    Failure::not_found(format!("account {} has no {what} {id:?}{hint}", account.id))
}

fn keys_of(account: &record::Account) -> Vec<SshKey> {
    account.ssh_keys.iter().filter_map(|line| shown_key(line)).collect()
}

pub async fn keys(caller: Caller) -> Answer<Vec<SshKey>> {
    caller.must(Role::Viewer, "see the keys")?;
    Ok(Json(keys_of(&caller.account)))
}

pub async fn add_key(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<AddKey>,
) -> Answer<Account> {
    caller.must(Standing::Owner, "add keys")?;
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
    caller.audit(&format!("added key {line}"));
    Ok(Json(render::account(&control.view(), &account)))
}

#[derive(Deserialize)]
pub struct RemoveKey {
    #[serde(default)]
    last: bool,
}

pub async fn remove_key(
    State(control): State<Control>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<RemoveKey>,
) -> Answer<Vec<SshKey>> {
    caller.must(Standing::Owner, "remove keys")?;
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut record::Account| {
        let keys = keys_of(account);
        let Some(found) = keys.iter().find(|key| key.id == id || key.fingerprint == id) else {
            return Err(unknown(account, "key", &id, keys.iter().map(|key| key.id.as_str())));
        };
        if account.ssh_keys.len() == 1 && !query.last {
            return Err(Failure::conflict(format!(
                "key {} is the last of account {}: without it nobody enters by ssh; add another first, or say ?last=true",
                found.id, account.id
            )));
        }
        account.ssh_keys.retain(|line| *line != found.public_key);
        Ok(true)
    });
    let account = update.await?;
    caller.audit(&format!("removed key {id}"));
    Ok(Json(keys_of(&account)))
}

fn cas_of(account: &record::Account) -> Vec<SshCa> {
    let shown = |ca: &TrustedCa| {
        Some(SshCa { key: shown_key(&ca.public_key)?, principals: ca.principals.clone(), role: ca.role })
    };
    account.ssh_cas.iter().filter_map(shown).collect()
}

pub async fn cas(caller: Caller) -> Answer<Vec<SshCa>> {
    caller.must(Role::Viewer, "see the certificate authorities")?;
    Ok(Json(cas_of(&caller.account)))
}

pub async fn add_ca(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<AddCa>,
) -> Answer<Vec<SshCa>> {
    caller.must(
        to_give(body.role),
        &format!("trust certificate authorities whose people come as {}", body.role),
    )?;
    let public_key = normal_key(&body.public_key)?;
    let wrong = |p: &String| p.is_empty() || p.len() > 256 || p.chars().any(|c| c.is_control() || c == ',');
    if body.principals.len() > MOST_PRINCIPALS || body.principals.iter().any(wrong) {
        return Err(Failure::invalid(format!(
            "principals are at most {MOST_PRINCIPALS} names of at most 256 characters, without commas"
        )));
    }
    if body.principals.iter().any(|p| control.view().machine_by_slug(p).is_some()) {
        return Err(Failure::invalid(
            "a principal that is a machine's name enters that machine already: name people or groups here",
        ));
    }
    let ca = TrustedCa { public_key, principals: body.principals, role: body.role };
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut record::Account| {
        let trusted = &mut account.ssh_cas;
        match trusted.iter().position(|known| known.public_key == ca.public_key) {
            Some(at) => {
                let has = trusted[at].role;
                caller.must(to_give(has), &format!("change an authority whose people come as {has}"))?;
                trusted[at].clone_from(&ca);
            }
            None if trusted.len() >= MOST_CAS => {
                return Err(Failure::conflict(format!(
                    "the account trusts {MOST_CAS} certificate authorities already, which is the most"
                )));
            }
            None => trusted.push(ca.clone()),
        }
        Ok(true)
    });
    let account = update.await?;
    caller.audit(&format!("trusts certificate authority {}, as {}", ca.public_key, ca.role));
    Ok(Json(cas_of(&account)))
}

pub async fn remove_ca(
    State(control): State<Control>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Vec<SshCa>> {
    let key = Key::Account(caller.account.id.clone());
    let update = control.records.update(&key, |account: &mut record::Account| {
        let cas = cas_of(account);
        let Some(found) = cas.iter().find(|ca| ca.key.id == id || ca.key.fingerprint == id) else {
            caller.must(Role::Admin, "remove certificate authorities")?;
            return Err(unknown(
                account,
                "certificate authority",
                &id,
                cas.iter().map(|ca| ca.key.id.as_str()),
            ));
        };
        caller
            .must(to_give(found.role), &format!("remove an authority whose people come as {}", found.role))?;
        account.ssh_cas.retain(|ca| ca.public_key != found.key.public_key);
        Ok(true)
    });
    let account = update.await?;
    caller.audit(&format!("trusts certificate authority {id} no more"));
    Ok(Json(cas_of(&account)))
}

fn short(hash: &str) -> String {
    hash.chars().take(ID).collect()
}

pub async fn tokens(State(control): State<Control>, caller: Caller) -> Answer<Vec<api::Token>> {
    caller.must(Role::Admin, "see the tokens")?;
    let account = &caller.account.id;
    let kept: Vec<(String, TokenRecord)> = control.records.private_below("token/").await?;
    let kept =
        kept.into_iter().filter(|(_, token)| token.account == *account).map(|(hash, token)| api::Token {
            id: short(&hash),
            kind: TokenKind::Kept,
            created_at: rfc3339(token.created_at),
            expires_at: None,
            this: caller.token.as_deref() == Some(hash.as_str()),
        });
    let revoked: Vec<(String, RevokedRecord)> =
        control.records.private_below(&format!("revoked/{account}/")).await?;
    let revoked =
        revoked.into_iter().filter(|(_, token)| token.until > now()).map(|(hash, token)| api::Token {
            id: short(&hash),
            kind: TokenKind::Revoked,
            created_at: rfc3339(token.at),
            expires_at: Some(rfc3339(token.until)),
            this: false,
        });
    Ok(Json(kept.chain(revoked).collect()))
}

pub async fn remove_token(
    State(control): State<Control>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Done> {
    caller.must(Standing::Owner, "remove tokens")?;
    let all: Vec<(String, TokenRecord)> = control.records.private_below("token/").await?;
    let mine: Vec<String> = all
        .into_iter()
        .filter(|(_, token)| token.account == caller.account.id)
        .map(|(hash, _)| hash)
        .collect();
    let Some(hash) = mine.iter().find(|hash| short(hash) == id) else {
        let ids: Vec<String> = mine.iter().map(|hash| short(hash)).collect();
        return Err(unknown(&caller.account, "token", &id, ids.iter().map(String::as_str)));
    };
    let mut edit = control.records.edit();
    edit.delete_private(Private::Token(hash));
    edit.commit().await?;
    caller.audit(&format!("removed token {id}"));
    Ok(done())
}

/// Refuses a signed token from now on. Revocations that no living token could need are forgotten meanwhile.
pub async fn revoke(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<RevokeToken>,
) -> Answer<Done> {
    caller.must(Standing::Owner, "revoke tokens")?;
    let nonce = match (&body.nonce, &body.token) {
        (Some(nonce), None) => nonce.clone(),
        (None, Some(token)) => nonce_of(token)?,
        (None, None) | (Some(_), Some(_)) => {
            return Err(Failure::invalid("give `nonce` or `token`, and only one"));
        }
    };
    if !(8..=64).contains(&nonce.len()) {
        return Err(Failure::invalid("a token's nonce has 8 to 64 characters"));
    }
    let (account, now) = (&caller.account.id, now());
    let known: Vec<(String, RevokedRecord)> =
        control.records.private_below(&format!("revoked/{account}/")).await?;
    if known.iter().filter(|(_, record)| record.until > now).count() >= MOST_REVOKED {
        return Err(Failure::conflict(format!(
            "account {account} has revoked {MOST_REVOKED} tokens within a year, which is the most: remove the key that signs them"
        )));
    }
    let mut edit = control.records.edit();
    for (hash, _) in known.iter().filter(|(_, record)| record.until <= now) {
        edit.delete_private(Private::Revoked(account, hash));
    }
    let record = RevokedRecord { at: now, until: now + signed::LONGEST_LIFE_S * 1000 };
    edit.put_private(Private::Revoked(account, &hash(&nonce)), &record)?;
    edit.commit().await?;
    caller.audit("revoked a signed token");
    Ok(done())
}

/// The nonce of a token, whether or not it is good.
fn nonce_of(token: &str) -> Result<String> {
    use base64::Engine;
    let wrong =
        || Failure::invalid("that is no signed token: it is mss_, JSON in base64url, a dot and a signature");
    let json =
        token.trim().strip_prefix(SIGNED_TOKEN).and_then(|rest| rest.split('.').next()).ok_or_else(wrong)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(json).map_err(|_| wrong())?;
    let claims: Claims = serde_json::from_slice(&json).map_err(|_| wrong())?;
    Ok(claims.nonce)
}
