//! `mashinesd`: reads the configuration, runs the roles it names.
//!
//! One binary for all daemons of a box. Roles share a process (`mashinesd run`) or take one each (`--role`); they meet through the
//! records and netd's socket alone, so both are the same to them.

mod config;
mod found;
mod netview;
mod report;
mod run;
mod secret;

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use mashines_fleet::id::{AccountId, HostId};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Role};

/// Many small things of short lives on every thread, and memory that goes back: glibc's keeps what a crowd left behind in an arena of each thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest token that is read from standard input.
const MAX_TOKEN: u64 = 4096;

#[derive(Debug, Parser)]
#[command(
    name = "mashinesd",
    version,
    about = "The daemons of a mashines fleet",
    after_help = "\
Examples:
  One box:      mashinesd init --config /etc/mashinesd.toml --ssh-key \"$(cat ~/.ssh/id_ed25519.pub)\"
                mashinesd run --config /etc/mashinesd.toml
  Another host: mashinesd token join --config /etc/mashinesd.toml          (on the first box: prints a token)
                mashinesd join --config /etc/mashinesd.toml --control https://ADDRESS:8443 --token TOKEN
                mashinesd run --config /etc/mashinesd.toml
  A log level:  RUST_LOG=debug mashinesd run --config /etc/mashinesd.toml --role host"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found the fleet that [fleet] describes, on the box that runs control; prints the first account's API token
    Init(InitArgs),
    /// Join this box to a fleet with a single-use token
    Join(JoinArgs),
    /// Run the roles of this box until SIGTERM; machines run on
    Run(RunArgs),
    /// Make tokens, on the box that runs control
    Token {
        #[command(subcommand)]
        kind: TokenKind,
    },
}

#[derive(Debug, Args)]
struct File {
    /// The configuration file
    #[arg(
        long = "config",
        value_name = "FILE",
        default_value = "/etc/mashines/mashinesd.toml",
        env = "MASHINESD_CONFIG"
    )]
    path: PathBuf,
}

#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    file: File,
    /// The first account, an administrator's
    #[arg(long, default_value = "admin")]
    account: AccountId,
    /// A public key of its owner, one line; may be repeated
    #[arg(long = "ssh-key", value_name = "KEY")]
    ssh_keys: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct JoinArgs {
    #[command(flatten)]
    file: File,
    /// Control's address, https://ADDRESS:PORT
    #[arg(long, value_name = "URL")]
    control: String,
    /// The token that `mashinesd token join` printed; - reads it from standard input
    #[arg(long)]
    token: String,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    file: File,
    /// Only this role, which the configuration must name; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<Role>,
}

#[derive(Debug, Subcommand)]
enum TokenKind {
    /// For one box to join with, good for an hour and one use
    Join {
        #[command(flatten)]
        file: File,
        /// The only id that it is good for
        #[arg(long, value_name = "ID")]
        host: Option<HostId>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.context("start the runtime").and_then(|runtime| {
        let done = runtime.block_on(obey(cli.command));
        // A look at a file or a socket that hangs must not keep the process.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mashinesd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn obey(command: Command) -> Result<()> {
    match command {
        Command::Init(args) => init(args).await,
        Command::Join(args) => {
            let config = Config::load(&args.file.path)?;
            found::join(&config, &args.control, &token(args.token)?).await?;
            eprintln!("{} has joined the fleet at {}: `mashinesd run` starts it", config.id, args.control);
            Ok(())
        }
        Command::Run(args) => {
            let config = Config::load(&args.file.path)?;
            let roles = run::roles(&config, &args.roles)?;
            run::run(config, roles).await
        }
        Command::Token { kind: TokenKind::Join { file, host } } => {
            let config = Config::load(&file.path)?;
            println!("{}", found::join_token(&config, host).await?);
            Ok(())
        }
    }
}

async fn init(args: InitArgs) -> Result<()> {
    let config = Config::load(&args.file.path)?;
    let founded = found::init(&config, args.account, args.ssh_keys).await?;
    let ca = config.identity_dir().join("ca.pem");
    if args.json {
        let document = serde_json::json!({ "account": founded.account, "token": founded.token, "ca": ca });
        println!("{document}");
    } else {
        println!("{}", founded.token);
        eprintln!(
            "The fleet is founded. The line above is the API token of account {}; it is shown once.",
            founded.account
        );
        eprintln!("Next: `mashinesd run`, then `mashines login --api URL --token - --ca {}`.", ca.display());
    }
    Ok(())
}

/// The token itself, or what standard input has: a command line is seen by every user of the box.
fn token(given: String) -> Result<String> {
    if given != "-" {
        return Ok(given);
    }
    let mut read = String::new();
    std::io::stdin()
        .take(MAX_TOKEN)
        .read_to_string(&mut read)
        .context("read the token from standard input")?;
    Ok(read.trim().to_owned())
}
