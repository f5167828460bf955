//! Machines: shown, listed, updated, destroyed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use http::HeaderMap;
use mashines_fleet::api::{self, Done, OrgMachines, UpdateMachine};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Desired, Machine, MachineState, Role};
use mashines_fleet::view::View;
use serde::Deserialize;

use super::answer::{Answer, done};
use super::auth::Caller;
use super::request::Payload;
use super::suggest::did_you_mean;
use super::{apps, launch, leases, power, render};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::lifecycle::event;
use crate::records::retrying;
use crate::time::now;

/// Query parameters, repeated ones too.
pub type Params = Query<Vec<(String, String)>>;

/// The machine by id or slug, when the caller sees it; `app` when the path names one. Others' machines are not there.
pub fn find(view: &View, caller: &Caller, app: Option<&str>, name: &str) -> Result<Arc<Machine>> {
    let of_app = |machine: &&Arc<Machine>| app.is_none_or(|app| machine.app.as_str() == app);
    let seen = |machine: &&Arc<Machine>| of_app(machine) && caller.standing_at(machine).is_some();
    let by_id = view.machines.values().find(|machine| machine.id.as_str() == name);
    let named = by_id.or_else(|| view.machine_by_slug(name)).filter(of_app);
    if let Some(machine) = named.filter(seen) {
        return Ok(Arc::clone(machine));
    }
    let live = view.machines.values().filter(seen).filter(|m| m.state != MachineState::Destroyed);
    let hint = match named.and_then(|machine| elsewhere(view, caller, machine)) {
        Some(hint) => hint,
        None => did_you_mean(name, live.map(|machine| machine.slug.as_str())),
    };
    let name: String = name.chars().take(80).collect();
    let place = app.map(|app| format!(" in app {app}")).unwrap_or_default();
    Err(Failure::not_found(format!("there is no machine {name:?}{place}{hint}")))
}

/// The caller would see the machine if they asked for its account.
fn elsewhere(view: &View, caller: &Caller, machine: &Machine) -> Option<String> {
    let theirs = view.accounts.get(&machine.account)?;
    let mine = theirs.members.contains_key(&caller.me.id) || theirs.id == caller.me.id;
    mine.then(|| {
        format!(" in account {}; it is account {1}'s: `--account {1}`", caller.account.id, theirs.id)
    })
}

/// The machine of a path of one machine, for something that takes a viewer.
pub fn of(control: &Control, caller: &Caller, path: &(String, String)) -> Result<Arc<Machine>> {
    find(&control.view(), caller, Some(&path.0), &path.1)
}

/// The machine of a path of one machine, for something that takes more.
pub fn for_role(
    control: &Control,
    caller: &Caller,
    path: &(String, String),
    (need, what): (Role, &str),
) -> Result<Arc<Machine>> {
    let machine = of(control, caller, path)?;
    caller.must_at(&machine, need, what)?;
    Ok(machine)
}

/// What changes a machine for good takes its own account's admins, never somebody whom it is shared with.
pub const CHANGE: (Role, &str) = (Role::Admin, "change");

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<api::Machine> {
    let machine = of(&control, &caller, &path)?;
    Ok(Json(render::machine_for(&control, &caller, &machine)))
}

pub async fn flat_one(
    State(control): State<Control>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<api::Machine> {
    let machine = find(&control.view(), &caller, None, &name)?;
    Ok(Json(render::machine_for(&control, &caller, &machine)))
}

/// The machines that the caller sees and that fit, in the order of their names: of an app its own, else also those that are shared
/// with the account.
fn fitting(
    control: &Control,
    caller: &Caller,
    app: Option<&str>,
    params: &[(String, String)],
) -> Vec<api::Machine> {
    let given = |key: &str| params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let deleted = given("include_deleted").is_some_and(|v| v == "true" || v == "1");
    let states: Vec<&str> =
        params.iter().filter(|(k, _)| k == "state").flat_map(|(_, v)| v.split(',')).collect();
    let labels: Vec<(&str, &str)> =
        params.iter().filter_map(|(k, v)| Some((k.strip_prefix("metadata.")?, v.as_str()))).collect();
    let mut machines: Vec<api::Machine> = control
        .view()
        .machines
        .values()
        .filter(|m| caller.standing_at(m).is_some())
        .filter(|m| app.is_none_or(|app| m.app.as_str() == app && m.account == caller.account.id))
        .filter(|m| deleted || m.state != MachineState::Destroyed)
        .filter(|m| labels.iter().all(|(k, v)| m.config.metadata.get(*k).is_some_and(|has| has == v)))
        .map(|m| render::machine_for(control, caller, m))
        .filter(|m| given("region").is_none_or(|region| m.region == region))
        .filter(|m| states.is_empty() || states.contains(&m.state.word()))
        .collect();
    machines.sort_by(|a, b| a.slug.cmp(&b.slug));
    machines
}

pub async fn list(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
    Query(params): Params,
) -> Answer<Vec<api::Machine>> {
    let app = apps::of(&control, &caller, &app).await?;
    Ok(Json(fitting(&control, &caller, Some(app.as_str()), &params)))
}

pub async fn flat(
    State(control): State<Control>,
    caller: Caller,
    Query(params): Params,
) -> Answer<Vec<api::Machine>> {
    Ok(Json(fitting(&control, &caller, None, &params)))
}

pub async fn of_org(
    State(control): State<Control>,
    caller: Caller,
    Path(account): Path<String>,
    Query(params): Params,
) -> Answer<OrgMachines> {
    if account != caller.account.id.as_str() && account != "personal" {
        return Err(Failure::not_found(format!(
            "the request is for account {}: the header {} names another",
            caller.account.id,
            api::ACT_FOR_HEADER
        )));
    }
    let all = fitting(&control, &caller, None, &params);
    let given = |key: &str| params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let limit = given("limit").and_then(|v| v.parse().ok()).unwrap_or(100_usize).clamp(1, 1000);
    let cursor = given("cursor").unwrap_or_default();
    let rest: Vec<_> = all.into_iter().filter(|m| m.slug.as_str() > cursor).collect();
    let more = rest.len() > limit;
    let machines: Vec<_> = rest.into_iter().take(limit).collect();
    let next_cursor = machines.last().filter(|_| more).map(|m| m.slug.to_string());
    Ok(Json(OrgMachines { machines, next_cursor }))
}

/// Replaces the configuration; a machine that runs is started anew with it.
pub async fn update(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    Payload(body): Payload<UpdateMachine>,
) -> Answer<api::Machine> {
    let machine = for_role(&control, &caller, &path, CHANGE)?;
    leases::check(&control, &machine, &headers).await?;
    let (id, body) = (&machine.id, &body);
    let updated = retrying(|| async {
        let mut edit = control.records.edit();
        let mut machine: Machine = edit.require(&Key::Machine(id.clone())).await?;
        power::must_be_at_rest(&control, &machine, "be updated")?;
        let config = launch::config(&control, &mut edit, &machine, &body.config).await?;
        if config.image != machine.config.image {
            return Err(Failure::invalid(format!(
                "machine {} was made from image {}: its disk grew from that; launch a new machine from {}",
                machine.slug, machine.config.image, config.image
            )));
        }
        machine.config = config;
        machine.instance_id = ulid::Ulid::generate().to_string();
        event(&mut machine, "update", "completed", "user", String::new(), now());
        if machine.desired == Desired::Started && !body.skip_launch {
            power::raise_epoch(&mut machine, "update");
        }
        edit.put(&machine)?;
        edit.commit().await?;
        Ok(machine)
    })
    .await?;
    Ok(Json(render::machine_for(&control, &caller, &updated)))
}

#[derive(Deserialize)]
pub struct Destroy {
    #[serde(default)]
    force: Option<String>,
}

pub async fn destroy(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Query(query): Query<Destroy>,
    headers: HeaderMap,
) -> Answer<Done> {
    let machine = for_role(&control, &caller, &path, (Role::Admin, "remove"))?;
    leases::check(&control, &machine, &headers).await?;
    let force = query.force.is_some_and(|force| force != "false" && force != "0");
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        if machine.desired == Desired::Destroyed {
            return Ok(false);
        }
        if !force && machine.desired == Desired::Started {
            return Err(Failure::conflict(format!(
                "machine {} is {}: stop it first, or destroy it with ?force=true",
                machine.slug,
                machine.state.word()
            )));
        }
        machine.desired = Desired::Destroyed;
        event(machine, "destroy", "started", "user", String::new(), now());
        Ok(true)
    });
    update.await?;
    power::end_migration(&control, &machine.id).await?;
    Ok(done())
}
