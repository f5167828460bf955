//! The command tree: one file a command. This module holds what all share: global options, dispatch, how an error is told.

mod completions;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::Client;
use crate::error::{CliError, Exit};
use crate::session::{Place, Session};

/// Machines with their own kernel, address and name, that move between hosts while they run.
#[derive(Parser)]
#[command(name = "mashines", version, propagate_version = true, subcommand_required = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    /// Print one JSON document instead of text for people
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done                       4  not logged in, or not allowed
  1  refused, or failed         5  --timeout passed; the work goes on
  2  wrong usage                6  the API cannot be reached or is not trusted
  3  no such thing            255  exec, enter, cp: the machine could not be reached
exec, enter and cp end with the remote command's own code otherwise.";

#[derive(Subcommand)]
enum Command {
    /// Print the completion script of a shell
    Completions(completions::Args),
}

/// What a command works with.
struct Context<'a> {
    session: &'a mut Session,
    json: bool,
}

/// Runs one command line (without the program's name) and gives the exit code. Everything it has to say it has said to `session`.
pub async fn run(args: impl IntoIterator<Item = impl Into<OsString>>, session: &mut Session) -> u8 {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let json = wants_json(&args);
    let outcome = match parse(args, session) {
        Ok(cli) => {
            let mut context = Context { session, json: cli.json };
            dispatch(cli.command, &mut context).await
        }
        Err(error) => return told_by_clap(&error, json, session).await,
    };
    match outcome {
        Ok(exit) => exit.code(),
        Err(error) => {
            // A writer that fails here has nobody behind it any more: the exit code is all that is left to give.
            if json {
                let _ = session.out(&format!("{}\n", error.json())).await;
            }
            let _ = session.err(&error.human()).await;
            error.exit.code()
        }
    }
}

/// The names of all commands, for a prompt or a suggestion.
pub fn command_names() -> Vec<String> {
    Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect()
}

/// The words that may continue `line` at its end, for an interactive prompt: commands, then the options of the command begun.
pub fn complete(line: &str) -> Vec<String> {
    let begun = line.chars().next_back().is_none_or(char::is_whitespace);
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let prefix = if begun { "" } else { words.pop().unwrap_or("") };
    let mut command = Cli::command();
    command.build();
    let mut here = &command;
    for word in words {
        if let Some(deeper) = here.find_subcommand(word) {
            here = deeper;
        }
    }
    let names = here.get_subcommands().map(|c| c.get_name().to_owned());
    let options = here.get_arguments().filter_map(|a| a.get_long().map(|long| format!("--{long}")));
    let wanted =
        |word: &String| word.starts_with(prefix) && (prefix.starts_with('-') || !word.starts_with('-'));
    names.chain(options).filter(wanted).collect()
}

fn parse(args: Vec<OsString>, session: &Session) -> Result<Cli, clap::Error> {
    let line = std::iter::once(OsString::from("mashines")).chain(args);
    let command = Cli::command().term_width(session.width);
    Cli::from_arg_matches(&command.try_get_matches_from(line)?)
}

/// Whether `--json` was asked for, also on a line that does not parse. What follows `--` is the remote command's.
fn wants_json(args: &[OsString]) -> bool {
    args.iter().take_while(|a| *a != "--").any(|a| a == "--json")
}

/// Help and version are answers; anything else clap says is a wrong command line.
async fn told_by_clap(error: &clap::Error, json: bool, session: &mut Session) -> u8 {
    let text = error.render();
    let text = if session.terminal { text.ansi().to_string() } else { text.to_string() };
    if !error.use_stderr() {
        let _ = session.out(&text).await;
        return Exit::Ok.code();
    }
    if json {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let _ = session.out(&format!("{}\n", CliError::usage(first).next("mashines --help").json())).await;
    }
    let _ = session.err(&text).await;
    Exit::Usage.code()
}

async fn dispatch(command: Command, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match command {
        Command::Completions(args) => completions::run(args, context).await,
    }
}

impl Context<'_> {
    /// The API: the session's, or the one of the person's settings.
    fn client(&self) -> Result<Client, CliError> {
        match &self.session.client {
            Some(client) => Ok(client.clone()),
            None => {
                Err(CliError::new(Exit::Denied, "not logged in")
                    .next("mashines login --api URL --token TOKEN"))
            }
        }
    }

    /// Refuses a command that needs the person's own files or terminal; `instead` is what to type there.
    fn only_locally(&self, command: &str, instead: &str) -> Result<(), CliError> {
        match &self.session.place {
            Place::Local => Ok(()),
            Place::Lobby { gateway } => Err(CliError::usage(format!(
                "`{command}` works with files and programs of your own machine, which the lobby cannot reach"
            ))
            .next(instead.replace("{gateway}", gateway))),
        }
    }
}
