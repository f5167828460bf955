//! Who asks: a person by a bearer token, or an entry on a person's behalf.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use mashines_fleet::api::ACCOUNT_HEADER;
use mashines_fleet::id::{AccountId, HostId};
use mashines_fleet::record::{Account, Host, HostRole};
use mashines_fleet::rpc::Peer;

use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::found::{TokenRecord, hash};
use crate::records::Private;

/// An account that asks.
pub struct Caller {
    /// It.
    pub account: Arc<Account>,
}

impl Caller {
    /// Refuses all but administrators.
    ///
    /// # Errors
    /// [`Kind::Forbidden`].
    pub fn must_be_admin(&self, what: &str) -> Result<()> {
        if self.account.admin {
            return Ok(());
        }
        let id = &self.account.id;
        Err(Failure::new(Kind::Forbidden, format!("account {id} may not {what}: administrators may")))
    }
}

impl FromRequestParts<Control> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self> {
        let id = match parts.headers.get(AUTHORIZATION) {
            Some(value) => by_token(control, value.as_bytes()).await?,
            None => by_entry(control, parts)?,
        };
        let account = control.view().accounts.get(&id).cloned();
        let gone = || Failure::new(Kind::Unauthorized, format!("account {id} is not there (any more)"));
        Ok(Self { account: account.ok_or_else(gone)? })
    }
}

async fn by_token(control: &Control, header: &[u8]) -> Result<AccountId> {
    let text = std::str::from_utf8(header).unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or_default();
    // `FlyV1` is what Fly's own clients send.
    if !scheme.eq_ignore_ascii_case("bearer") && !scheme.eq_ignore_ascii_case("flyv1") {
        return Err(Failure::new(Kind::Unauthorized, "the header must be `Authorization: Bearer TOKEN`"));
    }
    let record: Option<TokenRecord> = control.records.private(Private::Token(&hash(token.trim()))).await?;
    let unknown =
        || Failure::new(Kind::Unauthorized, "the token is not known here: it was mistyped or revoked");
    Ok(record.ok_or_else(unknown)?.account)
}

fn by_entry(control: &Control, parts: &Parts) -> Result<AccountId> {
    let nobody = || {
        Failure::new(
            Kind::Unauthorized,
            "send a token: `Authorization: Bearer TOKEN` (`mashines login` keeps it)",
        )
    };
    let account = parts.headers.get(ACCOUNT_HEADER).and_then(|value| value.to_str().ok());
    let (Some(account), Some(Member(host))) = (account, member(parts)) else { return Err(nobody()) };
    if !is_entry(control, &host) {
        return Err(Failure::new(Kind::Forbidden, format!("{host} is no entry: it speaks for no account")));
    }
    account.parse().map_err(|error: mashines_fleet::id::BadId| Failure::invalid(error.to_string()))
}

fn is_entry(control: &Control, host: &HostId) -> bool {
    let entry = |host: &Arc<Host>| host.roles.contains(&HostRole::Entry);
    control.view().hosts.get(host).is_some_and(entry)
}

/// A host or entry of the fleet, by its certificate.
pub struct Member(pub HostId);

fn member(parts: &Parts) -> Option<Member> {
    let peer = parts.extensions.get::<Peer>()?;
    peer.name.as_ref()?.as_host().map(Member)
}

impl FromRequestParts<Control> for Member {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Control) -> Result<Self> {
        let none = || {
            Failure::new(Kind::Unauthorized, "this is for members of the fleet: show a certificate of its CA")
        };
        member(parts).ok_or_else(none)
    }
}

/// An entry of the fleet, by its certificate.
pub struct Entry(pub HostId);

impl FromRequestParts<Control> for Entry {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self> {
        let Member(host) = Member::from_request_parts(parts, control).await?;
        if is_entry(control, &host) {
            return Ok(Self(host));
        }
        Err(Failure::new(Kind::Forbidden, format!("{host} is no entry")))
    }
}

/// Any member of the fleet, control itself included: for the change stream.
pub struct Follower;

impl FromRequestParts<Control> for Follower {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Control) -> Result<Self> {
        let peer = parts.extensions.get::<Peer>();
        if peer.is_some_and(|peer| peer.name.is_some()) {
            return Ok(Self);
        }
        Err(Failure::new(
            Kind::Unauthorized,
            "this is for members of the fleet: show a certificate of its CA",
        ))
    }
}
