//! `mashines releases`: what `git push` deployed in a machine.

use mashines_guest::deployment::Releases;

use super::Context;
use crate::deployment::{self, word};
use crate::error::{CliError, Exit};
use crate::text::{self, Table};

/// Which machine.
#[derive(clap::Args)]
#[command(
    after_help = "The machine keeps the newest releases that can serve, five unless mashine.toml says otherwise, and always the
live one and the former one.

Examples:
  mashines releases web
  mashines releases web --json
  mashines rollback web v3"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let releases = deployment::releases(&client, &machine).await?;
    context.answer(&releases, &table(&releases, machine.slug.as_str(), text::now_ms())).await
}

fn table(releases: &Releases, slug: &str, now_ms: u64) -> String {
    if releases.releases.is_empty() {
        return format!("no releases; deploy with: git push {slug} main (see docs/deploy.md)\n");
    }
    let mut table = Table::new(["RELEASE", "STATE", "COMMIT", "KIND", "AGE", "BY", "WHAT"]);
    for release in &releases.releases {
        let what = match (&release.why, &release.cause) {
            (Some(why), _) => why.clone(),
            (None, Some(cause)) => format!("{} ({cause})", release.subject),
            (None, None) => release.subject.clone(),
        };
        table.row([
            format!("v{}", release.version),
            word(release.state).to_owned(),
            release.commit.chars().take(7).collect(),
            release.kind.clone(),
            text::age(now_ms, release.at_ms),
            release.by.clone().unwrap_or_else(|| "-".to_owned()),
            what,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_first_and_a_failure_says_why() {
        let json = r#"{"port":80,"releases":[
            {"version":2,"commit":"abcdef0123","subject":"two","at_ms":5000,"kind":"procfile","state":"failed","why":"Build: x"},
            {"version":1,"commit":"0123456789","subject":"one","by":"alice","at_ms":1000,"kind":"static","state":"live"}]}"#;
        let releases: Releases = serde_json::from_str(json).unwrap();
        assert_eq!(
            table(&releases, "web", 65_000),
            "RELEASE  STATE   COMMIT   KIND      AGE  BY     WHAT\n\
             v2       failed  abcdef0  procfile  1m   -      Build: x\n\
             v1       live    0123456  static    1m   alice  one\n"
        );
        assert!(table(&Releases::default(), "web", 0).contains("git push"));
    }
}
