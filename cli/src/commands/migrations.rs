//! `mashines migrations`: the moves there were and are.

use std::time::Duration;

use mashines_fleet::api::Migration;

use super::{Context, migrate};
use crate::error::{CliError, Exit};
use crate::figures::{self, Figures};
use crate::progress::Progress;
use crate::text::{self, Table};

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  mashines migrations
  mashines migrations --machine web --json
  mashines migrations show 01JD3V8Z5M0Q4X9T7R2N6B1K8C
  mashines migrations cancel 01JD3V8Z5M0Q4X9T7R2N6B1K8C")]
pub(super) struct Args {
    /// Only those of this machine
    #[arg(long)]
    machine: Option<String>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show one move, watching it when it is under way
    Show {
        /// The migration's id
        id: String,
        /// Show it as it is now
        #[arg(long)]
        no_wait: bool,
    },
    /// Call a move off: the machine runs on where it is. After the hand-over it is too late
    Cancel {
        /// The migration's id
        id: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match args.action {
        None => list(args.machine, context).await,
        Some(Action::Show { id, no_wait }) => show(&id, no_wait, context).await,
        Some(Action::Cancel { id }) => cancel(&id, context).await,
    }
}

async fn list(machine: Option<String>, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let path = match machine {
        Some(name) => format!("/v1/migrations?machine={}", client.machine(&name).await?.id),
        None => "/v1/migrations".to_owned(),
    };
    let migrations: Vec<Migration> = client.get("list the migrations", &path).await?;
    context.answer(&migrations, &table(&migrations, text::now_ms())).await
}

async fn show(id: &str, no_wait: bool, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let path = format!("/v1/migrations/{}", ulid(id)?);
    let migration: Migration = context.client()?.get(&format!("find migration `{id}`"), &path).await?;
    if no_wait && !migration.done {
        let text = format!("{}\n", figures::underway(&migration));
        return context.answer(&migration, &text).await;
    }
    let progress = Progress::start();
    let migration = migrate::follow(context, migration, Duration::from_secs(600), &progress).await?;
    migrate::outcome(context, &migration).await
}

async fn cancel(id: &str, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let path = format!("/v1/migrations/{}/cancel", ulid(id)?);
    let what = format!("cancel migration `{id}`");
    let migration: Migration = context.client()?.post(&what, &path, &serde_json::json!({})).await?;
    let text = format!("the move of {} is {}\n", migration.slug, migration.step.word());
    context.answer(&migration, &text).await
}

fn ulid(id: &str) -> Result<mashines_fleet::id::MigrationId, CliError> {
    id.parse().map_err(|why| CliError::usage(format!("{why}")).next("mashines migrations"))
}

fn table(migrations: &[Migration], now_ms: u64) -> String {
    if migrations.is_empty() {
        return "no migrations\n".to_owned();
    }
    let mut table =
        Table::new(["ID", "MACHINE", "FROM", "TO", "STEP", "BLACKOUT", "TOTAL", "AGO", "WHY NOT"]);
    for m in migrations {
        let figures = Figures::of(m).unwrap_or_default();
        let time = |us: u64| if us == 0 { "-".to_owned() } else { figures::us(us) };
        table.row([
            m.id.to_string(),
            m.slug.clone(),
            m.source.to_string(),
            m.destination.to_string(),
            m.step.word().to_owned(),
            time(figures.blackout_us),
            time(figures.total_us),
            text::age_of(now_ms, &m.created_at),
            m.error.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}
