//! `mashines rollback`: a former release serves again.

use mashines_guest::deployment::{Ask, Order};

use super::Context;
use crate::deployment;
use crate::error::{CliError, Exit};

/// Which machine, and to which release.
#[derive(clap::Args)]
#[command(
    after_help = "Nothing is built: the release is started as it was, with the variables it had, checked, and switched to without a
dropped request.

Examples:
  mashines rollback web
  mashines rollback web v3"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// The release, such as v3; the one before the live one when absent
    #[arg(value_parser = version)]
    release: Option<u64>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let what = format!("roll `{}` back", machine.slug);
    let order = Order { ask: Ask::Rollback { to: args.release }, by: None };
    let live = deployment::operate(context.session, &client, &machine, &what, order).await?;
    context.serves(live, &machine).await
}

/// Reads `v3` or `3`.
fn version(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('v').unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is not a release: v and a number, such as v3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_a_number_with_or_without_its_letter() {
        assert_eq!(version("v3"), Ok(3));
        assert_eq!(version("3"), Ok(3));
        assert!(version("latest").unwrap_err().contains("v3"));
    }
}
