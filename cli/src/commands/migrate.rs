//! `mashines migrate`: moves a running machine to another host while everything in it runs on.

use std::time::Duration;

use mashines_fleet::api::{self, Migration};
use mashines_fleet::record::MigrationStep;

use super::Context;
use super::wait::Waiting;
use crate::client::{Client, machine_path, unknown};
use crate::error::{CliError, Exit};
use crate::figures;
use crate::parse;
use crate::progress::Progress;
use crate::text;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(300);

/// How long a move may take when nobody says.
const PATIENCE: Duration = Duration::from_secs(600);

/// Which, and where to.
#[derive(clap::Args)]
#[command(
    after_help = "Connections, processes and uptime live on. A move that fails leaves the machine running where it was and says why.
Ctrl-C ends the watching, not the move (mashines migrations cancel ID ends that).

Examples:
  mashines migrate web
  mashines migrate web --to b
  mashines migrate web --json | jq .figures.blackout_us"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// The host to move to; the scheduler's choice when absent
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
    /// The time without CPU to aim for
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    budget: Option<Duration>,
    /// Give the move up when it has not converged within this; whole seconds
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    give_up: Option<Duration>,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let progress = Progress::start();
    let machine = client.machine(&args.machine).await?;
    let request = api::Migrate {
        host: args.to.clone(),
        budget_ms: args.budget.map(|b| u64::try_from(b.as_millis()).unwrap_or(u64::MAX)),
        timeout: args.give_up.map(|t| t.as_secs().max(1)),
    };
    let what = format!("move `{}`", machine.slug);
    let started: Result<Migration, CliError> =
        client.post(&what, &machine_path(&machine, "/migrate"), &request).await;
    let migration = match (started, &args.to) {
        (Ok(migration), _) => migration,
        (Err(error), Some(host)) => return Err(no_such_host(&client, host).await.unwrap_or(error)),
        (Err(error), None) => return Err(error),
    };
    progress.done(context.session, &format!("{} to {}", migration.source, migration.destination)).await?;
    match args.waiting.limit(PATIENCE) {
        None => {
            let text =
                format!("the move has begun; follow it with: mashines migrations show {}\n", migration.id);
            context.answer(&migration, &text).await
        }
        Some(limit) => {
            let migration = follow(context, migration, limit, &progress).await?;
            outcome(context, &migration).await
        }
    }
}

/// When the refusal has to do with a host that does not exist: the nearest name that does. Only administrators may list hosts.
async fn no_such_host(client: &Client, host: &str) -> Option<CliError> {
    let known = client.hosts().await.ok()?;
    let names = || known.iter().map(|h| h.id.as_str());
    (!names().any(|name| name == host)).then(|| unknown("host", host, names(), "mashines hosts"))
}

/// Watches a migration to its end.
pub(super) async fn follow(
    context: &mut Context<'_>,
    migration: Migration,
    limit: Duration,
    progress: &Progress,
) -> Result<Migration, CliError> {
    let client = context.client()?;
    let path = format!("/v1/migrations/{}", migration.id);
    let mut last = migration;
    let mut phase: Option<String> = None;
    while !last.done {
        if progress.elapsed() >= limit {
            progress.clear(context.session).await?;
            let message =
                format!("the move of `{}` is not over after {}; it goes on", last.slug, text::span(limit));
            let next = format!("mashines migrations show {}", last.id);
            return Err(CliError::new(Exit::TimedOut, message).next(next));
        }
        if phase.is_some() && last.phase != phase {
            progress.done(context.session, phase.as_deref().unwrap_or_default()).await?;
        }
        phase.clone_from(&last.phase);
        progress.now(context.session, &figures::underway(&last)).await?;
        tokio::time::sleep(PERIOD).await;
        match client.get("follow the move", &path).await {
            Ok(migration) => last = migration,
            // Control is no part of a hand-over: a move goes on while it is away.
            Err(error) if error.exit == Exit::Unreachable => {
                progress.now(context.session, "the API does not answer; asking again").await?;
            }
            Err(error) => {
                progress.clear(context.session).await?;
                return Err(error);
            }
        }
    }
    progress.done(context.session, last.step.word()).await?;
    Ok(last)
}

/// Tells how a migration that is done ended. A failed one is still the answer's JSON document: it has an `error`.
pub(super) async fn outcome(context: &mut Context<'_>, migration: &Migration) -> Result<Exit, CliError> {
    let error = match migration.step {
        MigrationStep::Failed => failed(migration, "it runs on where it was", "mashines migrate"),
        MigrationStep::Lost => failed(migration, "it is stopped, its disks are intact", "mashines start"),
        MigrationStep::Completed
        | MigrationStep::Reserved
        | MigrationStep::Prepared
        | MigrationStep::Moving
        | MigrationStep::Doubtful
        | MigrationStep::Committed => return context.answer(migration, &figures::report(migration)).await,
    };
    if !context.json {
        return Err(error);
    }
    context.answer(migration, "").await?;
    context.session.err(&error.human()).await?;
    Ok(error.exit)
}

fn failed(migration: &Migration, standing: &str, next: &str) -> CliError {
    let Migration { slug, source, destination, .. } = migration;
    let why = migration.error.as_deref().unwrap_or("the fleet gave no reason");
    CliError::failed(format!("`{slug}` was not moved from {source} to {destination}; {standing}: {why}"))
        .next(format!("{next} {slug}"))
}
