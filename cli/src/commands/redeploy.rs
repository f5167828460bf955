//! `mashines redeploy`: the pushed commit is built anew.

use mashines_guest::deployment::{Ask, Order};

use super::Context;
use crate::deployment;
use crate::error::{CliError, Exit};

/// Which machine.
#[derive(clap::Args)]
#[command(
    after_help = "For when git says \"Everything up-to-date\": after a rollback, a build that failed for want of something outside, a new
base image. What the build says goes to standard error; Ctrl-C cancels it, and what serves serves on.

Example:
  mashines redeploy web"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let what = format!("redeploy `{}`", machine.slug);
    let order = Order { ask: Ask::Redeploy, by: None };
    let live = deployment::operate(context.session, &client, &machine, &what, order).await?;
    context.serves(live, &machine).await
}
