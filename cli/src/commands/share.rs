//! `mashines share`, `mashines unshare`: one machine for somebody of another account.

use std::time::Duration;

use mashines_fleet::api::{InviteTo, SetShare, Share};
use mashines_fleet::record::Role;

use super::{Context, invites};
use crate::client::{machine_path, segment};
use crate::error::{CliError, Exit};
use crate::parse;
use crate::text::{self, Table};

/// Which machine, with whom; without anyone, the shares are listed.
#[derive(clap::Args)]
#[command(
    after_help = "An operator by a share enters the machine through the gateway, starts, stops and moves it; a viewer sees it.
Neither removes or changes it. An invite is for somebody whose account you do not know, or who has none.

Examples:
  mashines share web bob
  mashines share web bob --role viewer --for 7d
  mashines share web --invite --for 7d       # prints a code for `mashines join`
  mashines share web                         # lists the shares
  mashines unshare web bob"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// The account
    #[arg(conflicts_with = "invite")]
    with: Option<String>,
    /// Make an invite instead, good once
    #[arg(long)]
    invite: bool,
    /// viewer or operator
    #[arg(long, value_parser = parse::role, default_value = "operator")]
    role: Role,
    /// How long, such as 12h or 7d; for good when absent. An invite is used within a week, or within this time
    #[arg(long = "for", value_name = "TIME", value_parser = parse::duration)]
    time: Option<Duration>,
}

/// Which machine, with whom no longer.
#[derive(clap::Args)]
#[command(after_help = "Whoever a machine is shared with may give that up in the same way.

Example:
  mashines unshare web bob")]
pub(super) struct Unshare {
    /// The machine: name or id
    machine: String,
    /// The account
    with: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let path = machine_path(&machine, "/shares");
    let ttl = args.time.map(|time| time.as_secs());
    let Args { with, role, .. } = args;
    match with {
        Some(with) => {
            let what = format!("share `{}` with {with}", machine.slug);
            let request = SetShare { account: with.clone(), role, ttl };
            let shares: Vec<Share> = client.post(&what, &path, &request).await?;
            let end =
                shares.iter().find(|share| share.account.as_str() == with).and_then(|s| s.expires_at.clone());
            let until = end.map(|end| format!(" until {end}")).unwrap_or_default();
            let text = format!("{} is shared with {with} as {role}{until}\n", machine.slug);
            context.answer(&shares, &text).await
        }
        None if args.invite => {
            let to = InviteTo::Machine { machine: machine.id.to_string(), role, ttl };
            invites::make(context, to, args.time.filter(|time| *time < invites::WEEK), None).await
        }
        None => {
            let shares: Vec<Share> =
                client.get(&format!("list the shares of `{}`", machine.slug), &path).await?;
            let text = table(machine.slug.as_str(), &shares);
            context.answer(&shares, &text).await
        }
    }
}

pub(super) async fn unshare(args: Unshare, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let path = machine_path(&machine, &format!("/shares/{}", segment(&args.with)?));
    let what = format!("unshare `{}`", machine.slug);
    let shares: Vec<Share> = client.delete_for(&what, &path).await?;
    let text = format!("{} is not shared with {} any more\n", machine.slug, args.with);
    context.answer(&shares, &text).await
}

fn table(machine: &str, shares: &[Share]) -> String {
    if shares.is_empty() {
        return format!("{machine} is shared with nobody; share it with: mashines share {machine} ACCOUNT\n");
    }
    let mut table = Table::new(["ACCOUNT", "ROLE", "UNTIL"]);
    for share in shares {
        let until = share.expires_at.clone().unwrap_or_else(|| "-".to_owned());
        table.row([share.account.to_string(), share.role.to_string(), text::printable(&until)]);
    }
    table.render()
}
