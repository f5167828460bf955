//! `mashines ls`: the account's machines, and those that are shared with it.

use mashines_fleet::api::Machine;

use super::Context;
use crate::error::{CliError, Exit};
use crate::text::{self, Table};

/// Which.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines ls
  mashines ls --app shop --host b
  mashines ls --json | jq -r '.[] | select(.state == \"started\") | .name'")]
pub(super) struct Args {
    /// Only those of this app
    #[arg(long)]
    app: Option<String>,
    /// Only those on this host
    #[arg(long)]
    host: Option<String>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let mut machines = context.client()?.machines().await?;
    machines.retain(|m| {
        args.app.as_deref().is_none_or(|app| m.app.as_str() == app)
            && args.host.as_deref().is_none_or(|host| m.host.as_ref().is_some_and(|h| h.as_str() == host))
    });
    let text = table(&machines, text::now_ms());
    context.answer(&machines, &text).await
}

fn table(machines: &[Machine], now_ms: u64) -> String {
    if machines.is_empty() {
        return "no machines; make one with: mashines launch --name NAME\n".to_owned();
    }
    const HEAD: [&str; 8] = ["NAME", "STATE", "IMAGE", "CPU", "MEMORY", "HOST", "IPV6", "AGE"];
    if machines.iter().all(|m| m.shared.is_none()) {
        let mut table = Table::new(HEAD);
        machines.iter().for_each(|m| table.row(cells(m, now_ms)));
        return table.render();
    }
    let [name, state, image, cpu, memory, host, ipv6, age] = HEAD;
    let mut table = Table::new([name, state, image, cpu, memory, host, ipv6, age, "SHARED BY"]);
    for m in machines {
        let [name, state, image, cpu, memory, host, ipv6, age] = cells(m, now_ms);
        let by = m.shared.as_ref().map(|shared| format!("{}, as {}", m.account, shared.role));
        table.row([name, state, image, cpu, memory, host, ipv6, age, by.unwrap_or_default()]);
    }
    table.render()
}

fn cells(m: &Machine, now_ms: u64) -> [String; 8] {
    [
        m.slug.to_string(),
        state(m),
        m.image_ref.repository.to_string(),
        m.config.guest.cpus.to_string(),
        text::mebibytes(m.config.guest.memory_mb),
        m.host.as_ref().map_or("-".to_owned(), ToString::to_string),
        m.ipv6.to_string(),
        text::age_of(now_ms, &m.created_at),
    ]
}

/// The state, and that it moves just now.
fn state(machine: &Machine) -> String {
    match machine.migration {
        Some(_) => format!("{}, moving", machine.state.word()),
        None => machine.state.word().to_owned(),
    }
}
