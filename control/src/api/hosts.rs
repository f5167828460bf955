//! Hosts, for administrators; regions, for all.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use mashines_fleet::api::{self, Drain, Region, Regions};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Host, HostRole};

use super::answer::Answer;
use super::auth::Caller;
use super::render;
use super::suggest::did_you_mean;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::migration;

/// A host by its name.
pub fn find(control: &Control, name: &str) -> Result<Arc<Host>> {
    let view = control.view();
    let found = view.hosts.values().find(|host| host.id.as_str() == name);
    found.cloned().ok_or_else(|| {
        let hint = did_you_mean(name, view.hosts.keys().map(|id| id.as_str()));
        let name: String = name.chars().take(80).collect();
        let known: Vec<&str> = view.hosts.keys().map(|id| id.as_str()).collect();
        Failure::not_found(format!("there is no host {name:?}{hint} (hosts: {})", known.join(", ")))
    })
}

pub async fn regions(State(control): State<Control>, _: Caller) -> Answer<Regions> {
    let mut regions: BTreeMap<String, u64> = BTreeMap::new();
    for host in control.view().hosts.values().filter(|host| host.roles.contains(&HostRole::Host)) {
        *regions.entry(host.region.clone()).or_default() += host.capacity.memory_mib;
    }
    let regions = regions.into_iter().map(|(code, capacity)| Region { name: code.clone(), code, capacity });
    Ok(Json(Regions { regions: regions.collect() }))
}

pub async fn list(State(control): State<Control>, caller: Caller) -> Answer<Vec<api::Host>> {
    caller.must_see_fleet("see hosts")?;
    Ok(Json(control.view().hosts.values().map(|host| render::host(&control, host)).collect()))
}

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(host): Path<String>,
) -> Answer<api::Host> {
    caller.must_see_fleet("see hosts")?;
    Ok(Json(render::host(&control, &find(&control, &host)?)))
}

async fn set_cordon(control: &Control, caller: &Caller, host: &str, cordoned: bool) -> Answer<api::Host> {
    caller.must_be_admin("cordon hosts")?;
    let key = Key::Host(find(control, host)?.id.clone());
    let update = control.records.update(&key, |host: &mut Host| {
        let change = host.cordoned != cordoned;
        host.cordoned = cordoned;
        Ok(change)
    });
    Ok(Json(render::host(control, &Arc::new(update.await?))))
}

pub async fn cordon(
    State(control): State<Control>,
    caller: Caller,
    Path(host): Path<String>,
) -> Answer<api::Host> {
    set_cordon(&control, &caller, &host, true).await
}

pub async fn uncordon(
    State(control): State<Control>,
    caller: Caller,
    Path(host): Path<String>,
) -> Answer<api::Host> {
    set_cordon(&control, &caller, &host, false).await
}

pub async fn drain(
    State(control): State<Control>,
    caller: Caller,
    Path(host): Path<String>,
) -> Answer<Drain> {
    caller.must_be_admin("drain hosts")?;
    let host = find(&control, &host)?;
    Ok(Json(migration::begin_drain(&control, &host.id).await?))
}

pub async fn drained(
    State(control): State<Control>,
    caller: Caller,
    Path(host): Path<String>,
) -> Answer<Drain> {
    caller.must_see_fleet("see drains")?;
    let host = find(&control, &host)?;
    Ok(Json(migration::drain_state(&control, &host.id).await?))
}
