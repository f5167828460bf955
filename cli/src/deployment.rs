//! Asking the agent in a machine about what `git push` deployed there, by `exec`: see [`mashines_guest::deployment`].

use std::time::{Duration, Instant};

use mashines_fleet::api::{Exec, ExecAnswer, Machine};
use mashines_guest::deployment::{
    AGENT, Begun, Ended, LEASE, Order, Progress, ReleaseView, Releases, Standing,
};
use serde::de::DeserializeOwned;

use crate::client::{Client, machine_path};
use crate::error::{CliError, Exit};
use crate::session::{Place, Session};
use crate::text;

/// How long one question may take in the machine, in seconds; `cancel` waits for the end of the work.
const ANSWER: u64 = 25;
/// Beside that: for the way there and back.
const WAY: Duration = Duration::from_secs(15);
/// Between two looks at an operation; the first ones come sooner.
const PERIOD: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(300);

/// Asks the agent one question; `words` follow `deploy`.
pub async fn ask<T: DeserializeOwned>(
    client: &Client,
    machine: &Machine,
    what: &str,
    words: &[&str],
    stdin: Option<String>,
) -> Result<T, CliError> {
    let command = [AGENT, "deploy"].iter().chain(words).map(|&word| word.to_owned()).collect();
    let request = Exec { cmd: None, command, stdin, timeout: Some(ANSWER) };
    let within = Duration::from_secs(ANSWER) + WAY;
    let answer: ExecAnswer =
        client.post_within(what, &machine_path(machine, "/exec"), &request, within).await?;
    read(&answer).map_err(|why| match answer.exit_code {
        // What an agent says that knows no `deploy`.
        2 => CliError::failed(format!("cannot {what}: `{}` was started by an older mashines", machine.slug))
            .next(format!("mashines restart {}", machine.slug)),
        _ => CliError::failed(format!("cannot {what}: {why}")),
    })
}

fn read<T: DeserializeOwned>(answer: &ExecAnswer) -> Result<T, String> {
    if answer.exit_code != 0 {
        let said = answer.stderr.trim().trim_start_matches(['!', ' ']).trim_start_matches("error: ");
        return Err(text::printable(if said.is_empty() {
            "the machine's agent failed without a word"
        } else {
            said
        }));
    }
    serde_json::from_str(&answer.stdout).map_err(|e| format!("the machine's answer is not understood: {e}"))
}

/// All releases.
pub async fn releases(client: &Client, machine: &Machine) -> Result<Releases, CliError> {
    let what = format!("list the releases of `{}`", machine.slug);
    ask(client, machine, &what, &["releases", "--json"], None).await
}

/// Begins an operation and passes on what it says until it ends; gives the release that serves then, if it made one serve. Ctrl-C
/// cancels it; so does silence, should this process die or the lobby's client go.
pub async fn operate(
    session: &mut Session,
    client: &Client,
    machine: &Machine,
    what: &str,
    mut order: Order,
) -> Result<Option<ReleaseView>, CliError> {
    // For the record only; a failure is no reason not to do it.
    order.by = client.account().await.ok().map(|account| account.id.to_string());
    let order = serde_json::to_string(&order)
        .map_err(|e| CliError::failed(format!("cannot {what}: cannot encode the request: {e}")))?;
    let begun: Begun = ask(client, machine, what, &["begin"], Some(order)).await?;
    let local = session.place == Place::Local;
    let interrupted = async {
        match local {
            true => drop(tokio::signal::ctrl_c().await),
            // The process is the gateway's there.
            false => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = follow(session, client, machine, what, &begun.operation) => ended?,
        () = interrupted => {
            let _: Progress = ask(client, machine, what, &["cancel", &begun.operation], None).await?;
            return Err(CliError::failed(format!("cancelled; `{}` is as it was", machine.slug)));
        }
    };
    if let Some(error) = ended.error {
        let next = format!("mashines releases {}", machine.slug);
        return Err(CliError::failed(format!("cannot {what}: {}", text::printable(&error))).next(next));
    }
    let Some(live) = ended.live else { return Ok(None) };
    let all = releases(client, machine).await?;
    Ok(all.releases.into_iter().find(|release| release.version == live))
}

async fn follow(
    session: &mut Session,
    client: &Client,
    machine: &Machine,
    what: &str,
    operation: &str,
) -> Result<Ended, CliError> {
    let (mut offset, mut heard) = (0, Instant::now());
    let started = Instant::now();
    loop {
        let asked =
            ask::<Progress>(client, machine, what, &["follow", operation, &offset.to_string()], None).await;
        match asked {
            Ok(progress) => {
                session.err(&progress.text).await?;
                heard = Instant::now();
                let more = progress.offset > offset;
                offset = progress.offset;
                if let Some(ended) = progress.ended {
                    return Ok(ended);
                }
                if more && progress.text.len() > mashines_guest::deployment::MAX_TEXT / 2 {
                    continue;
                }
            }
            // Control restarts, or the machine moves: it works on meanwhile, as long as its lease.
            Err(error)
                if matches!(error.exit, Exit::Unreachable | Exit::Failed) && heard.elapsed() < LEASE => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(if started.elapsed() < PERIOD * 3 { SOON } else { PERIOD }).await;
    }
}

/// A release's state in a word.
pub fn word(state: Standing) -> &'static str {
    match state {
        Standing::Building => "building",
        Standing::Live => "live",
        Standing::Former => "former",
        Standing::Kept => "kept",
        Standing::Failed => "failed",
        Standing::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_error_is_told_in_its_own_words() {
        let failed = ExecAnswer {
            exit_code: 1,
            stderr: " !     error: no such\x1b thing\n".into(),
            ..ExecAnswer::default()
        };
        assert_eq!(read::<Begun>(&failed).unwrap_err(), "no such  thing");
        let answered = ExecAnswer { stdout: "{\"operation\":\"1-2\"}\n".into(), ..ExecAnswer::default() };
        assert_eq!(read::<Begun>(&answered).unwrap().operation, "1-2");
        assert!(read::<Begun>(&ExecAnswer::default()).unwrap_err().contains("not understood"));
    }
}
