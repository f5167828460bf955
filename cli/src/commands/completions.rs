//! `mashines completions`: the script that makes a shell complete this command.

use clap::CommandFactory as _;

use super::{Cli, Context};
use crate::error::{CliError, Exit};

/// What to print.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines completions bash > ~/.local/share/bash-completion/completions/mashines
  mashines completions zsh  > ~/.zfunc/_mashines
  mashines completions fish > ~/.config/fish/completions/mashines.fish")]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    context.only_locally("completions", "on your own machine: mashines completions SHELL")?;
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mashines", &mut script);
    context.session.out(&String::from_utf8_lossy(&script)).await?;
    Ok(Exit::Ok)
}
