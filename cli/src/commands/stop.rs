//! `mashines stop`.

use std::time::Duration;

use mashines_fleet::api;

use super::Context;
use super::wait::{self, Goal, Waiting};
use crate::client::machine_path;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::progress::Progress;

/// Which, and how patiently.
#[derive(clap::Args)]
#[command(after_help = "Its disks, address and name stay.

Examples:
  mashines stop web
  mashines stop web --grace 5s
  mashines stop web --force")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// Time for the guest to shut down before its power is cut; whole seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    grace: Duration,
    /// Cut the power at once
    #[arg(long, conflicts_with = "grace")]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let before = client.machine(&args.machine).await?;
    let grace = if args.force { Duration::ZERO } else { args.grace };
    let request =
        api::StopMachine { timeout: Some(grace.as_secs()), signal: args.force.then(|| "SIGKILL".to_owned()) };
    let what = format!("stop `{}`", before.slug);
    let _: api::Done = client.post(&what, &machine_path(&before, "/stop"), &request).await?;
    match args.waiting.limit(grace + Duration::from_secs(30)) {
        None => context.settled(before, "is told to stop").await,
        Some(limit) => {
            let after = wait::settle(context, before, Goal::Stopped, limit, &progress).await?;
            context.settled(after, "is stopped; its disks, address and name stay").await
        }
    }
}
