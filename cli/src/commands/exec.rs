//! `mashines exec`: runs a command in a machine through its agent, without ssh, and ends with the command's own exit code.

use std::time::Duration;

use mashines_fleet::api::{Exec, ExecAnswer};
use tokio::io::AsyncReadExt as _;

use super::Context;
use crate::client::machine_path;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::session::Place;

/// The longest standard input that is passed on, in bytes: it travels in one request.
const MAX_STDIN: u64 = 1 << 20;

/// Beside the command's own time: for the way there and back.
const WAY: Duration = Duration::from_secs(15);

/// Where and what.
#[derive(clap::Args)]
#[command(after_help = "The command is a program with its arguments; for pipes and variables, run a shell.
The exit code is the command's: 128 + N when signal N ended it, 255 when it could not be run there.

Examples:
  mashines exec web -- uname -a
  mashines exec web -- sh -c 'df -h | tail -n +2'
  mashines exec db --timeout 5m -- pg_dump shop > shop.sql
  echo 'select 1' | mashines exec db --stdin -- psql")]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// Kill the command after this; whole seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    timeout: Duration,
    /// Pass standard input on, up to 1 MiB
    #[arg(long, short = 'i')]
    stdin: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    // The codes below 255 are the remote command's; whatever kept it from running must not look like one of them.
    let answer = ask(args, context).await.map_err(|error| CliError { exit: Exit::Transport, ..error })?;
    let exit = Exit::Remote(code(&answer));
    if context.json {
        context.answer(&answer, "").await?;
    } else {
        context.session.out(&answer.stdout).await?;
        context.session.err(&answer.stderr).await?;
    }
    Ok(exit)
}

async fn ask(args: Args, context: &mut Context<'_>) -> Result<ExecAnswer, CliError> {
    let client = context.client()?;
    let stdin = if args.stdin { Some(read_stdin(context).await?) } else { None };
    let machine = client.machine(&args.machine).await?;
    let what = format!(
        "run `{}` in `{}`",
        crate::words::join(args.command.iter().map(String::as_str)),
        machine.slug
    );
    let timeout = Some(args.timeout.as_secs().max(1));
    let request = Exec { cmd: None, command: args.command, stdin, timeout };
    client.post_within(&what, &machine_path(&machine, "/exec"), &request, args.timeout + WAY).await
}

async fn read_stdin(context: &mut Context<'_>) -> Result<String, CliError> {
    if context.session.place != Place::Local {
        return Err(CliError::usage("the lobby passes no standard input on to `exec`")
            .next("on your own machine: mashines exec --stdin"));
    }
    let mut text = String::new();
    let read = tokio::io::stdin().take(MAX_STDIN + 1).read_to_string(&mut text).await;
    let length =
        read.map_err(|e| CliError::failed(format!("cannot read standard input as UTF-8 text: {e}")))?;
    match u64::try_from(length) {
        Ok(length) if length <= MAX_STDIN => Ok(text),
        _ => Err(CliError::failed("standard input is longer than the 1 MiB that `exec` passes on")
            .next("mashines cp FILE MACHINE:PATH, or ssh")),
    }
}

/// As a shell gives it: 128 and the signal for a command that a signal ended.
fn code(answer: &ExecAnswer) -> u8 {
    match answer.exit_signal {
        0 => u8::try_from(answer.exit_code).unwrap_or(255),
        signal => u8::try_from(signal.saturating_add(128)).unwrap_or(255),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands_own() {
        let ended = |exit_code, exit_signal| ExecAnswer { exit_code, exit_signal, ..ExecAnswer::default() };
        assert_eq!(code(&ended(0, 0)), 0);
        assert_eq!(code(&ended(7, 0)), 7);
        assert_eq!(code(&ended(-1, 9)), 137);
        assert_eq!(code(&ended(-1, 0)), 255);
    }
}
