//! `mashines ca`: certificate authorities of one's own, which vouch for people.

use mashines_fleet::api::{AddCa, SshCa};
use mashines_fleet::record::Role;

use super::{Context, keys};
use crate::client::unknown;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::text::Table;

const PATH: &str = "/v1/account/cas";

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(
    after_help = "Whoever shows the gateway a certificate of such an authority (ssh-keygen -s CA -I NAME -n PRINCIPAL -V +8h KEY.pub) enters
as the authority's role. A certificate with one of the principals enters all machines; one whose principal is a
machine's name enters that machine. Validity, source-address, force-command and permit-* are kept to.

Examples:
  mashines ca add ca.pub --principals dev,ops --role operator
  mashines ca
  mashines ca rm 0f3a9c21d4b7"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the authorities
    Ls,
    /// Trust an authority, or change what it is trusted with
    Add {
        /// Its .pub file, or the key itself
        #[arg(required = true, num_args = 1..)]
        key: Vec<String>,
        /// Principals that enter all of the account's machines; the account's name when absent
        #[arg(long, value_delimiter = ',')]
        principals: Vec<String>,
        /// As what its people come: viewer, operator or admin
        #[arg(long, value_parser = parse::role)]
        role: Role,
    },
    /// Trust an authority no more
    Rm {
        /// Its id or fingerprint, as the list shows them
        ca: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let cas: Vec<SshCa> = client.get("list the certificate authorities", PATH).await?;
            let text = table(&cas);
            context.answer(&cas, &text).await
        }
        Action::Add { key, principals, role } => {
            let public_key = keys::public_key(context, &key)?;
            let request = AddCa { public_key, principals, role };
            let cas: Vec<SshCa> = client.post("trust the certificate authority", PATH, &request).await?;
            let text = format!("its certificates enter as {role} from now on\n{}", table(&cas));
            context.answer(&cas, &text).await
        }
        Action::Rm { ca } => {
            let cas: Vec<SshCa> = client.get("list the certificate authorities", PATH).await?;
            let found = cas.iter().find(|known| known.key.id == ca || known.key.fingerprint == ca);
            let known = cas.iter().map(|known| known.key.id.as_str());
            let key = &found.ok_or_else(|| unknown("certificate authority", &ca, known, "mashines ca"))?.key;
            let what = format!("remove certificate authority {}", key.id);
            let left: Vec<SshCa> = client.delete_for(&what, &format!("{PATH}/{}", key.id)).await?;
            context.answer(&left, &format!("certificates of {} enter no more\n", key.fingerprint)).await
        }
    }
}

fn table(cas: &[SshCa]) -> String {
    if cas.is_empty() {
        return "no certificate authorities; trust one with: mashines ca add CA.pub --role operator\n"
            .to_owned();
    }
    let mut table = Table::new(["ID", "ROLE", "PRINCIPALS", "FINGERPRINT"]);
    for ca in cas {
        let principals = match ca.principals.is_empty() {
            true => "(the account's name)".to_owned(),
            false => ca.principals.join(","),
        };
        table.row([ca.key.id.clone(), ca.role.to_string(), principals, ca.key.fingerprint.clone()]);
    }
    table.render()
}
