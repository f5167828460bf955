//! `mashines keys`: the SSH keys whose holders are the account's owner.

use mashines_fleet::api::{Account, AddKey, SshKey};

use super::Context;
use crate::client::unknown;
use crate::error::{CliError, Exit};
use crate::session::Place;
use crate::text::Table;

const PATH: &str = "/v1/account/keys";

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(
    after_help = "Whoever holds one of these keys is the owner. For others' people there are members, shares and certificate
authorities (mashines ca). Machines know a new key from their next start; the gateway knows it at once.

Examples:
  mashines keys
  mashines keys add ~/.ssh/id_ed25519.pub
  ssh mashine.dev keys add $(cat new.pub)
  mashines keys rm 0f3a9c21d4b7"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the keys
    Ls,
    /// Add a key
    Add {
        /// A .pub file, or the key itself
        #[arg(required = true, num_args = 1..)]
        key: Vec<String>,
    },
    /// Remove a key. The last one is asked about
    Rm {
        /// Its id or fingerprint, as the list shows them
        key: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let keys: Vec<SshKey> = context.client()?.get("list the keys", PATH).await?;
            let text = table(&keys);
            context.answer(&keys, &text).await
        }
        Action::Add { key } => {
            let public_key = public_key(context, &key)?;
            let account: Account =
                context.client()?.post("add the key", PATH, &AddKey { public_key }).await?;
            let text = format!("account {} has {} keys now\n", account.id, account.ssh_keys.len());
            context.answer(&account, &text).await
        }
        Action::Rm { key, yes } => remove(&key, yes, context).await,
    }
}

/// A public key that was named by its file or typed.
pub(super) fn public_key(context: &Context<'_>, words: &[String]) -> Result<String, CliError> {
    let text = words.join(" ");
    let begun = ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| text.starts_with(kind)) && text.contains(' ');
    match (begun, &context.session.place) {
        (true, _) => Ok(text),
        (false, Place::Lobby { gateway }) => {
            Err(CliError::usage("the lobby cannot read your files: give the key itself")
                .next(format!("ssh {gateway} keys add \"$(cat FILE.pub)\"")))
        }
        (false, Place::Local) => {
            let read = std::fs::read_to_string(&text);
            let text =
                read.map_err(|e| CliError::usage(format!("cannot read the public key in {text}: {e}")))?;
            if text.contains("PRIVATE KEY") {
                return Err(CliError::usage(
                    "that file holds a private key, which stays with you: give the one that ends in .pub",
                ));
            }
            Ok(text)
        }
    }
}

async fn remove(name: &str, yes: bool, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let keys: Vec<SshKey> = client.get("list the keys", PATH).await?;
    let found = keys.iter().find(|key| key.id == name || key.fingerprint == name);
    let key =
        found.ok_or_else(|| unknown("key", name, keys.iter().map(|key| key.id.as_str()), "mashines keys"))?;
    let last = keys.len() == 1;
    if last && !yes {
        let ask = format!(
            "{} is the account's last key: without it nobody enters by ssh. Remove it?",
            key.fingerprint
        );
        context.sure(&ask, &format!("mashines keys rm {} --yes", key.id)).await?;
    }
    let path = format!("{PATH}/{}{}", key.id, if last { "?last=true" } else { "" });
    let left: Vec<SshKey> = client.delete_for(&format!("remove key {}", key.id), &path).await?;
    let text = format!("key {} is removed; {} left\n", key.fingerprint, left.len());
    context.answer(&left, &text).await
}

fn table(keys: &[SshKey]) -> String {
    if keys.is_empty() {
        return "no keys; add one with: mashines keys add ~/.ssh/id_ed25519.pub\n".to_owned();
    }
    let mut table = Table::new(["ID", "ALGORITHM", "FINGERPRINT"]);
    keys.iter().for_each(|key| table.row([key.id.clone(), key.algorithm.clone(), key.fingerprint.clone()]));
    table.render()
}
