//! `mashines config`: the variables that releases get as their environment.

use mashines_guest::deployment::{Ask, Order, Variables, check_name};

use super::Context;
use crate::deployment;
use crate::error::{CliError, Exit};
use crate::{parse, words};

/// Which machine, and what to do.
#[derive(clap::Args)]
#[command(
    after_help = "A change starts the live build anew as a new release with the changed variables; when that is not healthy, variables
and release stay as they were. Before the first push they are stored for it. Builds see them too.

Examples:
  mashines config web
  mashines config web set DATABASE_URL=postgres://db/shop LOG=debug
  mashines config web unset LOG"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List them with their values
    Ls,
    /// Set some
    Set {
        /// NAME=VALUE
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = parse::environment)]
        variables: Vec<(String, String)>,
    },
    /// Take some away
    Unset {
        /// The names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let ask = match args.action {
        None | Some(Action::Ls) => return list(&args.machine, context).await,
        Some(Action::Set { variables }) => {
            Ask::Config { set: variables.into_iter().collect(), unset: Vec::new() }
        }
        Some(Action::Unset { names }) => Ask::Config { set: Default::default(), unset: names },
    };
    if let Ask::Config { set, unset } = &ask {
        set.keys().chain(unset).try_for_each(|name| check_name(name)).map_err(CliError::usage)?;
    }
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let what = format!("change the variables of `{}`", machine.slug);
    match deployment::operate(context.session, &client, &machine, &what, Order { ask, by: None }).await? {
        Some(live) => context.serves(Some(live), &machine).await,
        None => list(&args.machine, context).await,
    }
}

async fn list(name: &str, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(name).await?;
    let what = format!("list the variables of `{}`", machine.slug);
    let variables: Variables = deployment::ask(&client, &machine, &what, &["config", "--json"], None).await?;
    let line = |(name, value): (&String, &String)| format!("{name}={}\n", words::quote(value));
    let mut text: String = variables.env.iter().map(line).collect();
    if text.is_empty() {
        text = format!("no variables; set some with: mashines config {} set NAME=VALUE\n", machine.slug);
    }
    context.answer(&variables, &text).await
}
