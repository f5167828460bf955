//! Looking into a machine: waiting for it, its events, its console, commands in it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use mashines_fleet::api::{Done, Exec, ExecAnswer, Logs};
use mashines_fleet::record::{Machine, MachineEvent, MachineState, Role};
use mashines_guest::protocol::{self, ExecResult};

use super::answer::{Answer, done};
use super::auth::Caller;
use super::machines::{self, Params};
use super::request::Payload;
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::hosts::Seen;

/// The longest `wait`, as in the Fly Machines API.
const LONGEST_WAIT: u64 = 60;
/// The longest command.
const LONGEST_EXEC: u64 = 3600;

struct Wait {
    states: Vec<MachineState>,
    instance: Option<String>,
    timeout: Duration,
}

fn parse_wait(params: &[(String, String)]) -> Result<Wait> {
    let given = |key: &'static str| params.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str());
    let mut states = Vec::new();
    for name in given("state").flat_map(|value| value.split(',')).filter(|name| !name.is_empty()) {
        let state = MachineState::ALL.into_iter().find(|state| state.word() == name);
        let known = || MachineState::ALL.map(MachineState::word).join(", ");
        states.push(
            state.ok_or_else(|| Failure::invalid(format!("{name:?} is no state: there are {}", known())))?,
        );
    }
    if states.is_empty() {
        states.push(MachineState::Started);
    }
    let timeout = match given("timeout").next() {
        None => LONGEST_WAIT,
        Some(text) => mashines_fleet::api::parse_seconds(text)
            .filter(|seconds| (1..=LONGEST_WAIT).contains(seconds))
            .ok_or_else(|| {
                Failure::invalid(format!("timeout {text:?}: it is 1 to {LONGEST_WAIT} seconds"))
            })?,
    };
    let instance = given("instance_id").chain(given("version")).next().map(str::to_owned);
    Ok(Wait { states, instance, timeout: Duration::from_secs(timeout) })
}

pub async fn wait(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Query(params): Params,
) -> Answer<Done> {
    let machine = machines::of(&control, &caller, &path)?;
    let wait = parse_wait(&params)?;
    let mut view = control.records.watch();
    let id = machine.id.clone();
    let fits = |machine: &Machine| {
        wait.states.contains(&machine.state)
            && wait.instance.as_ref().is_none_or(|instance| *instance == machine.instance_id)
    };
    let reached = view.wait_for(|view| view.machines.get(&id).is_none_or(|machine| fits(machine)));
    if tokio::time::timeout(wait.timeout, reached).await.is_ok_and(|outcome| outcome.is_ok()) {
        return Ok(done());
    }
    let now = control.machine(&id)?;
    let reason = now.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let wanted: Vec<&str> = wait.states.iter().map(|state| state.word()).collect();
    Err(Failure::new(
        Kind::Timeout,
        format!(
            "machine {} is {}{reason}, not {}, after {:?}",
            now.slug,
            now.state.word(),
            wanted.join(" or "),
            wait.timeout
        ),
    ))
}

pub async fn events(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Vec<MachineEvent>> {
    Ok(Json(machines::of(&control, &caller, &path)?.events.clone()))
}

/// The client to a machine's host, for a machine that has one.
pub fn host_of(control: &Control, machine: &Machine) -> Result<mashines_fleet::rpc::Client> {
    let Some(place) = &machine.place else {
        return Err(Failure::conflict(format!(
            "machine {} was never started: it is on no host",
            machine.slug
        )));
    };
    let host = control.host(&place.host)?;
    if control.hosts.seen(&place.host, &machine.id) == Seen::Silent && !control.hosts.alive(&host) {
        return Err(Failure::new(
            Kind::Unavailable,
            format!("host {} of machine {} does not answer", place.host, machine.slug),
        ));
    }
    control.hosts.client(&host)
}

pub async fn logs(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Logs> {
    let machine = machines::of(&control, &caller, &path)?;
    let client = host_of(&control, &machine)?;
    Ok(Json(client.get(&format!("/v1/machines/{}/console", machine.id)).await?))
}

pub async fn exec(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Payload(body): Payload<Exec>,
) -> Answer<ExecAnswer> {
    let machine = machines::for_role(&control, &caller, &path, (Role::Operator, "run commands in"))?;
    let seconds = body.timeout.unwrap_or(30);
    if !(1..=LONGEST_EXEC).contains(&seconds) {
        return Err(Failure::invalid(format!("timeout {seconds}: it is 1 to {LONGEST_EXEC} seconds")));
    }
    if body.cmd.is_some() != body.command.is_empty() {
        return Err(Failure::invalid(
            "give `cmd` (a shell line) or `command` (program and arguments), and only one",
        ));
    }
    if machine.state != MachineState::Started {
        return Err(Failure::conflict(format!(
            "machine {} is {}: a command needs a started machine",
            machine.slug,
            machine.state.word()
        )));
    }
    let request = protocol::Exec {
        command: (!body.command.is_empty()).then_some(body.command),
        cmd: body.cmd,
        stdin: protocol::Bytes(body.stdin.unwrap_or_default().into_bytes()),
        timeout_ms: Some(seconds * 1000),
        ..protocol::Exec::default()
    };
    let client = host_of(&control, &machine)?.with_timeout(Duration::from_secs(seconds + 10));
    let result: ExecResult = client.post(&format!("/v1/machines/{}/exec", machine.id), &request).await?;
    if result.timed_out {
        return Err(Failure::new(
            Kind::Timeout,
            format!("the command was killed after {seconds} s in {}", machine.slug),
        ));
    }
    let text = |bytes: &protocol::Bytes| String::from_utf8_lossy(&bytes.0).into_owned();
    Ok(Json(ExecAnswer {
        exit_code: result.exit_code,
        exit_signal: result.exit_signal,
        stdout: text(&result.stdout),
        stderr: text(&result.stderr),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn wait_takes_states_repeated_or_with_commas() {
        let wait =
            parse_wait(&params(&[("state", "started,stopped"), ("state", "failed"), ("timeout", "5s")]))
                .unwrap();
        assert_eq!(wait.states, [MachineState::Started, MachineState::Stopped, MachineState::Failed]);
        assert_eq!(wait.timeout, Duration::from_secs(5));
        assert!(parse_wait(&params(&[("timeout", "61")])).is_err());
        assert!(parse_wait(&params(&[("timeout", "0")])).is_err());
        let error = parse_wait(&params(&[("state", "up")])).err().unwrap();
        assert!(error.message.contains("created, starting, started"), "{error}");
    }
}
