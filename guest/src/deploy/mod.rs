//! `git push` deploys: everything of it that happens in the machine.
//!
//! ```text
//! sshd ▶ git (session) ▶ git receive-pack ▶ pre-receive (hooks): which ref deploys? (verdict, options)
//!                                               │ turn: one at a time, the newest wins
//!                                               ▼
//!          recognise (plan, manifest) ▶ tree, submodules, build (source, phase) ▶ switch-over (rollout, health) ▶ record (release)
//!                                                                                      │ one rename
//!                                                       front ◀── state.json ◀─────────┘      units: systemd ▶ deploy run (run)
//!
//! exec ▶ deploy begin, follow, cancel (operation) ▶ rollback, redeploy, config (work)
//! ```
//!
//! Invariants:
//! - What serves changes by one rename, and never before the new release has answered.
//! - No lock but the kernel's; whatever is killed when, the next push finds nothing in its way ([`turn`], [`tether`], [`phase`]).
//! - All state is below one directory of the machine's disk ([`place`]).
//! - Values of variables are written to files of mode 0600 and passed as environment; they are in no log, record or command line.

mod compose;
mod front;
mod health;
mod hint;
mod hooks;
mod manifest;
mod operation;
mod options;
mod phase;
mod place;
mod plan;
mod release;
mod report;
mod repository;
mod rollout;
mod run;
mod runner;
mod session;
mod source;
mod static_files;
mod tether;
mod turn;
mod verdict;
mod watch;
mod work;

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use mashines_guest::deployment::{Ask, Order, Variables, check_name};
use serde::Serialize;

use place::Place;
use release::{Release, State};
use watch::Watch;

/// The longest order that `begin` reads, in bytes.
const MAX_ORDER: u64 = 1 << 20;

const USAGE: &str = "deploy releases [--json] | rollback [vN] | redeploy | config [ls [--json] | set NAME=VALUE… | unset NAME…]";

/// `git …`: gives the exit code.
pub fn git(arguments: &[String]) -> i32 {
    told(session::run(&Place::of_environment(), arguments))
}

/// `deploy …`: gives the exit code.
pub fn main(arguments: &[String]) -> i32 {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    told(dispatch(&Place::of_environment(), &words))
}

fn told(outcome: Result<i32>) -> i32 {
    outcome.unwrap_or_else(|error| {
        report::Report::say(&format!("error: {error:#}"));
        1
    })
}

fn dispatch(place: &Place, words: &[&str]) -> Result<i32> {
    match words {
        ["pre-receive"] => return hooks::pre_receive(place),
        ["post-receive"] => return hooks::post_receive(place),
        ["front"] => front::run(place)?,
        ["run", unit] => run::run(place, unit)?,
        ["ended", unit] => run::ended(place, unit)?,
        ["begin"] => print(&operation::begin(place, &read_order()?)?)?,
        ["operate", id] => operation::operate(place, id)?,
        ["follow", id, offset] => {
            print(&operation::follow(place, id, offset.parse().context("the offset is a number")?)?)?;
        }
        ["cancel", id] => print(&operation::cancel(place, id)?)?,
        ["releases", "--json"] => print(&release::view(&Release::all(place)?, &State::load(place)?))?,
        ["releases"] => list(place)?,
        ["config", "--json"] | ["config", "ls", "--json"] => {
            print(&Variables { env: release::config(place)? })?
        }
        ["config"] | ["config", "ls"] => {
            release::config(place)?.iter().for_each(|(name, value)| println!("{name}={value}"));
        }
        ["rollback"] => return by_hand(place, Ask::Rollback { to: None }),
        ["rollback", version] => return by_hand(place, Ask::Rollback { to: Some(parse_version(version)?) }),
        ["redeploy"] => return by_hand(place, Ask::Redeploy),
        ["config", "set", pairs @ ..] if !pairs.is_empty() => {
            let set = pairs.iter().map(|pair| variable(pair)).collect::<Result<_>>()?;
            return by_hand(place, Ask::Config { set, unset: Vec::new() });
        }
        ["config", "unset", names @ ..] if !names.is_empty() => {
            let unset = names.iter().map(|&name| name.to_owned()).collect();
            return by_hand(place, Ask::Config { set: BTreeMap::new(), unset });
        }
        _ => bail!("{USAGE}"),
    }
    Ok(0)
}

/// Somebody in the machine: it goes on as long as the command does.
fn by_hand(place: &Place, ask: Ask) -> Result<i32> {
    let ended = operation::carry_out(place, Order { ask, by: Some("root".to_owned()) }, Watch::idle());
    Ok(i32::from(ended.error.is_some()))
}

fn read_order() -> Result<Order> {
    let mut text = String::new();
    std::io::stdin().take(MAX_ORDER).read_to_string(&mut text).context("reading what is asked for")?;
    serde_json::from_str(&text).context("understanding what is asked for")
}

fn parse_version(text: &str) -> Result<u64> {
    text.trim_start_matches('v').parse().with_context(|| format!("{text:?} is no release: v7, say"))
}

fn variable(pair: &str) -> Result<(String, String)> {
    // Not the whole of it: what stands behind a missing = may be a secret.
    let Some((name, value)) = pair.split_once('=') else { bail!("NAME=VALUE, such as LOG=debug") };
    check_name(name).map_err(anyhow::Error::msg)?;
    Ok((name.to_owned(), value.to_owned()))
}

fn print(answer: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(answer).context("writing the answer as JSON")?);
    Ok(())
}

fn list(place: &Place) -> Result<()> {
    let releases = release::view(&Release::all(place)?, &State::load(place)?);
    for one in releases.releases {
        let state = serde_json::to_value(one.state).context("a state's name")?;
        let name = format!("v{}", one.version);
        let commit = release::short(&one.commit);
        println!(
            "{name:<5} {:<10} {commit} {:<10} {}",
            state.as_str().unwrap_or_default(),
            one.kind,
            one.subject
        );
    }
    Ok(())
}
