//! The command tree: one file a command. This module holds what all share: global options, dispatch, how an error is told.

mod ca;
mod certs;
mod completions;
mod config;
mod cordon;
mod cp;
mod dns;
mod doctor;
mod drain;
mod enter;
mod exec;
mod hosts;
mod invites;
mod keys;
mod known_hosts;
mod launch;
mod login;
mod logs;
mod ls;
mod members;
mod migrate;
mod migrations;
mod redeploy;
mod releases;
mod restart;
mod rm;
mod rollback;
mod share;
mod show;
mod sign_up;
mod ssh_config;
mod start;
mod stop;
mod tokens;
mod top;
mod volumes;
mod wait;
mod whoami;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mashines_fleet::api::Machine;
use mashines_fleet::id::AppName;
use mashines_guest::deployment::ReleaseView;
use serde::Serialize;

use crate::client::Client;
use crate::error::{CliError, Exit};
use crate::session::{Place, Session};
use crate::ssh::Via;
use crate::{https, settings, ssh, text};

/// Machines with their own kernel, address and name, that move between hosts while they run.
#[derive(Parser)]
#[command(name = "mashines", version, subcommand_required = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    /// Print one JSON document instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// For this account, which has yours as a member; also MASHINES_ACCOUNT
    #[arg(long = "account", value_name = "ACCOUNT", global = true)]
    act_for: Option<String>,
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
    /// Store where the API is and your token
    Login(login::Args),
    /// Make a machine and wait until it is ready
    Launch(launch::Args),
    /// List the machines
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// Show one machine: state, addresses, ways in, events
    Show(show::Args),
    /// Enter a machine by ssh
    #[command(visible_alias = "ssh")]
    Enter(enter::Args),
    /// Run a command in a machine through its agent
    Exec(exec::Args),
    /// Copy files to or from a machine
    Cp(cp::Args),
    /// Start a stopped machine
    Start(start::Args),
    /// Stop a machine
    Stop(stop::Args),
    /// Stop a machine and start it again
    Restart(restart::Args),
    /// Remove machines
    Rm(rm::Args),
    /// Move a running machine to another host
    Migrate(migrate::Args),
    /// List, show and cancel moves
    Migrations(migrations::Args),
    /// Print a machine's console
    Logs(logs::Args),
    /// List what `git push` deployed in a machine
    Releases(releases::Args),
    /// Serve a former release again, without a build
    Rollback(rollback::Args),
    /// Build and deploy the pushed commit anew
    Redeploy(redeploy::Args),
    /// List, set and unset the variables of a machine's releases
    Config(config::Args),
    /// List, make and remove volumes
    Volumes(volumes::Args),
    /// List the hosts
    Hosts(hosts::Args),
    /// Move every machine off a host
    Drain(drain::Args),
    /// Let a host take no new machines
    Cordon(cordon::Args),
    /// Let a host take new machines again
    Uncordon(cordon::Args),
    /// Watch the machines: what they use, and their moves
    Top(top::Args),
    /// Say who you are here, and for whom you may act
    #[command(visible_alias = "who")]
    Whoami(whoami::Args),
    /// List, add and remove people who act for the account
    Members(members::Args),
    /// Share a machine with another account
    Share(share::Args),
    /// End a share of a machine
    Unshare(share::Unshare),
    /// Invite somebody into the account, or to the fleet
    Invite(invites::Make),
    /// List and withdraw invites
    Invites(invites::Args),
    /// Use an invite
    Join(invites::Join),
    /// List, add and remove the account's SSH keys
    Keys(keys::Args),
    /// List, add and remove certificate authorities whose certificates enter the account
    Ca(ca::Args),
    /// List, add, check, import and remove names and their certificates
    #[command(visible_alias = "certificates")]
    Certs(certs::Args),
    /// List, make and remove API tokens
    Tokens(tokens::Args),
    /// Records below a machine's name, update keys; the keys of the fleet's zones
    Dns(dns::Args),
    /// Say or choose how the fleet takes newcomers
    SignUp(sign_up::Args),
    /// Print lines for ~/.ssh/config
    SshConfig(ssh_config::Args),
    /// Print the line for known_hosts that makes every machine trusted
    KnownHosts(known_hosts::Args),
    /// Say what this machine can run, and what is missing
    Doctor(doctor::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
}

/// What a command works with.
struct Context<'a> {
    session: &'a mut Session,
    json: bool,
    /// The account that all is for, when it is not the person's own.
    account: Option<String>,
}

/// Runs one command line (without the program's name) and gives the exit code. Everything it has to say it has said to `session`.
pub fn run<'a>(
    args: impl IntoIterator<Item = impl Into<OsString>>,
    session: &'a mut Session,
) -> Pin<Box<dyn Future<Output = u8> + Send + 'a>> {
    boxed(args.into_iter().map(Into::into).collect(), session)
}

/// Knows the types of all it is given, and answers a box: so the whole tree is compiled here, and not once more in each program that runs it.
fn boxed(args: Vec<OsString>, session: &mut Session) -> Pin<Box<dyn Future<Output = u8> + Send + '_>> {
    Box::pin(obey(args, session))
}

async fn obey(args: Vec<OsString>, session: &mut Session) -> u8 {
    let json = wants_json(&args);
    let cli = match parse(args, session) {
        Ok(cli) => cli,
        Err(error) => return told_by_clap(&error, json, session).await,
    };
    let json = cli.json;
    // In the lobby the environment is the gateway's.
    let account = match session.place {
        Place::Local => cli.act_for.or_else(|| settings::account(&process_environment)),
        Place::Lobby { .. } => cli.act_for,
    };
    match dispatch(cli.command, &mut Context { session, json, account }).await {
        Ok(exit) => exit.code(),
        Err(error) => told(error, json, session).await,
    }
}

/// Tells an error, to whoever is still there.
async fn told(mut error: CliError, json: bool, session: &mut Session) -> u8 {
    match (&session.place, error.exit) {
        (_, Exit::NobodyReads) => return error.exit.code(),
        // In the lobby nobody can log in again or look at the entry's network.
        (Place::Lobby { .. }, Exit::Unreachable | Exit::Denied) => error.next = None,
        _ => {}
    }
    // A writer that fails here has nobody behind it any more: the exit code is all that is left to give.
    if json {
        let _ = session.out(&format!("{}\n", error.json())).await;
    }
    let _ = session.err(&error.human()).await;
    error.exit.code()
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
        Command::Login(args) => login::run(args, context).await,
        Command::Launch(args) => launch::run(args, context).await,
        Command::Ls(args) => ls::run(args, context).await,
        Command::Show(args) => show::run(args, context).await,
        Command::Enter(args) => enter::run(args, context).await,
        Command::Exec(args) => exec::run(args, context).await,
        Command::Cp(args) => cp::run(args, context).await,
        Command::Start(args) => start::run(args, context).await,
        Command::Stop(args) => stop::run(args, context).await,
        Command::Restart(args) => restart::run(args, context).await,
        Command::Rm(args) => rm::run(args, context).await,
        Command::Migrate(args) => migrate::run(args, context).await,
        Command::Migrations(args) => migrations::run(args, context).await,
        Command::Logs(args) => logs::run(args, context).await,
        Command::Releases(args) => releases::run(args, context).await,
        Command::Rollback(args) => rollback::run(args, context).await,
        Command::Redeploy(args) => redeploy::run(args, context).await,
        Command::Config(args) => config::run(args, context).await,
        Command::Volumes(args) => volumes::run(args, context).await,
        Command::Hosts(args) => hosts::run(args, context).await,
        Command::Drain(args) => drain::run(args, context).await,
        Command::Cordon(args) => cordon::close(args, context).await,
        Command::Uncordon(args) => cordon::open(args, context).await,
        Command::Top(args) => top::run(args, context).await,
        Command::Whoami(args) => whoami::run(args, context).await,
        Command::Members(args) => members::run(args, context).await,
        Command::Share(args) => share::run(args, context).await,
        Command::Unshare(args) => share::unshare(args, context).await,
        Command::Invite(args) => invites::invite(args, context).await,
        Command::Invites(args) => invites::run(args, context).await,
        Command::Join(args) => invites::join(args, context).await,
        Command::Keys(args) => keys::run(args, context).await,
        Command::Ca(args) => ca::run(args, context).await,
        Command::Certs(args) => certs::run(args, context).await,
        Command::Tokens(args) => tokens::run(args, context).await,
        Command::Dns(args) => dns::run(args, context).await,
        Command::SignUp(args) => sign_up::run(args, context).await,
        Command::SshConfig(args) => ssh_config::run(args, context).await,
        Command::KnownHosts(args) => known_hosts::run(args, context).await,
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Completions(args) => completions::run(args, context).await,
    }
}

impl Context<'_> {
    /// The API, for the account at hand: the session's, or the one of the person's settings.
    fn client(&mut self) -> Result<Client, CliError> {
        let client = match &self.session.client {
            Some(client) => client.clone(),
            None => {
                let client = https::client(&settings::load(&process_environment)?)?;
                self.session.client = Some(client.clone());
                client
            }
        };
        match &self.account {
            Some(account) => client.for_account(account),
            None => Ok(client),
        }
    }

    /// The door for a machine when none was asked for. Its own sshd knows the keys of the account that owns it: everybody else
    /// is let in by the gateway alone.
    fn door(&self, machine: &Machine) -> Option<Via> {
        let anothers = machine.shared.is_some() || self.account.is_some();
        anothers.then_some(Via::Gateway)
    }

    /// The answer: `document` with `--json`, else `text`.
    async fn answer(&mut self, document: &impl Serialize, text: &str) -> Result<Exit, CliError> {
        if self.json {
            let json = serde_json::to_string_pretty(document)
                .map_err(|e| CliError::failed(format!("cannot encode the answer: {e}")))?;
            self.session.out(&format!("{json}\n")).await?;
        } else {
            self.session.out(text).await?;
        }
        Ok(Exit::Ok)
    }

    /// The answer of a command that changed a machine: the machine, or one sentence.
    async fn settled(&mut self, machine: Machine, told: &str) -> Result<Exit, CliError> {
        let text = format!("{} {told}\n", machine.slug);
        self.answer(&machine, &text).await
    }

    /// The answer of a command after which a release serves: that release, or one sentence.
    async fn serves(&mut self, live: Option<ReleaseView>, machine: &Machine) -> Result<Exit, CliError> {
        let text = live.as_ref().map_or_else(
            || format!("{}: nothing changed\n", machine.slug),
            |live| format!("{} serves v{}: {}\n", machine.slug, live.version, text::printable(&live.subject)),
        );
        self.answer(&live, &text).await
    }

    /// Asks before something that cannot be undone; `yes` is the line that does it unasked.
    async fn sure(&mut self, question: &str, yes: &str) -> Result<(), CliError> {
        if self.session.stdin.is_none() {
            return Err(
                CliError::usage("this cannot be undone, and there is no terminal to ask on").next(yes)
            );
        }
        match self.session.confirm(question).await? {
            true => Ok(()),
            false => Err(CliError::failed("nothing was done")),
        }
    }

    /// The file that makes ssh trust this fleet's machines, written beside the settings.
    async fn known_hosts(&mut self) -> Result<Option<PathBuf>, CliError> {
        let account = self.client()?.account().await?;
        let settings = settings::path(&process_environment)?;
        ssh::write_known_hosts(&account, settings.parent().unwrap_or(Path::new(".")))
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

/// The process's own environment, for a local session.
fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// An app's name as a path segment.
fn app(name: &str) -> Result<AppName, CliError> {
    name.parse().map_err(|why: mashines_fleet::id::BadId| CliError::usage(why.to_string()))
}
