//! `mashines enter`: ssh into a machine, through the first door that answers.

use super::Context;
use crate::error::{CliError, Exit};
use crate::ssh::{self, Via};
use crate::words;

/// Which, and how.
#[derive(clap::Args)]
#[command(after_help = "Tries the machine's own IPv6 address, then its shared IPv4 port, then the gateway.
The exit code is ssh's: the remote command's, or 255 when the machine could not be reached.

Examples:
  mashines enter web
  mashines enter web --via gateway
  mashines enter web -- journalctl -f")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// This door, without trying
    #[arg(long)]
    via: Option<Via>,
    /// A command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let instead = format!("on your own machine: ssh {}@{{gateway}}", words::quote(&args.machine));
    context.only_locally("enter", &instead)?;
    let outside = |error: CliError| CliError { exit: Exit::Transport, ..error };
    let machine = context.client()?.machine(&args.machine).await.map_err(outside)?;
    let known_hosts = context.known_hosts().await.map_err(outside)?;
    let target = ssh::target(&machine, args.via.or(context.door(&machine)), known_hosts.as_deref()).await?;
    let mut arguments: Vec<String> = target.option_arguments().collect();
    arguments.extend(["-p".to_owned(), target.port.to_string(), format!("{}@{}", target.user, target.host)]);
    if !args.command.is_empty() {
        // ssh joins its words with blanks for the remote shell: quoted, they arrive as they were typed here.
        arguments.push("--".to_owned());
        arguments.push(words::join(args.command.iter().map(String::as_str)));
    }
    ssh::run("ssh", arguments).await
}
