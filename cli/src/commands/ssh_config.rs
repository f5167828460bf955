//! `mashines ssh-config`: lines for `~/.ssh/config`, so that plain `ssh web`, editors and rsync find the machines.

use mashines_fleet::api::{Account, Machine};
use serde::Serialize;

use super::Context;
use crate::error::{CliError, Exit};

/// No choices.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines ssh-config > ~/.ssh/mashines    # and in ~/.ssh/config, at its top: Include mashines
  mashines known-hosts >> ~/.ssh/known_hosts")]
pub(super) struct Args {}

/// The JSON of it.
#[derive(Serialize)]
struct Printed {
    ssh_config: String,
}

pub(super) async fn run(_args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let account = client.account().await?;
    let machines = client.machines().await?;
    let text = config(&account, &machines, context.account.is_some());
    context.answer(&Printed { ssh_config: text.clone() }, &text).await
}

/// Short names for each machine, addresses and all, so that it also works where the fleet's DNS is not asked.
/// Another account's machines are entered through the gateway.
fn config(account: &Account, machines: &[Machine], anothers: bool) -> String {
    let domain = &account.domain;
    let blocks: Vec<String> = machines
        .iter()
        .map(|m| {
            if anothers || m.shared.is_some() {
                return format!("Host {0} {1}\n  HostName {domain}\n  User {0}\n", m.slug, m.fqdn);
            }
            let host = format!("Host {0} {1}\n  HostName {2}\n  HostKeyAlias {1}\n  User root\n", m.slug, m.fqdn, m.ipv6);
            match &m.ssh {
                None => host,
                Some(door) => {
                    let address = door.ipv4.first().map_or_else(|| door.ipv4_host.clone(), ToString::to_string);
                    let (slug, fqdn, port) = (&m.slug, &m.fqdn, door.port);
                    format!("{host}\nHost {slug}-ipv4\n  HostName {address}\n  Port {port}\n  HostKeyAlias {fqdn}\n  User root\n")
                }
            }
        })
        .collect();
    format!(
        "# The machines of account {} at {domain}, by `mashines ssh-config`.\n{}",
        account.id,
        blocks.join("\n")
    )
}
