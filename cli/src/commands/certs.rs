//! `mashines certs`: names and their certificates.

use std::fmt::Write as _;
use std::path::PathBuf;

use mashines_fleet::api::{
    AddCertificate, Certificate, CertificateState, Certificates, DEFAULT_APP, Done, ImportCertificate,
    IssuerAccount, Machine, PrivateKeyPem,
};
use mashines_fleet::record::CertificateSource;

use super::Context;
use crate::client::{Client, unknown};
use crate::error::{CliError, Exit};
use crate::session::Place;
use crate::text::{self, Table};

const FLAT: &str = "/v1/certificates";

const ISSUERS: &str = "/v1/fleet/issuers";

/// The longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;

/// What to do with them; without a word, list them.
#[derive(clap::Args)]
#[command(
    after_help = "Every machine is served under the platform's own certificate for NAME.APEX; nothing is to be done for that. A name of your
own is proved once: by a TXT record, or by a CNAME to the machine's name.

Examples:
  mashines certs
  mashines certs add www.example.org --machine web     # says what to put into the domain's zone
  mashines certs check www.example.org                 # looks there now
  mashines certs issue web                             # a certificate for the machine's name alone
  mashines certs issue web --key-in-machine            # its key is made in the machine and never leaves it
  mashines certs import www.example.org --machine web --chain fullchain.pem --key key.pem
  mashines certs rm www.example.org
  mashines certs roll-key letsencrypt                  # a new key for the platform's account there"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the names: state, issuer, end, next renewal, what went wrong and what to do
    Ls,
    /// Show one name, with what its zone needs
    Show {
        /// The name
        name: String,
    },
    /// Serve a name of your own by a machine, with a certificate
    Add {
        /// The name, such as www.example.org
        name: String,
        /// The machine: name or id
        #[arg(long, short)]
        machine: String,
        /// Make the key in the machine; it never leaves it
        #[arg(long)]
        key_in_machine: bool,
    },
    /// Have a certificate for a machine's own name alone
    Issue {
        /// The machine: name or id
        machine: String,
        /// For the names below it: *.NAME.APEX
        #[arg(long)]
        wildcard: bool,
        /// Make the key in the machine; it never leaves it
        #[arg(long)]
        key_in_machine: bool,
    },
    /// Look now whether a name is proved and leads here, and try again what failed
    Check {
        /// The name
        name: String,
    },
    /// Bring a certificate from elsewhere, which you renew
    Import {
        /// The name
        name: String,
        /// The machine: name or id
        #[arg(long, short)]
        machine: String,
        /// A PEM file: the certificate, then who signed it
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// A PEM file: its private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Remove a name and its certificate
    Rm {
        /// The name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// List the platform's accounts at issuers, and since when each has its key; administrators
    Issuers,
    /// Change the key of the platform's account at an issuer; administrators
    RollKey {
        /// The issuer, as the configuration calls it
        issuer: String,
    },
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    match args.action.unwrap_or(Action::Ls) {
        Action::Ls => {
            let all: Certificates = client.get("list the certificates", FLAT).await?;
            let text = table(&all.certificates);
            context.answer(&all.certificates, &text).await
        }
        Action::Show { name } => {
            let found = find(&client, &name).await?;
            let text = told(&found);
            context.answer(&found, &text).await
        }
        Action::Add { name, machine, key_in_machine } => {
            let machine = client.machine(&machine).await?;
            add(&client, name, &machine, key_in_machine, context).await
        }
        Action::Issue { machine, wildcard, key_in_machine } => {
            let machine = client.machine(&machine).await?;
            let apex = client.whoami().await?.domain;
            let star = if wildcard { "*." } else { "" };
            add(&client, format!("{star}{}.{apex}", machine.slug), &machine, key_in_machine, context).await
        }
        Action::Check { name } => {
            let found = find(&client, &name).await?;
            let path = format!("{}/check", path(&found));
            let checked: Certificate =
                client.post(&format!("check {}", found.hostname), &path, &serde_json::json!({})).await?;
            let text = told(&checked);
            context.answer(&checked, &text).await
        }
        Action::Import { name, machine, chain, key } => {
            let machine = client.machine(&machine).await?;
            let request = ImportCertificate {
                hostname: name,
                fullchain: file(context, &chain, "chain")?,
                private_key: PrivateKeyPem(file(context, &key, "key")?),
                machine: Some(machine.id.to_string()),
            };
            let what = format!("import the certificate for {}", request.hostname);
            let path = format!("/v1/apps/{}/certificates/custom", machine.app);
            let kept: Certificate = client.post(&what, &path, &request).await?;
            let text = told(&kept);
            context.answer(&kept, &text).await
        }
        Action::Issuers => {
            let all: Vec<IssuerAccount> = client.get("list the issuers", ISSUERS).await?;
            let text = issuers(&all);
            context.answer(&all, &text).await
        }
        Action::RollKey { issuer } => {
            let all: Vec<IssuerAccount> = client.get("list the issuers", ISSUERS).await?;
            if !all.iter().any(|account| account.issuer.as_str() == issuer) {
                let known = all.iter().map(|account| account.issuer.as_str());
                return Err(unknown("issuer", &issuer, known, "mashines certs issuers"));
            }
            let path = format!("{ISSUERS}/{issuer}/rollover");
            let what = format!("change the key of the account at {issuer}");
            let asked: IssuerAccount = client.post(&what, &path, &serde_json::json!({})).await?;
            let text = format!(
                "the account at {issuer} gets a new key within a minute; its orders and limits stay\nsee: mashines certs issuers\n"
            );
            context.answer(&asked, &text).await
        }
        Action::Rm { name, yes } => {
            let found = find(&client, &name).await?;
            if !yes {
                let ask =
                    format!("{} is served no more, and its certificate is gone. Remove it?", found.hostname);
                context.sure(&ask, &format!("mashines certs rm {} --yes", found.hostname)).await?;
            }
            let done: Done = client.delete_for(&format!("remove {}", found.hostname), &path(&found)).await?;
            context.answer(&done, &format!("{} is removed\n", found.hostname)).await
        }
    }
}

async fn add(
    client: &Client,
    hostname: String,
    machine: &Machine,
    key_in_machine: bool,
    context: &mut Context<'_>,
) -> Result<Exit, CliError> {
    let what = format!("add {hostname}");
    let request = AddCertificate { hostname, machine: Some(machine.id.to_string()), key_in_machine };
    let path = format!("/v1/apps/{}/certificates/acme", machine.app);
    let added: Certificate = client.post(&what, &path, &request).await?;
    let text = told(&added);
    context.answer(&added, &text).await
}

/// A name of the account; for an unknown one, the error names the nearest.
async fn find(client: &Client, name: &str) -> Result<Certificate, CliError> {
    let all: Certificates = client.get("list the certificates", FLAT).await?;
    // As typed: only control knows the form that DNS has for names of other scripts.
    let typed = name.trim_end_matches('.').to_ascii_lowercase();
    let found = all.certificates.iter().find(|certificate| certificate.hostname.as_str() == typed);
    found.cloned().ok_or_else(|| {
        unknown("name", name, all.certificates.iter().map(|c| c.hostname.as_str()), "mashines certs")
    })
}

/// Names are of letters, digits, hyphens, dots and a star: none needs escaping in a path.
fn path(certificate: &Certificate) -> String {
    let app = certificate.app.as_ref().map_or(DEFAULT_APP, |app| app.as_str());
    format!("/v1/apps/{app}/certificates/{}", certificate.hostname)
}

/// A file of the person's own.
fn file(context: &Context<'_>, path: &std::path::Path, what: &str) -> Result<String, CliError> {
    if let Place::Lobby { .. } = context.session.place {
        return Err(CliError::usage(format!(
            "the lobby cannot read your files, and a {what} is not to be typed"
        ))
        .next("use the mashines command on your own machine"));
    }
    let shown = path.display();
    let length = std::fs::metadata(path).map(|metadata| metadata.len());
    match length {
        Ok(length) if length > MAX_FILE => {
            Err(CliError::usage(format!("{shown} is longer than {MAX_FILE} bytes: that is no {what} in PEM")))
        }
        Ok(_) => std::fs::read_to_string(path)
            .map_err(|error| CliError::usage(format!("cannot read the {what} in {shown}: {error}"))),
        Err(error) => Err(CliError::usage(format!("cannot read the {what} in {shown}: {error}"))),
    }
}

fn word(state: CertificateState) -> &'static str {
    match state {
        CertificateState::AwaitingProof => "awaiting proof",
        CertificateState::Lapsed => "lapsed",
        CertificateState::AwaitingAddress => "leads elsewhere",
        CertificateState::Wanted => "wanted",
        CertificateState::Issuing => "issuing",
        CertificateState::Failing => "failing",
        CertificateState::Issued => "issued",
        CertificateState::Expiring => "expiring",
        CertificateState::Expired => "expired",
    }
}

/// Who issued it, and who holds the key where that is not the platform.
fn issuer(certificate: &Certificate) -> String {
    let issuer = certificate.issuer.clone().unwrap_or_else(|| "-".to_owned());
    match certificate.source {
        CertificateSource::Acme => issuer,
        CertificateSource::Machine => format!("{issuer}, key in the machine"),
        CertificateSource::Imported => format!("{issuer}, imported"),
    }
}

/// The day, which is what a table has room for.
fn day(time: Option<&String>) -> String {
    time.and_then(|time| time.get(..10)).unwrap_or("-").to_owned()
}

fn table(all: &[Certificate]) -> String {
    if all.is_empty() {
        return "no names of your own; add one with: mashines certs add www.example.org --machine MACHINE\n"
            .to_owned();
    }
    let mut table = Table::new(["NAME", "STATE", "MACHINE", "ISSUER", "ENDS", "RENEWS"]);
    for one in all {
        let machine = one.machine.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row([
            one.hostname.to_string(),
            word(one.state).to_owned(),
            machine,
            issuer(one),
            day(one.expires_at.as_ref()),
            day(one.renew_at.as_ref()),
        ]);
    }
    let mut text = table.render();
    all.iter().for_each(|one| text.push_str(&problems(one, &format!("{}: ", one.hostname))));
    text
}

fn issuers(all: &[IssuerAccount]) -> String {
    if all.is_empty() {
        return "no account at an issuer yet: an entry makes one with its first order\n".to_owned();
    }
    let mut table = Table::new(["ISSUER", "DIRECTORY", "SINCE", "KEY SINCE", "KEY"]);
    for one in all {
        let key = match (&one.rolling_since, &one.refused) {
            (Some(_), _) => "changing",
            (None, Some(_)) => "change refused",
            (None, None) => "in force",
        };
        let since = [&one.created_at, &one.key_since].map(|time| day(Some(time)));
        let [made, keyed] = since;
        table.row([one.issuer.to_string(), one.directory.clone(), made, keyed, key.to_owned()]);
    }
    let mut text = table.render();
    for (one, refused) in all.iter().filter_map(|one| Some((one, one.refused.as_ref()?))) {
        let (message, remedy) = (text::printable(&refused.message), text::printable(&refused.remediation));
        let _ = write!(text, "\n{}: {message}\n  next: {remedy}\n", one.issuer);
    }
    text
}

/// What went wrong, what to do, when it is tried again.
fn problems(one: &Certificate, begin: &str) -> String {
    let mut text = String::new();
    for problem in &one.validation_errors {
        let (message, remedy) = (text::printable(&problem.message), text::printable(&problem.remediation));
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{begin}{message}\n  next: {remedy}\n");
    }
    if let Some(again) = one.next_try_at.as_ref().filter(|_| one.failures > 0) {
        let _ = writeln!(text, "  tried again at {} (failures: {})", text::printable(again), one.failures);
    }
    text
}

/// One name at length.
fn told(one: &Certificate) -> String {
    let names: Vec<&str> = one.names.iter().map(|name| name.as_str()).collect();
    let time = |time: &Option<String>| time.clone().unwrap_or_default();
    let mut text = text::fields([
        ("name", one.hostname.to_string()),
        ("names", if one.names.len() > 1 { names.join(" ") } else { String::new() }),
        ("state", word(one.state).to_owned()),
        ("machine", one.machine.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("issuer", if one.issuer.is_some() { issuer(one) } else { String::new() }),
        ("good from", time(&one.issued_at)),
        ("ends", time(&one.expires_at)),
        ("renews", time(&one.renew_at)),
    ]);
    if let Some(needs) = one.dns_requirements.as_ref().filter(|_| !one.configured) {
        let addresses: Vec<String> = needs.a.iter().chain(&needs.aaaa).map(ToString::to_string).collect();
        let _ = write!(
            text,
            "\nput into the zone of {0} either\n  {0}.  CNAME  {1}.\nor, where a CNAME cannot be (the zone's apex),\n  {2}.  TXT  \"{3}\"\n  {0}.  A, AAAA  {4}\nthen: mashines certs check {0}\n",
            one.hostname,
            needs.cname,
            needs.ownership.name,
            text::printable(&needs.ownership.app_value),
            addresses.join(" "),
        );
    }
    text.push_str(&problems(one, ""));
    text
}
