//! `mashines rm`: removes machines. Their volumes stay.

use std::time::Duration;

use mashines_fleet::api::Machine;
use serde::Serialize;

use super::Context;
use super::wait::{self, Goal, Waiting};
use crate::client::machine_path;
use crate::error::{CliError, Exit};
use crate::progress::Progress;

/// Which, and how surely.
#[derive(clap::Args)]
#[command(
    after_help = "The root disk goes with the machine; its volumes stay (mashines volumes rm removes those).

Examples:
  mashines rm web
  mashines rm web worker --yes
  mashines rm web --force --yes"
)]
pub(super) struct Args {
    /// The machines: names or ids
    #[arg(required = true)]
    machines: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Also one that runs: its power is cut
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// One removed machine.
#[derive(Serialize)]
struct Removed {
    id: String,
    name: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    // All names are looked up before the first is removed: a slip in the last one harms nothing.
    let mut machines: Vec<Machine> = Vec::new();
    for name in &args.machines {
        let machine = client.machine(name).await?;
        if machines.iter().all(|known| known.id != machine.id) {
            machines.push(machine);
        }
    }
    let names: Vec<&str> = machines.iter().map(|m| m.slug.as_str()).collect();
    let names = names.join(" ");
    if !args.yes {
        let ask = format!("Remove {names} with root disk, address and name?");
        context.sure(&ask, &format!("mashines rm {names} --yes")).await?;
    }
    let mut removed = Vec::new();
    for machine in machines {
        removed.push(remove(machine, &args, context).await?);
    }
    let text: String = removed.iter().map(|r| format!("{} is removed\n", r.name)).collect();
    context.answer(&removed, &text).await
}

async fn remove(machine: Machine, args: &Args, context: &mut Context<'_>) -> Result<Removed, CliError> {
    let progress = Progress::start();
    let removed = Removed { id: machine.id.to_string(), name: machine.slug.to_string() };
    let force = if args.force { "?force=true" } else { "" };
    let what = format!("remove `{}`", machine.slug);
    context.client()?.delete(&what, &machine_path(&machine, force)).await?;
    if let Some(limit) = args.waiting.limit(Duration::from_secs(90)) {
        wait::settle(context, machine, Goal::Gone, limit, &progress).await?;
    }
    Ok(removed)
}
