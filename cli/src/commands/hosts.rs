//! `mashines hosts`: the fleet's hosts, for administrators.

use mashines_fleet::api::Host;
use mashines_fleet::record::HostRole;

use super::Context;
use crate::error::{CliError, Exit};
use crate::text::{self, Table};

/// Nothing to say.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines hosts
  mashines hosts --json | jq -r '.[] | select(.alive | not) | .id'")]
pub(super) struct Args {}

pub(super) async fn run(_: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let hosts = context.client()?.hosts().await?;
    context.answer(&hosts, &table(&hosts, text::now_ms())).await
}

fn table(hosts: &[Host], now_ms: u64) -> String {
    let mut table =
        Table::new(["HOST", "ROLES", "REGION", "STATE", "MACHINES", "CPU", "MEMORY", "DISK", "SEEN"]);
    for h in hosts {
        let of = |used: u64, all: u64| format!("{} of {}", text::mebibytes(used), text::mebibytes(all));
        table.row([
            h.id.to_string(),
            h.roles.iter().map(|r| role(*r)).collect::<Vec<_>>().join(","),
            h.region.clone(),
            state(h).to_owned(),
            h.machines.len().to_string(),
            format!("{} of {}", h.used.vcpus, h.capacity.vcpus),
            of(h.used.memory_mib, h.capacity.memory_mib),
            of(h.used.disk_mib, h.capacity.disk_mib),
            text::age(now_ms, h.seen_at),
        ]);
    }
    table.render()
}

fn role(role: HostRole) -> &'static str {
    match role {
        HostRole::Host => "host",
        HostRole::Entry => "entry",
    }
}

fn state(host: &Host) -> &'static str {
    match (host.alive, host.cordoned) {
        (true, false) => "up",
        (true, true) => "up, cordoned",
        (false, false) => "silent",
        (false, true) => "silent, cordoned",
    }
}
