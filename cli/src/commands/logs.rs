//! `mashines logs`: what the machine wrote to its console.

use std::time::Duration;

use mashines_fleet::api::Logs;

use super::Context;
use crate::client::machine_path;
use crate::error::{CliError, Exit};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// How much of the old text must be found in the new for the two to be joined, in bytes.
const SEAM: usize = 256;

/// Which, and how much.
#[derive(clap::Args)]
#[command(
    after_help = "The host keeps the console's last bytes; a machine that was moved begins afresh at its new host.

Examples:
  mashines logs web
  mashines logs web --tail 20
  mashines logs web --follow"
)]
pub(super) struct Args {
    /// The machine: name or id
    machine: String,
    /// Only this many last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<usize>,
    /// Print what comes, until Ctrl-C
    #[arg(long, short, conflicts_with = "json")]
    follow: bool,
}

pub(super) async fn run(args: Args, context: &mut Context<'_>) -> Result<Exit, CliError> {
    let client = context.client()?;
    let machine = client.machine(&args.machine).await?;
    let what = format!("read the console of `{}`", machine.slug);
    let path = machine_path(&machine, "/logs");
    let mut logs: Logs = client.get(&what, &path).await?;
    let seen = logs.text.clone();
    if let Some(lines) = args.tail {
        logs.text = last_lines(&logs.text, lines).to_owned();
    }
    context.answer(&logs, &logs.text).await?;
    if !args.follow {
        return Ok(Exit::Ok);
    }
    let mut seen = seen;
    loop {
        tokio::time::sleep(PERIOD).await;
        let now: Logs = match client.get(&what, &path).await {
            Ok(now) => now,
            // Control restarting is no reason to stop watching.
            Err(error) if error.exit == Exit::Unreachable => continue,
            Err(error) => return Err(error),
        };
        context.session.out(added(&seen, &now.text)).await?;
        seen = now.text;
    }
}

fn last_lines(text: &str, lines: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    match lines {
        0 => "",
        _ => body.rmatch_indices('\n').nth(lines - 1).map_or(text, |(at, _)| &text[at + 1..]),
    }
}

/// What `new` has after the end of `old`. The console is a ring: `new` may have lost `old`'s beginning, or, with another instance,
/// have nothing of it.
fn added<'a>(old: &str, new: &'a str) -> &'a str {
    if let Some(rest) = new.strip_prefix(old) {
        return rest;
    }
    let mut from = old.len().saturating_sub(SEAM);
    while !old.is_char_boundary(from) {
        from += 1;
    }
    let seam = &old[from..];
    new.rfind(seam).map_or(new, |at| &new[at + seam.len()..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", 1), "c");
        assert_eq!(last_lines("a\n", 5), "a\n");
        assert_eq!(last_lines("a\n", 0), "");
        assert_eq!(last_lines("", 1), "");
    }

    #[test]
    fn a_ring_that_turned_is_joined_and_another_instance_is_shown_whole() {
        let old = format!("{}tail of the old\n", "x".repeat(1000));
        assert_eq!(added("ab", "abc"), "c");
        assert_eq!(added(&old, &format!("{}new\n", &old[500..])), "new\n");
        assert_eq!(added("old", "booting"), "booting");
    }

    proptest! {
        #[test]
        fn what_is_appended_is_what_is_printed(old in ".*", more in ".*") {
            let new = format!("{old}{more}");
            prop_assert_eq!(added(&old, &new), more.as_str());
        }
    }
}
