//! `mashines sign-up`: how the fleet takes newcomers.

use mashines_fleet::api::SignUpPolicy;
use mashines_fleet::record::SignUp;

use super::Context;
use crate::error::{CliError, Exit};

const PATH: &str = "/v1/fleet/sign-up";

/// Nothing shows the policy.
#[derive(clap::Args)]
#[command(
    after_help = "closed: a key that is in no account is refused. invite: it may become an account with an invite of anybody. open: it may
become an account, within limits.

Examples:
  mashines sign-up
  mashines sign-up invite
  mashines invite --fleet"
)]
pub(super) struct Args {
    /// The new policy; administrators only
    policy: Option<Policy>,
}

/// As people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Policy {
    Closed,
    Invite,
    Open,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let policy: SignUpPolicy = match args.policy {
        None => client.get("read the policy", PATH).await?,
        Some(policy) => {
            let sign_up = match policy {
                Policy::Closed => SignUp::Closed,
                Policy::Invite => SignUp::Invite,
                Policy::Open => SignUp::Open,
            };
            client.post("change the policy", PATH, &SignUpPolicy { sign_up }).await?
        }
    };
    let text = match policy.sign_up {
        SignUp::Closed => "closed: the fleet takes no newcomers\n",
        SignUp::Invite => "invite: the fleet takes newcomers with an invite\n",
        SignUp::Open => "open: the fleet takes newcomers\n",
    };
    context.answer(&policy, text).await
}
