//! `mashines invite`, `mashines invites`, `mashines join`: codes that let somebody in.

use std::time::Duration;

use mashines_fleet::api::{
    AcceptInvite, Accepted, Code, CreateInvite, Done, Given, Invite, InviteMade, InviteTo,
};
use mashines_fleet::record::Role;

use super::Context;
use crate::client::segment;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::text::{self, Table};

const PATH: &str = "/v1/account/invites";

/// How long an invite is good when nobody says.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Into what, as what, how long.
#[derive(clap::Args)]
#[command(
    after_help = "The code is shown once and kept nowhere. One for a single machine: mashines share MACHINE --invite.

Examples:
  mashines invite --role operator            # into your account
  mashines invite --role viewer --uses 20 --for 1d
  mashines invite --fleet                    # an account of their own; administrators only"
)]
pub(super) struct Make {
    /// Into the account, as viewer, operator or admin
    #[arg(long, value_parser = parse::role, required_unless_present = "fleet")]
    role: Option<Role>,
    /// To the fleet, for an account of their own
    #[arg(long, conflicts_with = "role")]
    fleet: bool,
    /// How long it may be used, such as 12h or 7d: a week when absent
    #[arg(long = "for", value_name = "TIME", value_parser = parse::duration)]
    time: Option<Duration>,
    /// How often it may be used: once when absent
    #[arg(long)]
    uses: Option<u32>,
}

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mashines invites
  mashines invites rm 0f3a9c21d4")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the invites that were not used
    Ls,
    /// Withdraw an invite
    Rm {
        /// Its id, as the list shows it
        id: String,
    },
}

/// The invite.
#[derive(clap::Args)]
#[command(
    after_help = "Without an account, sign up with the code: ssh to the gateway and give it when asked.

Example:
  mashines join msi_5d0c…"
)]
pub(super) struct Join {
    /// Its code
    code: String,
}

pub(super) async fn invite(args: Make, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let to = match args.role {
        Some(role) => InviteTo::Account { role },
        None => InviteTo::Fleet,
    };
    make(context, to, args.time, args.uses).await
}

/// Makes an invite and shows its code.
pub(super) async fn make(
    context: &mut Context<'_>,
    to: InviteTo,
    valid: Option<Duration>,
    uses: Option<u32>,
) -> Result<Exit, CliError> {
    let request = CreateInvite { to, valid: valid.map(|valid| valid.as_secs()), uses };
    let made: InviteMade = context.client()?.post("make an invite", PATH, &request).await?;
    let InviteMade { code, invite } = &made;
    let uses = if invite.uses == 1 { "once".to_owned() } else { format!("{} times", invite.uses) };
    let text = format!(
        "{code}\n\ngives {}; good {uses}, until {}\n  with an account:  mashines join {code}\n  withdraw it:      mashines invites rm {}\n",
        given(&invite.gives),
        invite.expires_at,
        invite.id
    );
    context.answer(&made, &text).await
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let invites: Vec<Invite> = client.get("list the invites", PATH).await?;
            let text = table(&invites);
            context.answer(&invites, &text).await
        }
        Action::Rm { id } => {
            let path = format!("{PATH}/{}", segment(&id)?);
            let done: Done = client.delete_for(&format!("withdraw invite {id}"), &path).await?;
            context.answer(&done, &format!("invite {id} is withdrawn\n")).await
        }
    }
}

pub(super) async fn join(args: Join, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let request = AcceptInvite { invite: Code(args.code) };
    let accepted: Accepted = context.client()?.post("use the invite", "/v1/invites/accept", &request).await?;
    let next = match &accepted.given {
        Given::Fleet => String::new(),
        Given::Account { account, .. } => format!("  next: mashines ls --account {account}\n"),
        Given::Machine { slug, .. } => format!("  next: mashines show {slug}\n"),
    };
    let text = format!("account {} has now {}\n{next}", accepted.account, given(&accepted.given));
    context.answer(&accepted, &text).await
}

/// What an invite gives, in words.
fn given(given: &Given) -> String {
    match given {
        Given::Fleet => "an account in the fleet".to_owned(),
        Given::Account { account, role } => format!("the role of {role} in account {account}"),
        Given::Machine { slug, owner, role, expires_at, .. } => {
            let until = expires_at.as_ref().map(|end| format!(" until {end}")).unwrap_or_default();
            format!("the role of {role} at machine {slug} of account {owner}{until}")
        }
    }
}

fn table(invites: &[Invite]) -> String {
    if invites.is_empty() {
        return "no invites; make one with: mashines invite --role operator\n".to_owned();
    }
    let mut table = Table::new(["ID", "GIVES", "USES", "UNTIL", "BY"]);
    for invite in invites {
        table.row([
            invite.id.clone(),
            given(&invite.gives),
            invite.uses.to_string(),
            text::printable(&invite.expires_at),
            invite.by.to_string(),
        ]);
    }
    table.render()
}
