//! `mashines drain`: moves every running machine off a host and keeps new ones away.

use std::time::Duration;

use mashines_fleet::api::{Drain, DrainOutcome};

use super::Context;
use super::wait::Waiting;
use crate::error::{CliError, Exit};
use crate::progress::Progress;
use crate::text::{self, Table};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(300);

/// Which.
#[derive(clap::Args)]
#[command(
    after_help = "The host is cordoned first. Machines that do not run stay: their disks are there; start them elsewhere or remove them.
Open the host again with `mashines uncordon`.

Examples:
  mashines drain a
  mashines drain a --timeout 1h
  mashines drain a --no-wait"
)]
pub(super) struct Args {
    /// The host
    host: String,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let host = client.host(&args.host).await?.id;
    let path = format!("/v1/hosts/{host}/drain");
    let mut drain: Drain = client.post(&format!("drain `{host}`"), &path, &serde_json::json!({})).await?;
    let Some(limit) = args.waiting.limit(Duration::from_secs(3600)) else {
        return context.answer(&drain, &table(&drain)).await;
    };
    while !drain.done {
        if progress.elapsed() >= limit {
            progress.clear(context.session).await?;
            let message =
                format!("the drain of `{host}` is not over after {}; it goes on", text::span(limit));
            return Err(CliError::new(Exit::TimedOut, message).next(format!("mashines drain {host}")));
        }
        progress.now(context.session, &underway(&drain)).await?;
        tokio::time::sleep(PERIOD).await;
        match client.get("follow the drain", &path).await {
            Ok(now) => drain = now,
            // Control restarting; the drain is in the store.
            Err(error) if error.exit == Exit::Unreachable => {}
            Err(error) => {
                progress.clear(context.session).await?;
                return Err(error);
            }
        }
    }
    progress.clear(context.session).await?;
    context.answer(&drain, &table(&drain)).await?;
    let stayed = drain.machines.iter().filter(|m| m.outcome == DrainOutcome::Failed).count();
    Ok(if stayed == 0 { Exit::Ok } else { Exit::Failed })
}

fn underway(drain: &Drain) -> String {
    let count = |outcome| drain.machines.iter().filter(|m| m.outcome == outcome).count();
    let moving = drain.machines.iter().find(|m| m.outcome == DrainOutcome::Moving);
    let moving = moving.map(|m| format!(", moving {}", m.slug)).unwrap_or_default();
    format!("{} of {} moved{moving}", count(DrainOutcome::Moved), drain.machines.len())
}

fn table(drain: &Drain) -> String {
    if drain.machines.is_empty() {
        return format!("{} holds no machines and takes no new ones\n", drain.host);
    }
    let mut table = Table::new(["MACHINE", "OUTCOME", "MESSAGE"]);
    for m in &drain.machines {
        table.row([m.slug.clone(), word(m.outcome).to_owned(), m.message.clone()]);
    }
    table.render()
}

fn word(outcome: DrainOutcome) -> &'static str {
    match outcome {
        DrainOutcome::Waiting => "waiting",
        DrainOutcome::Moving => "moving",
        DrainOutcome::Moved => "moved",
        DrainOutcome::NotRunning => "not running, stays",
        DrainOutcome::Failed => "failed, stays",
    }
}
