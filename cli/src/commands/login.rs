//! `mashines login`: keeps where the API is, the token and the CA, once they are seen to work.

use std::path::PathBuf;

use tokio::io::AsyncReadExt as _;

use super::{Context, process_environment};
use crate::error::{CliError, Exit};
use crate::settings::{self, Settings};
use crate::{https, text};

/// Longer than any token, in bytes.
const MAX_TOKEN: u64 = 16 << 10;

/// Where, and as whom.
#[derive(clap::Args)]
#[command(
    after_help = "The settings go to $MASHINES_CONFIG, else ~/.config/mashines/config.toml (mode 0600).
MASHINES_API, MASHINES_TOKEN and MASHINES_CA (a PEM file or sha256:…) win over them, one by one.
A token in the command line can be seen by other users of this machine: prefer a file or standard input.

Examples:
  mashines login --api https://api.mashine.dev:8443 --ca ca.pem --token-file token
  mashines login --api https://192.0.2.1:8443 --ca-fingerprint sha256:9f86d081… < token"
)]
pub(super) struct Args {
    /// The API: https://HOST:PORT
    #[arg(long, value_name = "URL")]
    api: String,
    /// The fleet's CA, a PEM file (mashinesd init wrote it: ca.pem)
    #[arg(long, value_name = "FILE", required_unless_present = "ca_fingerprint")]
    ca: Option<String>,
    /// Its fingerprint instead: sha256:HEX
    #[arg(long, value_name = "sha256:HEX", conflicts_with = "ca")]
    ca_fingerprint: Option<String>,
    /// The token; - or nothing reads it from standard input
    #[arg(long)]
    token: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    context.only_locally("login", "in the lobby you are logged in by your SSH key: ls")?;
    let file = settings::path(&process_environment)?;
    let token = token(&args, context).await?;
    let ca = match (&args.ca, &args.ca_fingerprint) {
        (Some(file), _) => settings::read_ca(file)?,
        (None, Some(fingerprint)) => fingerprint.clone(),
        (None, None) => return Err(CliError::usage("cannot log in without --ca or --ca-fingerprint")),
    };
    let settings = Settings { api: args.api, token, ca };
    let account = https::client(&settings)?.account().await?;
    settings::save(&file, &settings)?;
    let role = if account.admin { ", an administrator" } else { "" };
    let text = format!(
        "logged in to {} as {}{role}; kept in {}\n",
        text::printable(&account.domain),
        account.id,
        file.display()
    );
    let document = serde_json::json!({
        "account": account.id, "domain": account.domain, "admin": account.admin, "config": file,
    });
    context.answer(&document, &text).await
}

async fn token(args: &Args, context: &mut Context<'_>) -> Result<String, CliError> {
    let given = args.token.as_ref().filter(|token| *token != "-");
    let text = match (given, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| CliError::usage(format!("cannot read the token from {}: {e}", file.display())))?,
        (None, None) => {
            if context.session.stdin.is_some() {
                context.session.err("token: ").await?;
            }
            from_stdin(context.session.stdin.is_some()).await?
        }
    };
    match text.trim() {
        "" => Err(CliError::usage("the token is empty").next("mashines login --token-file FILE")),
        token => Ok(token.to_owned()),
    }
}

/// One line of a person, all of a pipe.
async fn from_stdin(person: bool) -> Result<String, CliError> {
    let mut text = String::new();
    let read = match person {
        true => {
            use tokio::io::{AsyncBufReadExt as _, BufReader};
            BufReader::new(tokio::io::stdin()).read_line(&mut text).await
        }
        false => tokio::io::stdin().take(MAX_TOKEN).read_to_string(&mut text).await,
    };
    read.map_err(|e| CliError::usage(format!("cannot read the token from standard input: {e}")))?;
    Ok(text)
}
