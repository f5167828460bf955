//! `mashines restart`.

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
#[command(after_help = "Examples:
  mashines restart web
  mashines restart web --grace 5s --timeout 2m")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// Time for the guest to shut down before its power is cut; whole seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    grace: Duration,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let before = client.machine(&args.machine).await?;
    let what = format!("restart `{}`", before.slug);
    let path = machine_path(&before, &format!("/restart?timeout={}", args.grace.as_secs()));
    let _: api::Done = client.post(&what, &path, &serde_json::json!({})).await?;
    match args.waiting.limit(args.grace + Duration::from_secs(180)) {
        None => context.settled(before, "is told to restart").await,
        Some(limit) => {
            let goal = Goal::StartedAfter(before.epoch);
            let after = wait::settle(context, before, goal, limit, &progress).await?;
            context.settled(after, "is started again").await
        }
    }
}
