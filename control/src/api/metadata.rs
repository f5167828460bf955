//! Labels of machines. They change the record only, never the machine that runs.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use mashines_fleet::api::{Done, MetadataValue};
use mashines_fleet::key::Key;
use mashines_fleet::record::Machine;

use super::answer::{Answer, done};
use super::auth::Caller;
use super::machines;
use super::request::Payload;
use crate::control::Control;
use crate::failure::{Failure, Result};

type Labels = BTreeMap<String, String>;

/// The most labels of a machine.
const MOST: usize = 64;
/// The longest key or value, bytes.
const LONGEST: usize = 1024;

async fn edit(control: &Control, machine: &Machine, with: impl Fn(&mut Labels)) -> Result<Labels> {
    let key = Key::Machine(machine.id.clone());
    let update = control.records.update(&key, |machine: &mut Machine| {
        let before = machine.config.metadata.clone();
        with(&mut machine.config.metadata);
        let labels = &machine.config.metadata;
        let long = |(k, v): (&String, &String)| k.is_empty() || k.len() > LONGEST || v.len() > LONGEST;
        if labels.len() > MOST || labels.iter().any(long) {
            return Err(Failure::invalid(format!(
                "a machine has at most {MOST} labels of at most {LONGEST} bytes"
            )));
        }
        Ok(*labels != before)
    });
    Ok(update.await?.config.metadata)
}

pub async fn all(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Labels> {
    Ok(Json(machines::of(&control, &caller, &path)?.config.metadata.clone()))
}

pub async fn replace(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Payload(body): Payload<Labels>,
) -> Answer<Labels> {
    let machine = machines::for_role(&control, &caller, &path, machines::CHANGE)?;
    Ok(Json(edit(&control, &machine, |labels| labels.clone_from(&body)).await?))
}

pub async fn merge(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Payload(body): Payload<Labels>,
) -> Answer<Labels> {
    let machine = machines::for_role(&control, &caller, &path, machines::CHANGE)?;
    Ok(Json(edit(&control, &machine, |labels| labels.extend(body.clone())).await?))
}

pub async fn one(
    State(control): State<Control>,
    caller: Caller,
    Path((app, machine, key)): Path<(String, String, String)>,
) -> Answer<MetadataValue> {
    let machine = machines::of(&control, &caller, &(app, machine))?;
    let value = machine.config.metadata.get(&key).cloned();
    let none = || Failure::not_found(format!("machine {} has no label {key:?}", machine.slug));
    Ok(Json(MetadataValue { value: value.ok_or_else(none)? }))
}

pub async fn set(
    State(control): State<Control>,
    caller: Caller,
    Path((app, machine, key)): Path<(String, String, String)>,
    Payload(body): Payload<MetadataValue>,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &(app, machine), machines::CHANGE)?;
    edit(&control, &machine, |labels| drop(labels.insert(key.clone(), body.value.clone()))).await?;
    Ok(done())
}

pub async fn unset(
    State(control): State<Control>,
    caller: Caller,
    Path((app, machine, key)): Path<(String, String, String)>,
) -> Answer<Done> {
    let machine = machines::for_role(&control, &caller, &(app, machine), machines::CHANGE)?;
    edit(&control, &machine, |labels| drop(labels.remove(&key))).await?;
    Ok(done())
}
