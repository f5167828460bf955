//! `mashines known-hosts`: the one line that ends ssh's questions about host keys.

use serde::Serialize;

use super::Context;
use crate::error::{CliError, Exit};
use crate::ssh;

/// No choices.
#[derive(clap::Args)]
#[command(after_help = "It trusts the fleet's SSH CA, which certifies every machine's key and the gateway's.

Examples:
  mashines known-hosts >> ~/.ssh/known_hosts
  ssh mashine.dev known-hosts >> ~/.ssh/known_hosts")]
pub(super) struct Args {}

/// The JSON of it.
#[derive(Serialize)]
struct Printed {
    known_hosts: String,
}

pub(super) async fn run(_args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let account = context.client()?.account().await?;
    let known_hosts = ssh::known_hosts(&account);
    if known_hosts.is_empty() {
        return Err(CliError::failed("this fleet has no SSH CA: its machines' keys are known one by one"));
    }
    context.answer(&Printed { known_hosts: known_hosts.clone() }, &known_hosts).await
}
