//! `mashines show`: everything about one machine.

use mashines_fleet::api::{CheckStatus, Machine, Shared};

use super::Context;
use crate::doors::{self, Shown};
use crate::error::{CliError, Exit};
use crate::text::{self, Table};

/// Which.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines show web
  mashines show web --json | jq -r .ipv6")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let machine = context.client()?.machine(&args.machine).await?;
    let shown = Shown::from(machine);
    let text = told(&shown, text::now_ms());
    context.answer(&shown, &text).await
}

fn told(shown: &Shown, now_ms: u64) -> String {
    let m = &shown.machine;
    let guest = &m.config.guest;
    let mounts: Vec<String> = m.config.mounts.iter().map(|m| format!("{} at {}", m.volume, m.path)).collect();
    let head = text::fields([
        ("name", m.slug.to_string()),
        ("id", m.id.to_string()),
        ("state", m.state.word().to_owned()),
        ("reason", m.reason.clone().unwrap_or_default()),
        ("owner", m.shared.as_ref().map(|shared| owner(m, shared)).unwrap_or_default()),
        ("app", m.app.to_string()),
        ("image", format!("{} ({})", m.image_ref.repository, m.image_ref.digest)),
        ("guest", format!("{} vCPU ({}), {}", guest.cpus, guest.cpu_kind, text::mebibytes(guest.memory_mb))),
        ("volumes", mounts.join(", ")),
        ("region", m.region.clone()),
        ("host", m.host.as_ref().map(|h| format!("{h}, epoch {}", m.epoch)).unwrap_or_default()),
        ("migration", m.migration.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("created", format!("{} ({} ago)", m.created_at, text::age_of(now_ms, &m.created_at))),
    ]);
    let addresses = doors::addresses(m);
    let (doors, checks, events) = (shown.doors.render(), checks(m, now_ms), events(m, now_ms));
    format!("{head}\naddresses\n{addresses}\nways in\n{doors}{checks}{events}")
}

fn owner(machine: &Machine, shared: &Shared) -> String {
    let until = shared.expires_at.as_ref().map(|end| format!(" until {end}")).unwrap_or_default();
    format!(
        "{}, who shares it with you as {}{until}: enter it through the gateway",
        machine.account, shared.role
    )
}

fn checks(machine: &Machine, now_ms: u64) -> String {
    if machine.checks.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["CHECK", "STATUS", "FOR", "FOUND"]);
    for check in &machine.checks {
        let status = match check.status {
            CheckStatus::Passing => "passing",
            CheckStatus::Warning => "warning",
            CheckStatus::Critical => "critical",
        };
        let age = match check.updated_at.as_str() {
            "" => "-".to_owned(),
            since => text::age_of(now_ms, since),
        };
        table.row([check.name.clone(), status.to_owned(), age, check.output.clone()]);
    }
    format!("\n{}", table.render())
}

fn events(machine: &Machine, now_ms: u64) -> String {
    if machine.events.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["AGO", "EVENT", "STATUS", "BY", "MESSAGE"]);
    for event in machine.events.iter().take(10) {
        table.row([
            text::age(now_ms, event.timestamp),
            event.kind.clone(),
            event.status.clone(),
            event.source.clone(),
            event.message.clone(),
        ]);
    }
    format!("\n{}", table.render())
}
