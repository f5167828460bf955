//! `mashines members`: the accounts that act for this one.

use mashines_fleet::api::{Member, SetMember};
use mashines_fleet::record::Role;

use super::Context;
use crate::client::segment;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::text::Table;

const PATH: &str = "/v1/account/members";

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(
    after_help = "A viewer sees everything; an operator also enters, starts, stops, moves and deploys machines; an admin also
makes and removes them, shares them and has the say over members. Only the owner makes and removes admins.
Members say for whom they act: mashines --account TEAM ls.

Examples:
  mashines members
  mashines members add bob --role operator
  mashines members rm bob
  mashines members rm ann --account team     # leave"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the members
    Ls,
    /// Make an account a member, or change its role
    Add {
        /// The account
        member: String,
        /// viewer, operator or admin
        #[arg(long, value_parser = parse::role)]
        role: Role,
    },
    /// Remove a member; one's own account leaves
    Rm {
        /// The account
        member: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let members: Vec<Member> = client.get("list the members", PATH).await?;
            let text = table(&members);
            context.answer(&members, &text).await
        }
        Action::Add { member, role } => {
            let text = format!("{member} is {role} now\n");
            let what = format!("make {member} a member");
            let members: Vec<Member> = client.post(&what, PATH, &SetMember { account: member, role }).await?;
            context.answer(&members, &text).await
        }
        Action::Rm { member } => {
            let path = format!("{PATH}/{}", segment(&member)?);
            let members: Vec<Member> = client.delete_for(&format!("remove member {member}"), &path).await?;
            context.answer(&members, &format!("{member} is no member any more\n")).await
        }
    }
}

fn table(members: &[Member]) -> String {
    if members.is_empty() {
        return "no members; add one with: mashines members add ACCOUNT --role operator\n".to_owned();
    }
    let mut table = Table::new(["ACCOUNT", "ROLE"]);
    members.iter().for_each(|member| table.row([member.account.to_string(), member.role.to_string()]));
    table.render()
}
