//! Volumes: made, shown, extended, removed. Their bytes come to be with the first machine that mounts them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use mashines_fleet::api::{self, CreateVolume};
use mashines_fleet::id::VolumeId;
use mashines_fleet::key::Key;
use mashines_fleet::record::{Host, Role, Volume};
use mashines_fleet::rpc::Empty;

use super::answer::Answer;
use super::auth::Caller;
use super::launch::{new_volume, volume_id};
use super::request::Payload;
use super::{apps, launch, render};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Private, retrying};

pub async fn flat(State(control): State<Control>, caller: Caller) -> Answer<Vec<api::Volume>> {
    caller.must(Role::Viewer, "see the volumes")?;
    let view = control.view();
    let mine = view.volumes.values().filter(|volume| volume.account == caller.account.id);
    Ok(Json(mine.map(|volume| render::volume(&view, volume)).collect()))
}

pub async fn list(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
) -> Answer<Vec<api::Volume>> {
    caller.must(Role::Viewer, "see the volumes")?;
    let app = apps::of(&control, &caller, &app).await?;
    let view = control.view();
    let mine = view.volumes.values().filter(|v| v.account == caller.account.id && v.app == app);
    Ok(Json(mine.map(|volume| render::volume(&view, volume)).collect()))
}

pub async fn create(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
    Payload(body): Payload<CreateVolume>,
) -> Answer<api::Volume> {
    caller.must(Role::Admin, "make volumes")?;
    let app = apps::of(&control, &caller, &app).await?;
    let size = match (body.size_mib, body.size_gb) {
        (Some(mib), None) => mib,
        (None, Some(gb)) => gb.saturating_mul(1024),
        (None, None) => 1024,
        (Some(_), Some(_)) => return Err(Failure::invalid("give size_gb or size_mib, not both")),
    };
    let (account, app, name) = (&caller.account.id, &app, body.name.as_str());
    let volume = retrying(|| async {
        let mut edit = control.records.edit();
        let volume = new_volume(&mut edit, (account, app), name, size, None).await?;
        edit.commit().await?;
        Ok(volume)
    })
    .await?;
    Ok(Json(render::volume(&control.view(), &volume)))
}

async fn of(control: &Control, caller: &Caller, (app, name): &(String, String)) -> Result<Arc<Volume>> {
    let app = apps::of(control, caller, app).await?;
    // No machine is meant here: only account and app matter for the look-up.
    let nobody = mashines_fleet::id::MachineId::random();
    let owner = launch::Owner { machine: &nobody, account: &caller.account.id, app: &app };
    let id = volume_id(control, &owner, name)?;
    let volume = control.view().volumes.get(&id).cloned();
    volume.ok_or_else(|| Failure::not_found(format!("volume {id} is not there (any more)")))
}

pub async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<api::Volume> {
    caller.must(Role::Viewer, "see the volumes")?;
    let volume = of(&control, &caller, &path).await?;
    Ok(Json(render::volume(&control.view(), &volume)))
}

/// The bytes go first, then the record: what is no longer on record is nowhere.
pub async fn destroy(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<api::Volume> {
    caller.must(Role::Admin, "remove volumes")?;
    let volume = of(&control, &caller, &path).await?;
    refuse_attached(&control, &volume)?;
    // No launch attaches it while its bytes go.
    let _placing = control.placing.lock().await;
    let now: Volume = control.records.edit().require(&Key::Volume(volume.id.clone())).await?;
    refuse_attached(&control, &now)?;
    if let Some(host) = &now.host {
        remove_bytes(&control, &*control.host(host)?, &now.id).await?;
    }
    let mut edit = control.records.edit();
    edit.delete(&Key::Volume(now.id.clone()));
    edit.delete_private(Private::VolumeName(&now.account, &now.app, &now.name));
    edit.commit().await?;
    Ok(Json(api::Volume { state: "destroyed".to_owned(), ..render::volume(&control.view(), &now) }))
}

fn refuse_attached(control: &Control, volume: &Volume) -> Result<()> {
    let Some(id) = &volume.attached_machine else { return Ok(()) };
    let name = control.view().machines.get(id).map_or_else(|| id.to_string(), |m| m.slug.to_string());
    Err(Failure::conflict(format!(
        "volume {} is attached to machine {name}: destroy that first",
        volume.name
    )))
}

async fn remove_bytes(control: &Control, host: &Host, id: &VolumeId) -> Result<()> {
    match control.hosts.client(host)?.delete::<Empty>(&format!("/v1/volumes/{id}")).await {
        Ok(Empty {}) => Ok(()),
        Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A volume grows while no machine has it; the guest grows its file system at the next mount.
pub async fn extend(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Payload(body): Payload<serde_json::Value>,
) -> Answer<serde_json::Value> {
    caller.must(Role::Admin, "extend volumes")?;
    let volume = of(&control, &caller, &path).await?;
    let size = body.get("size_gb").and_then(serde_json::Value::as_u64).map(|gb| gb.saturating_mul(1024));
    let size = size.or_else(|| body.get("size_mib").and_then(serde_json::Value::as_u64));
    let size = size.ok_or_else(|| Failure::invalid("size_gb is missing: the new size in GiB"))?;
    if size <= volume.size_mib || size > 16 << 20 {
        return Err(Failure::invalid(format!(
            "volume {} has {} MiB: the new size is more than that and at most 16 TiB",
            volume.name, volume.size_mib
        )));
    }
    refuse_attached(&control, &volume)?;
    let _placing = control.placing.lock().await;
    let key = Key::Volume(volume.id.clone());
    let update = control.records.update(&key, |volume: &mut Volume| {
        refuse_attached(&control, volume)?;
        volume.size_mib = volume.size_mib.max(size);
        Ok(true)
    });
    let updated = update.await?;
    let shown = render::volume(&control.view(), &updated);
    Ok(Json(serde_json::json!({"volume": shown, "needs_restart": false})))
}
