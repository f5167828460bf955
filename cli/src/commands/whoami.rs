//! `mashines whoami`: the account at hand, what one is there, and for whom else one may act.

use mashines_fleet::api::WhoAmI;

use super::Context;
use crate::error::{CliError, Exit};
use crate::text;

/// No choices.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines whoami
  mashines whoami --account team
  mashines whoami --json | jq -r .standing")]
pub(super) struct Args {}

pub(super) async fn run(_args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let who = context.client()?.whoami().await?;
    let text = told(&who);
    context.answer(&who, &text).await
}

fn told(who: &WhoAmI) -> String {
    let members = who.acts_for.iter().map(|member| format!("{} as {}", member.account, member.role));
    let acts_for = members.collect::<Vec<_>>().join(", ");
    let token = who.token.as_ref().map(|token| {
        let machines = match token.machines.is_empty() {
            true => String::new(),
            false => format!(", for {} only", token.machines.join(", ")),
        };
        format!("signed, until {}{machines}", token.expires_at)
    });
    text::fields([
        ("account", format!("{} at {}", who.account, who.domain)),
        ("you are", format!("{}, its {}", who.me, who.standing)),
        ("fleet", if who.admin { "of its administrators' account" } else { "" }.to_owned()),
        ("acts for", acts_for),
        ("token", token.unwrap_or_default()),
    ])
}
