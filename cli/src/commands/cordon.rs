//! `mashines cordon` and `uncordon`: whether a host takes new machines.

use mashines_fleet::api::Host;

use super::Context;
use crate::error::{CliError, Exit};

/// Which.
#[derive(clap::Args)]
#[command(after_help = "Machines that are on the host stay there; see `mashines drain` to move them away.

Examples:
  mashines cordon a
  mashines uncordon a")]
pub(super) struct Args {
    /// The host
    host: String,
}

/// Closes a host to new machines.
pub(super) async fn close(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    change(args, "cordon", "takes no new machines", context).await
}

/// Opens it again.
pub(super) async fn open(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    change(args, "uncordon", "takes new machines", context).await
}

async fn change(args: Args, verb: &str, told: &str, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let host = client.host(&args.host).await?.id;
    let path = format!("/v1/hosts/{host}/{verb}");
    let host: Host = client.post(&format!("{verb} `{host}`"), &path, &serde_json::json!({})).await?;
    context.answer(&host, &format!("{} {told}\n", host.id)).await
}
