//! The keys of the fleet's zones, for administrators.

use axum::Json;
use axum::extract::{Path, State};
use mashines_fleet::api::{DsSeen, ShownKey, Zone};
use mashines_fleet::id::DomainName;
use mashines_fleet::record::ZoneKeys;

use super::answer::Answer;
use super::auth::Caller;
use super::request::OptionalPayload;
use super::suggest::did_you_mean;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::time::rfc3339;
use crate::zone_keys;

fn shown(control: &Control, keys: &ZoneKeys) -> Zone {
    let zone = &keys.id;
    let for_parent: Vec<u16> = keys.for_parent().map(|key| key.tag).collect();
    let of = |key: &mashines_fleet::record::ZoneKey| ShownKey {
        tag: key.tag,
        state: key.state,
        since: rfc3339(key.since),
        for_parent: for_parent.contains(&key.tag),
        ds: key.ds_text(zone).unwrap_or_default(),
        dnskey: key.dnskey_text(),
    };
    Zone {
        zone: zone.clone(),
        keys: keys.keys.iter().map(of).collect(),
        next: zone_keys::next_step(zone.as_str(), &keys.keys, &control.config.zone_keys),
        parent: control.parents.judge(keys),
    }
}

fn find(control: &Control, name: &str) -> Result<DomainName> {
    let view = control.view();
    let wanted = name.trim_end_matches('.').to_ascii_lowercase();
    let known = view.zone_keys.keys().find(|zone| zone.as_str() == wanted);
    known.cloned().ok_or_else(|| {
        let hint = did_you_mean(&wanted, view.zone_keys.keys().map(DomainName::as_str));
        let name: String = name.chars().take(80).collect();
        Failure::not_found(format!("there is no zone {name:?}{hint}: `mashines dns keys` lists them"))
    })
}

pub async fn list(State(control): State<Control>, caller: Caller) -> Answer<Vec<Zone>> {
    caller.must_see_fleet("see the keys of zones")?;
    Ok(Json(control.view().zone_keys.values().map(|keys| shown(&control, keys)).collect()))
}

pub async fn rollover(
    State(control): State<Control>,
    caller: Caller,
    Path(zone): Path<String>,
) -> Answer<Zone> {
    caller.must_be_admin("roll keys over")?;
    let keys = zone_keys::begin(&control, &find(&control, &zone)?).await?;
    caller.audit(&format!("began a rollover of zone {}", keys.id));
    Ok(Json(shown(&control, &keys)))
}

pub async fn ds_seen(
    State(control): State<Control>,
    caller: Caller,
    Path(zone): Path<String>,
    OptionalPayload(DsSeen { anyway }): OptionalPayload<DsSeen>,
) -> Answer<Zone> {
    caller.must_be_admin("roll keys over")?;
    let keys = zone_keys::ds_seen(&control, &find(&control, &zone)?, anyway).await?;
    let how = if anyway { ", whatever control sees" } else { "" };
    caller.audit(&format!("saw the new DS of zone {} at its parent{how}", keys.id));
    Ok(Json(shown(&control, &keys)))
}
