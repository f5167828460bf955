//! Moves of machines.

use axum::Json;
use axum::extract::{Path, Query, State};
use http::{HeaderMap, StatusCode};
use mashines_fleet::api;
use mashines_fleet::record::{self, Role};

use super::answer::Answer;
use super::auth::Caller;
use super::machines::{self, Params};
use super::request::OptionalPayload;
use super::{hosts, leases, render};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::migration::{self, Asked, Terms};

/// Budgets that make sense, milliseconds. A monitor takes 10 with nothing left to send.
const BUDGETS: std::ops::RangeInclusive<u64> = 11..=60_000;
/// Time-outs that make sense, seconds.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=86_400;

pub async fn migrate(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    OptionalPayload(body): OptionalPayload<api::Migrate>,
) -> Result<(StatusCode, Json<api::Migration>)> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Operator, "move"))?;
    leases::check(&control, &machine, &headers).await?;
    let host = body.host.as_deref().map(|host| hosts::find(&control, host)).transpose()?;
    let budget_ms = body.budget_ms.unwrap_or(control.config.blackout_budget_ms);
    let timeout_s = body.timeout.unwrap_or(control.config.migration_timeout_s);
    if !BUDGETS.contains(&budget_ms) || !TIMEOUTS.contains(&timeout_s) {
        return Err(Failure::invalid(format!(
            "budget_ms is {} to {}, timeout {} to {} seconds",
            BUDGETS.start(),
            BUDGETS.end(),
            TIMEOUTS.start(),
            TIMEOUTS.end()
        )));
    }
    let asked = Asked {
        host: host.map(|host| host.id.clone()),
        terms: Terms { budget_ms, timeout_ms: timeout_s * 1000 },
        by: caller.me.id.to_string(),
    };
    let begun = migration::begin(&control, &machine.id, asked).await?;
    Ok((StatusCode::ACCEPTED, Json(render::migration(&control.view(), &begun))))
}

fn visible(view: &mashines_fleet::view::View, caller: &Caller, migration: &record::Migration) -> bool {
    let mine = view.machines.get(&migration.machine).is_some_and(|m| caller.standing_at(m).is_some());
    mine || caller.sees_fleet()
}

pub async fn list(
    State(control): State<Control>,
    caller: Caller,
    Query(params): Params,
) -> Answer<Vec<api::Migration>> {
    let view = control.view();
    let given = |key: &str| params.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let machine = given("machine");
    let limit = given("limit").and_then(|v| v.parse().ok()).unwrap_or(100_usize).min(1000);
    // Ids are ordered by time: the newest come first.
    let all = view.migrations.values().rev().filter(|m| visible(&view, &caller, m));
    let of = all.filter(|m| machine.is_none_or(|id| m.machine.as_str() == id));
    Ok(Json(of.take(limit).map(|m| render::migration(&view, m)).collect()))
}

fn find(control: &Control, caller: &Caller, id: &str) -> Result<std::sync::Arc<record::Migration>> {
    let view = control.view();
    let found = view.migrations.values().find(|m| m.id.as_str() == id && visible(&view, caller, m));
    let id: String = id.chars().take(40).collect();
    found.cloned().ok_or_else(|| Failure::not_found(format!("there is no migration {id:?}")))
}

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<api::Migration> {
    let migration = find(&control, &caller, &id)?;
    Ok(Json(render::migration(&control.view(), &migration)))
}

pub async fn cancel(
    State(control): State<Control>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<api::Migration> {
    let migration = find(&control, &caller, &id)?;
    match control.view().machines.get(&migration.machine) {
        Some(machine) if caller.standing_at(machine).is_some() => {
            caller.must_at(machine, Role::Operator, "call off the move of")?;
        }
        Some(_) | None => caller.must_be_admin("call off moves of others' machines")?,
    }
    let cancelled = migration::cancel(&control, &migration.id).await?;
    Ok(Json(render::migration(&control.view(), &cancelled)))
}
