//! Start, stop, restart: they change what is wanted, and the lifecycle does the rest.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use http::HeaderMap;
use mashines_fleet::api::{Done, StopMachine, parse_seconds};
use mashines_fleet::id::MachineId;
use mashines_fleet::key::Key;
use mashines_fleet::record::{Capacity, Desired, Machine, MachineState, Place, Role};
use serde::Deserialize;

use super::answer::{Answer, done};
use super::auth::Caller;
use super::request::OptionalPayload;
use super::{leases, machines};
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::lifecycle::event;
use crate::migration;
use crate::records::{Private, retrying};
use crate::scheduler::{Wanted, missing, needs, used};
use crate::time::{ms, now};

/// The longest time a guest is given to shut down.
const LONGEST_STOP: Duration = Duration::from_secs(300);

/// A change that needs the machine's place to stay is refused while it is being moved.
pub fn must_be_at_rest(control: &Control, machine: &Machine, what: &str) -> Result<()> {
    if machine.desired == Desired::Destroyed {
        return Err(Failure::conflict(format!("machine {} is being destroyed", machine.slug)));
    }
    match control.view().migration_of(&machine.id) {
        None => Ok(()),
        Some(migration) => Err(Failure::conflict(format!(
            "machine {} is being moved (migration {}): it cannot {what} until that is over",
            machine.slug, migration.id
        ))),
    }
}

/// The next instance: the lifecycle ends the older one, if it runs, and starts this.
pub fn raise_epoch(machine: &mut Machine, kind: &str) {
    if let Some(place) = &mut machine.place {
        place.epoch = place.epoch.next();
    }
    machine.state = MachineState::Starting;
    machine.reason = None;
    // What it crashed before is forgiven: a person took it in hand.
    machine.events.retain(|event| event.kind != "restart");
    event(machine, kind, "started", "user", String::new(), now());
}

pub async fn start(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Operator, "start"))?;
    leases::check(&control, &machine, &headers).await?;
    let control = &control;
    retrying(|| async {
        let _placing = control.placing.lock().await;
        let mut edit = control.records.edit();
        let mut machine: Machine = edit.require(&Key::Machine(machine.id.clone())).await?;
        if machine.desired == Desired::Started {
            return Ok(());
        }
        must_be_at_rest(control, &machine, "be started")?;
        if machine.place.is_none() {
            machine.place = Some(first_place(control, &machine)?);
            machine.state = MachineState::Starting;
            event(&mut machine, "start", "started", "user", String::new(), now());
        } else {
            fits_again(control, &machine)?;
            raise_epoch(&mut machine, "start");
        }
        machine.desired = Desired::Started;
        edit.put(&machine)?;
        edit.commit().await
    })
    .await?;
    Ok(done())
}

fn first_place(control: &Control, machine: &Machine) -> Result<Place> {
    let view = control.view();
    let volumes = crate::records::volumes_of(&view, machine);
    let host = control.choose(&Wanted {
        region: None,
        host: None,
        not: None,
        image: machine.config.image.clone(),
        digest: Some(machine.image_digest.clone()),
        room: needs(&view, machine),
        pinned: volumes.iter().filter_map(|volume| volume.host.clone()).collect(),
    })?;
    Ok(Place { host, epoch: mashines_fleet::id::Epoch(1) })
}

/// Its disks are on its host: that one has room for it again, or it does not start. A cordon keeps new machines out, not this one.
fn fits_again(control: &Control, machine: &Machine) -> Result<()> {
    let Some(place) = &machine.place else { return Ok(()) };
    let view = control.view();
    let host = control.host(&place.host)?;
    let none = |why: String| {
        Failure::new(
            Kind::NoRoom,
            format!("machine {} cannot start: its disks are on {}, which {why}", machine.slug, place.host),
        )
    };
    if !control.hosts.alive(&host) {
        return Err(Failure::new(Kind::Unavailable, none("does not answer".to_owned()).message));
    }
    // Its disk is counted there already, and so is its memory while it stops.
    let disk_mib = 0;
    let room = Capacity { disk_mib, ..needs(&view, machine) };
    let taken = used(&view, &place.host);
    match missing(room, host.capacity, taken) {
        Some(_) if matches!(machine.state, MachineState::Started | MachineState::Stopping) => Ok(()),
        Some(why) => Err(none(format!("{why} is missing").replace(" is free is missing", " is free"))),
        None => Ok(()),
    }
}

/// How long a stop may take, by what the request says.
fn grace(body: &StopMachine) -> Result<Option<u64>> {
    let signal = body.signal.as_deref().map(|signal| signal.trim_start_matches("SIG").to_ascii_uppercase());
    match signal.as_deref() {
        Some("KILL") => return Ok(Some(0)),
        None | Some("" | "TERM" | "INT" | "QUIT") => {}
        Some(other) => {
            return Err(Failure::invalid(format!(
                "a machine cannot be stopped by SIG{other}: SIGTERM and SIGINT shut it down, SIGKILL ends it at once"
            )));
        }
    }
    match body.timeout.map(Duration::from_secs) {
        Some(timeout) if timeout > LONGEST_STOP => {
            Err(Failure::invalid(format!("a stop takes at most {LONGEST_STOP:?}, {timeout:?} was asked for")))
        }
        timeout => Ok(timeout.map(ms)),
    }
}

pub async fn stop(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    OptionalPayload(body): OptionalPayload<StopMachine>,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Operator, "stop"))?;
    leases::check(&control, &machine, &headers).await?;
    let grace = grace(&body)?;
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut machine: Machine = edit.require(&Key::Machine(machine.id.clone())).await?;
        match machine.desired {
            Desired::Destroyed => {
                return Err(Failure::conflict(format!("machine {} is being destroyed", machine.slug)));
            }
            Desired::Stopped => return Ok(()),
            Desired::Started => {}
        }
        machine.desired = Desired::Stopped;
        machine.reason = None;
        event(&mut machine, "stop", "started", "user", String::new(), now());
        keep_grace(&mut edit, &machine.id, grace)?;
        edit.put(&machine)?;
        edit.commit().await
    })
    .await?;
    end_migration(&control, &machine.id).await?;
    Ok(done())
}

fn keep_grace(edit: &mut crate::records::Edit<'_>, machine: &MachineId, grace: Option<u64>) -> Result<()> {
    match grace {
        Some(grace) => edit.put_private(Private::Stop(machine), &grace)?,
        None => edit.delete_private(Private::Stop(machine)),
    };
    Ok(())
}

/// A machine that is to stop or go is moved no further. When it is too late for that, it stops where it arrives.
pub async fn end_migration(control: &Control, machine: &MachineId) -> Result<()> {
    let Some(migration) = control.view().migration_of(machine).cloned() else { return Ok(()) };
    match migration::cancel(control, &migration.id).await {
        Err(failure) if failure.kind != Kind::Conflict => Err(failure),
        Err(_) | Ok(_) => Ok(()),
    }
}

#[derive(Deserialize)]
pub struct Restart {
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    force_stop: Option<bool>,
    #[serde(default)]
    signal: Option<String>,
}

pub async fn restart(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Query(query): Query<Restart>,
    headers: HeaderMap,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Operator, "restart"))?;
    leases::check(&control, &machine, &headers).await?;
    let timeout = match query.timeout.as_deref().map(|text| (text, parse_seconds(text))) {
        Some((text, None)) => {
            return Err(Failure::invalid(format!("timeout {text:?} is no time: write 10, 10s or 2m")));
        }
        Some((_, seconds)) => seconds,
        None => None,
    };
    let force = query.force_stop.unwrap_or_default();
    let signal = if force { Some("SIGKILL".to_owned()) } else { query.signal };
    let grace = grace(&StopMachine { timeout, signal })?;
    let control = &control;
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut machine: Machine = edit.require(&Key::Machine(machine.id.clone())).await?;
        must_be_at_rest(control, &machine, "be restarted")?;
        if machine.desired != Desired::Started {
            return Err(Failure::conflict(format!(
                "machine {} is {}: start it instead",
                machine.slug,
                machine.state.word()
            )));
        }
        raise_epoch(&mut machine, "restart-request");
        keep_grace(&mut edit, &machine.id, grace)?;
        edit.put(&machine)?;
        edit.commit().await
    })
    .await?;
    Ok(done())
}
