//! Leases of machines: while one holds it, others' changes are refused.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use mashines_fleet::api::{Done, Lease, LeaseAnswer, LeaseRequest};
use mashines_fleet::record::{Machine, Role};

use super::answer::{Answer, done};
use super::auth::Caller;
use super::machines;
use super::request::OptionalPayload;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Private, retrying};
use crate::time::now;

/// The header of the holder's requests.
const NONCE: &str = "fly-machine-lease-nonce";
/// The longest lease, seconds.
const LONGEST: u64 = 3600;

fn valid(lease: Option<Lease>) -> Option<Lease> {
    lease.filter(|lease| lease.expires_at > now() / 1000)
}

fn nonce(headers: &HeaderMap) -> Option<&str> {
    headers.get(NONCE).and_then(|value| value.to_str().ok())
}

fn held(machine: &Machine, lease: &Lease) -> Failure {
    let left = lease.expires_at.saturating_sub(now() / 1000);
    Failure::conflict(format!(
        "machine {} is leased by {} for {left} s more ({}): wait, or send the header {NONCE}",
        machine.slug, lease.owner, lease.description
    ))
}

/// Refuses a change of a machine that somebody else leased.
pub async fn check(control: &Control, machine: &Machine, headers: &HeaderMap) -> Result<()> {
    let lease: Option<Lease> = control.records.private(Private::Lease(&machine.id)).await?;
    match valid(lease) {
        Some(lease) if nonce(headers) != Some(lease.nonce.as_str()) => Err(held(machine, &lease)),
        Some(_) | None => Ok(()),
    }
}

/// A lease keeps the owner out too, so nobody takes one of a machine that is shared with them.
fn leasable(control: &Control, caller: &Caller, path: &(String, String)) -> Result<Arc<Machine>> {
    let machine = machines::of(control, caller, path)?;
    let own = machine.account == caller.account.id;
    caller.must_at(&machine, if own { Role::Operator } else { Role::Admin }, "lease")?;
    Ok(machine)
}

fn answer(data: Lease) -> LeaseAnswer {
    LeaseAnswer { status: "success".to_owned(), data }
}

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<LeaseAnswer> {
    let machine = machines::of(&control, &caller, &path)?;
    let lease: Option<Lease> = control.records.private(Private::Lease(&machine.id)).await?;
    let none = || Failure::not_found(format!("machine {} is not leased", machine.slug));
    let lease = valid(lease).ok_or_else(none)?;
    Ok(Json(answer(Lease { nonce: String::new(), ..lease })))
}

pub async fn take(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    OptionalPayload(body): OptionalPayload<LeaseRequest>,
) -> Result<(StatusCode, Json<LeaseAnswer>)> {
    let machine = leasable(&control, &caller, &path)?;
    let ttl = body.ttl.unwrap_or(60);
    if !(1..=LONGEST).contains(&ttl) {
        return Err(Failure::invalid(format!("ttl {ttl}: it is 1 to {LONGEST} seconds")));
    }
    let lease = Lease {
        nonce: hex::encode(rand::random::<[u8; 16]>()),
        expires_at: now() / 1000 + ttl,
        owner: caller.me.id.clone(),
        description: body.description.unwrap_or_default(),
    };
    let (machine, lease, shown) = (&machine, &lease, nonce(&headers));
    let taken = retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<Lease> = edit.private(Private::Lease(&machine.id)).await?;
        let mut next = lease.clone();
        if let Some(known) = valid(known) {
            if shown != Some(known.nonce.as_str()) {
                return Err(held(machine, &known));
            }
            // The holder prolongs it.
            next.nonce = known.nonce;
        }
        edit.put_private(Private::Lease(&machine.id), &next)?;
        edit.commit().await?;
        Ok(next)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(answer(taken))))
}

pub async fn release(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Done> {
    let machine = leasable(&control, &caller, &path)?;
    check(&control, &machine, &headers).await?;
    let mut edit = control.records.edit();
    edit.delete_private(Private::Lease(&machine.id));
    edit.commit().await?;
    Ok(done())
}
