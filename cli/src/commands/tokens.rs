//! `mashines tokens`: API tokens that an SSH key signs, with nobody asked; and what became of tokens.
//!
//! ```text
//!   {"account","exp","role","machines","nonce"} ── ssh-keygen -Y sign -n api@DOMAIN ──▶ mss_ JSON . signature
//! ```
//!
//! ssh-keygen does the signing, so a key in the agent or on a FIDO token works as well as one in a file, and no key is read here.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mashines_fleet::access::Standing;
use mashines_fleet::api::{Claims, Done, RevokeToken, SIGNED_TOKEN, TOKEN_NAMESPACE, Token, TokenKind};
use mashines_fleet::id::AccountId;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::Context;
use crate::client::{segment, unknown};
use crate::error::{CliError, Exit};
use crate::parse;
use crate::text::{self, Table};

const PATH: &str = "/v1/account/tokens";

/// What to do; without a word, list them.
#[derive(clap::Args)]
#[command(
    after_help = "A token made by `tokens new` is kept nowhere: it is good for as long as its key is in the account (or in a member's) and its
time is not over. It may never do more than its key's owner may.

Examples:
  mashines tokens new --key ~/.ssh/id_ed25519 --for 30d > token
  mashines tokens new --key ~/.ssh/id_ed25519 --role viewer --machine web
  mashines tokens new --key id.pub --account team --domain mashine.dev     # asks nobody
  mashines login --api URL --ca ca.pem --token-file token
  mashines tokens
  mashines tokens rm 0f3a9c21d4b7
  mashines tokens rm --nonce 3q2-7wABCDEFghij"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the tokens that the fleet keeps, and those that are revoked
    Ls,
    /// Make a token by signing it with an SSH key
    New(New),
    /// Remove a token that is kept, or revoke one that was signed
    Rm {
        /// Its id, as the list shows it, or a signed token itself
        #[arg(required_unless_present = "nonce")]
        token: Option<String>,
        /// A signed token's nonce, shown when it was made
        #[arg(long, conflicts_with = "token")]
        nonce: Option<String>,
    },
}

/// For what, and by which key.
#[derive(clap::Args)]
struct New {
    /// The private key's file, or the .pub file of a key in the agent
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How long it is good, such as 12h or 30d; a year at most
    #[arg(long = "for", value_name = "TIME", value_parser = parse::duration, default_value = "30d")]
    time: Duration,
    /// At most this: viewer, operator, admin or owner
    #[arg(long, value_parser = parse::standing, default_value = "operator")]
    role: Standing,
    /// For this machine only; repeatable
    #[arg(long = "machine", value_name = "MACHINE")]
    machines: Vec<String>,
    /// The fleet's domain; with --account nobody is asked
    #[arg(long)]
    domain: Option<String>,
}

/// The JSON of a new token.
#[derive(Serialize)]
struct Made {
    token: String,
    account: AccountId,
    role: Standing,
    machines: Vec<String>,
    expires_at: u64,
    nonce: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let tokens: Vec<Token> = context.client()?.get("list the tokens", PATH).await?;
            let text = table(&tokens);
            context.answer(&tokens, &text).await
        }
        Action::New(new) => make(new, context).await,
        Action::Rm { token, nonce } => remove(token, nonce, context).await,
    }
}

async fn make(args: New, context: &mut Context<'_>) -> Result<Exit, CliError> {
    context.only_locally("tokens new", "on your own machine: mashines tokens new --key FILE")?;
    let (account, domain) = match (&context.account, &args.domain) {
        (Some(account), Some(domain)) => {
            let id =
                account.parse().map_err(|why: mashines_fleet::id::BadId| CliError::usage(why.to_string()))?;
            (id, domain.clone())
        }
        (_, domain) => {
            let who = context.client()?.whoami().await?;
            (who.account, domain.clone().unwrap_or(who.domain))
        }
    };
    let exp = (text::now_ms() / 1000).saturating_add(args.time.as_secs());
    let nonce = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 12]>());
    let claims = Claims { account, exp, role: args.role, machines: args.machines, nonce };
    let json =
        serde_json::to_vec(&claims).map_err(|e| CliError::failed(format!("cannot encode the token: {e}")))?;
    let signature = sign(&args.key, &format!("{TOKEN_NAMESPACE}{domain}"), &json).await?;
    let token =
        format!("{SIGNED_TOKEN}{}.{}", URL_SAFE_NO_PAD.encode(&json), URL_SAFE_NO_PAD.encode(signature));
    let Claims { account, exp, role, machines, nonce } = claims;
    let of = match machines.is_empty() {
        true => format!("account {account}"),
        false => format!("{} of account {account}", machines.join(", ")),
    };
    let days = text::age(u64::try_from(args.time.as_millis()).unwrap_or(u64::MAX), 0);
    context
        .session
        .err(&format!("good as {role} for {of}, for {days}; revoke it: mashines tokens rm --nonce {nonce}\n"))
        .await?;
    let text = format!("{token}\n");
    context.answer(&Made { token, account, role, machines, expires_at: exp, nonce }, &text).await
}

/// The bytes of `ssh-keygen -Y sign`. It asks for a passphrase or a touch on the terminal itself.
async fn sign(key: &Path, namespace: &str, message: &[u8]) -> Result<Vec<u8>, CliError> {
    let failed = |why: String| CliError::failed(format!("cannot sign with {}: {why}", key.display()));
    let mut command = tokio::process::Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = spawned.map_err(|e| {
        failed(format!("cannot start ssh-keygen: {e}"))
            .next("install OpenSSH's client (Debian: apt install openssh-client)")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // Whether ssh-keygen took it, its exit says.
        let _ = stdin.write_all(message).await;
    }
    let output = child.wait_with_output().await.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("ssh-keygen ended with {}", output.status))
            .next("ssh-keygen 8.2 or newer signs: ssh -V"));
    }
    let armored = String::from_utf8_lossy(&output.stdout);
    dearmored(&armored).ok_or_else(|| failed("ssh-keygen wrote no signature".to_owned()))
}

/// What is between the lines of dashes.
fn dearmored(text: &str) -> Option<Vec<u8>> {
    let body =
        text.split_once("-----BEGIN SSH SIGNATURE-----")?.1.split_once("-----END SSH SIGNATURE-----")?.0;
    let base64: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(base64).ok()
}

async fn remove(
    token: Option<String>,
    nonce: Option<String>,
    context: &mut Context<'_>,
) -> Result<Exit, CliError> {
    let client = context.client()?;
    let revoked = match (token, nonce) {
        (Some(token), _) if token.starts_with(SIGNED_TOKEN) => {
            RevokeToken { nonce: None, token: Some(token) }
        }
        (_, Some(nonce)) => RevokeToken { nonce: Some(nonce), token: None },
        (Some(id), None) => {
            let tokens: Vec<Token> = client.get("list the tokens", PATH).await?;
            let kept = tokens.iter().filter(|token| token.kind == TokenKind::Kept);
            if !kept.clone().any(|token| token.id == id) {
                return Err(unknown("token", &id, kept.map(|token| token.id.as_str()), "mashines tokens"));
            }
            let path = format!("{PATH}/{}", segment(&id)?);
            let done: Done = client.delete_for(&format!("remove token {id}"), &path).await?;
            return context.answer(&done, &format!("token {id} is good for nothing any more\n")).await;
        }
        (None, None) => return Err(CliError::usage("name a token, or give --nonce").next("mashines tokens")),
    };
    let done: Done = client.post("revoke the token", &format!("{PATH}/revoke"), &revoked).await?;
    context.answer(&done, "the token is revoked\n").await
}

fn table(tokens: &[Token]) -> String {
    if tokens.is_empty() {
        return "no tokens are kept or revoked; sign one with: mashines tokens new --key ~/.ssh/id_ed25519\n"
            .to_owned();
    }
    let now = text::now_ms();
    let mut table = Table::new(["ID", "KIND", "AGE", ""]);
    for token in tokens {
        let kind = match token.kind {
            TokenKind::Kept => "kept",
            TokenKind::Revoked => "revoked",
        };
        let this = if token.this { "the one you use" } else { "" };
        table.row([token.id.clone(), kind.to_owned(), text::age_of(now, &token.created_at), this.to_owned()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armor_is_taken_off() {
        let armored = "-----BEGIN SSH SIGNATURE-----\nU1NI\nU0lH\n-----END SSH SIGNATURE-----\n";
        assert_eq!(dearmored(armored).unwrap(), b"SSHSIG");
        for bad in ["", "U1NI", "-----BEGIN SSH SIGNATURE-----\n!\n-----END SSH SIGNATURE-----"] {
            assert_eq!(dearmored(bad), None, "{bad}");
        }
    }
}
