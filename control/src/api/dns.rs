//! What a machine's owner puts into DNS, and the key with which programs of theirs do.

use axum::Json;
use axum::extract::{Path, Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use mashines_fleet::api::{AddRecord, DnsRecords, Done, RemoveRecords, UpdateKeyMade};
use mashines_fleet::dns_update::{Outcome, Update, Updated, apply};
use mashines_fleet::key::Key;
use mashines_fleet::own_record::{self, BadRecord, DEFAULT_TTL};
use mashines_fleet::record::{Desired, Machine, OwnRecord, Role, UpdateKey};

use super::answer::{Answer, done};
use super::auth::{Caller, Entry};
use super::request::Payload;
use super::{leases, machines};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::time::now;

impl From<BadRecord> for Failure {
    fn from(bad: BadRecord) -> Self {
        Self::invalid(bad.to_string())
    }
}

/// Who enters a machine and deploys to it may name what it serves.
const NAME: (Role, &str) = (Role::Operator, "change the DNS records of");

fn domain(control: &Control) -> String {
    control.view().config.as_ref().map(|config| config.domain.clone()).unwrap_or_default()
}

fn shown(control: &Control, machine: &Machine) -> DnsRecords {
    DnsRecords { name: format!("{}.{}", machine.slug, domain(control)), records: machine.records.clone() }
}

pub async fn list(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<DnsRecords> {
    Ok(Json(shown(&control, &*machines::of(&control, &caller, &path)?)))
}

async fn edit(
    control: &Control,
    machine: &Machine,
    with: impl Fn(&mut Vec<OwnRecord>) -> Result<()>,
) -> Result<Machine> {
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        if machine.desired == Desired::Destroyed {
            return Err(Failure::conflict(format!("machine {} is being destroyed", machine.slug)));
        }
        let before = machine.records.clone();
        with(&mut machine.records)?;
        let changed = machine.records != before;
        if changed {
            machine.updated_at = now();
        }
        Ok(changed)
    });
    update.await
}

pub async fn add(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    Payload(body): Payload<AddRecord>,
) -> Answer<DnsRecords> {
    let machine = machines::for_role(&control, &caller, &path, NAME)?;
    leases::check(&control, &machine, &headers).await?;
    let record =
        OwnRecord { name: body.name, kind: body.kind, ttl: body.ttl.unwrap_or(DEFAULT_TTL), data: body.data };
    let machine = edit(&control, &machine, |records| Ok(own_record::add(records, &record)?)).await?;
    Ok(Json(shown(&control, &machine)))
}

pub async fn remove(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    Query(query): Query<RemoveRecords>,
) -> Answer<DnsRecords> {
    let machine = machines::for_role(&control, &caller, &path, NAME)?;
    leases::check(&control, &machine, &headers).await?;
    let machine = edit(&control, &machine, |records| {
        let gone = own_record::remove(records, &query.name, query.kind.as_deref(), query.data.as_deref())?;
        if gone == 0 {
            return Err(Failure::not_found(format!(
                "machine {} has no such record: `mashines dns ls {}` lists them",
                machine.slug, machine.slug
            )));
        }
        Ok(())
    });
    Ok(Json(shown(&control, &machine.await?)))
}

/// A new key in place of the old one, which is good no more.
pub async fn make_key(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<UpdateKeyMade> {
    let machine = machines::for_role(&control, &caller, &path, NAME)?;
    let key = Key::Machine(machine.id.clone());
    let secret: [u8; 32] = rand::random();
    let sealed = control.secret.seal(&key, &secret);
    let sealed = sealed.map_err(|error| Failure::internal(error.to_string()))?;
    let update = control.records.update(&key, |machine: &mut Machine| {
        machine.update_key = Some(UpdateKey { secret: sealed.clone(), created_at: now() });
        machine.updated_at = now();
        Ok(true)
    });
    let machine = update.await?;
    caller.audit(&format!("made an update key for machine {}", machine.slug));
    let zone = domain(&control);
    Ok(Json(UpdateKeyMade {
        name: format!("{}.{zone}.", machine.slug),
        algorithm: "hmac-sha256".to_owned(),
        secret: STANDARD.encode(secret),
        zone: format!("{zone}."),
    }))
}

pub async fn revoke_key(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &path, NAME)?;
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        let had = machine.update_key.take().is_some();
        machine.updated_at = now();
        match had {
            true => Ok(true),
            false => Err(Failure::not_found(format!("machine {} has no update key", machine.slug))),
        }
    });
    let machine = update.await?;
    caller.audit(&format!("revoked the update key of machine {}", machine.slug));
    Ok(done())
}

/// An update (RFC 2136) that an entry's name server took and whose signature it verified. It happens as a whole or not at all.
pub async fn update(
    State(control): State<Control>,
    Entry(entry): Entry,
    Payload(body): Payload<Update>,
) -> Answer<Updated> {
    let mut outcome = Outcome::Refused;
    let key = Key::Machine(body.machine.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        let alive = machine.desired != Desired::Destroyed && machine.update_key.is_some();
        let before = machine.records.clone();
        outcome = if alive { apply(&mut machine.records, &body) } else { Outcome::Refused };
        let changed = outcome == Outcome::Done && machine.records != before;
        if changed {
            machine.updated_at = now();
        }
        Ok(changed)
    });
    let machine = update.await?;
    tracing::info!(%entry, machine = %machine.id, ?outcome, "an update of the owner's records");
    Ok(Json(Updated { outcome, revision: control.view().revision }))
}
