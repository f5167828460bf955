//! Apps: names that machines and volumes of an account are grouped by.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use mashines_fleet::api::{ACT_FOR_HEADER, App, Apps, CreateApp, DEFAULT_APP, Done, Organization};
use mashines_fleet::id::{AccountId, AppName};
use mashines_fleet::record::{MachineState, Role};

use super::answer::{Answer, done};
use super::auth::Caller;
use super::request::Payload;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Private, retrying};
use crate::time::now;

/// The app of a path; it must be the caller's.
pub async fn of(control: &Control, caller: &Caller, name: &str) -> Result<AppName> {
    let app: AppName =
        name.parse().map_err(|error: mashines_fleet::id::BadId| Failure::invalid(error.to_string()))?;
    let known: Option<u64> = control.records.private(Private::App(&caller.account.id, &app)).await?;
    if known.is_some() {
        return Ok(app);
    }
    Err(Failure::not_found(format!(
        "account {} has no app {app}: POST /v1/apps {{\"name\":\"{app}\"}} makes it; {DEFAULT_APP} is always there",
        caller.account.id
    )))
}

async fn names(control: &Control, account: &AccountId) -> Result<Vec<AppName>> {
    let prefix = format!("{}app/{account}/", mashines_fleet::key::PRIVATE);
    let listing = control.records.store().list(&prefix).await?;
    Ok(listing.entries.iter().filter_map(|entry| entry.key.strip_prefix(&prefix)?.parse().ok()).collect())
}

fn render(control: &Control, account: &AccountId, name: AppName) -> App {
    let view = control.view();
    let live = |m: &&std::sync::Arc<mashines_fleet::record::Machine>| {
        m.account == *account && m.app == name && m.state != MachineState::Destroyed
    };
    let machine_count = view.machines.values().filter(live).count();
    let volume_count = view.volumes.values().filter(|v| v.account == *account && v.app == name).count();
    App {
        id: name.clone(),
        name,
        machine_count,
        volume_count,
        network: account.to_string(),
        organization: Organization { name: account.clone(), slug: account.clone() },
        status: if machine_count > 0 { "deployed" } else { "pending" }.to_owned(),
    }
}

pub async fn list(State(control): State<Control>, caller: Caller) -> Answer<Apps> {
    let id = &caller.account.id;
    let names = names(&control, id).await?;
    let apps: Vec<App> = names.into_iter().map(|name| render(&control, id, name)).collect();
    Ok(Json(Apps { total_apps: apps.len(), apps }))
}

pub async fn create(
    State(control): State<Control>,
    caller: Caller,
    Payload(body): Payload<CreateApp>,
) -> Result<(StatusCode, Json<App>)> {
    caller.must(Role::Admin, "make apps")?;
    let id = &caller.account.id;
    if let Some(org) = body.org_slug.filter(|org| org != id.as_str() && org != "personal") {
        return Err(Failure::invalid(format!(
            "the request is for account {id}: it makes no apps of {org}; the header {ACT_FOR_HEADER} names another account"
        )));
    }
    let name: AppName =
        body.name.parse().map_err(|error: mashines_fleet::id::BadId| Failure::invalid(error.to_string()))?;
    retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<u64> = edit.private(Private::App(id, &name)).await?;
        if known.is_some() {
            return Err(Failure::conflict(format!("account {id} has an app {name} already")));
        }
        edit.put_private(Private::App(id, &name), &now())?;
        edit.commit().await
    })
    .await?;
    Ok((StatusCode::CREATED, Json(render(&control, id, name))))
}

pub async fn show(State(control): State<Control>, caller: Caller, Path(app): Path<String>) -> Answer<App> {
    let app = of(&control, &caller, &app).await?;
    Ok(Json(render(&control, &caller.account.id, app)))
}

pub async fn destroy(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
) -> Answer<Done> {
    caller.must(Role::Admin, "remove apps")?;
    let app = of(&control, &caller, &app).await?;
    if app.as_str() == DEFAULT_APP {
        return Err(Failure::conflict(format!("app {DEFAULT_APP} always stays")));
    }
    // No launch slips in between the look and the removal.
    let _placing = control.placing.lock().await;
    let shown = render(&control, &caller.account.id, app.clone());
    if shown.machine_count + shown.volume_count > 0 {
        return Err(Failure::conflict(format!(
            "app {app} has {} machines and {} volumes: destroy those first",
            shown.machine_count, shown.volume_count
        )));
    }
    let mut edit = control.records.edit();
    edit.delete_private(Private::App(&caller.account.id, &app));
    edit.commit().await?;
    Ok(done())
}
