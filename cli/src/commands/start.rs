//! `mashines start`.

use std::time::Duration;

use mashines_fleet::api;
use mashines_fleet::record::MachineState;

use super::Context;
use super::wait::{self, Goal, Waiting};
use crate::client::machine_path;
use crate::error::{CliError, Exit};
use crate::progress::Progress;

/// Which.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines start web
  mashines start web --no-wait")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let before = client.machine(&args.machine).await?;
    if before.state == MachineState::Started {
        return context.settled(before, "was already started").await;
    }
    let what = format!("start `{}`", before.slug);
    let _: api::Done = client.post(&what, &machine_path(&before, "/start"), &serde_json::json!({})).await?;
    match args.waiting.limit(Duration::from_secs(180)) {
        None => context.settled(before, "is told to start").await,
        Some(limit) => {
            // One that is on its way up already has the epoch it will be ready in.
            let known = match before.state {
                MachineState::Starting => mashines_fleet::id::Epoch(0),
                _ => before.epoch,
            };
            let after = wait::settle(context, before, Goal::StartedAfter(known), limit, &progress).await?;
            context.settled(after, "is started").await
        }
    }
}
