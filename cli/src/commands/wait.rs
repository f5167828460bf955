//! Waiting for a machine to reach a state, with the steps shown. Shared by `launch`, `start`, `stop`, `restart` and `rm`.
//!
//! Reads the machine again and again: what counts is the record, not an event that may be missed. An API that falls silent meanwhile
//! (control restarting) is asked again until the time is up.

use std::time::Duration;

use mashines_fleet::api::Machine;
use mashines_fleet::id::Epoch;
use mashines_fleet::record::MachineState;

use super::Context;
use crate::error::{CliError, Exit};
use crate::parse;
use crate::progress::Progress;
use crate::text;

/// Between two looks at first; a long wait looks ever more rarely, down to once a second.
const PERIOD: Duration = Duration::from_millis(150);

/// Whether to wait, and how long.
#[derive(clap::Args, Debug, Clone, Default)]
pub(super) struct Waiting {
    /// Wait until it is done: the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as the fleet has accepted it
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// Wait no longer than this, such as 90s or 5m; the work goes on
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    timeout: Option<Duration>,
}

impl Waiting {
    /// How long to wait; none: not at all.
    pub(super) fn limit(&self, default: Duration) -> Option<Duration> {
        match self.no_wait {
            true => None,
            false => Some(self.timeout.unwrap_or(default)),
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Up and ready, in an epoch above this one: not the instance that ran before.
    StartedAfter(Epoch),
    /// Down.
    Stopped,
    /// Removed.
    Gone,
}

/// How far a machine is from its goal.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Reached,
    Underway,
    /// It will not get there.
    Missed,
}

/// Waits until `machine` is at its goal. The machine as it then is; an error when it cannot get there or the time is up.
pub(super) async fn settle(
    context: &mut Context<'_>,
    machine: Machine,
    goal: Goal,
    limit: Duration,
    progress: &Progress,
) -> Result<Machine, CliError> {
    let client = context.client()?;
    let mut last = machine;
    let mut scheduled = last.host.is_some();
    let mut rose = false;
    loop {
        let now = match client.look(&last).await {
            Ok(machine) => machine,
            Err(error) if error.exit == Exit::NotFound && goal == Goal::Gone => break,
            Err(error) if error.exit == Exit::Unreachable && progress.elapsed() < limit => {
                progress.now(context.session, "the API does not answer; asking again").await?;
                pause(progress).await;
                continue;
            }
            Err(error) => {
                progress.clear(context.session).await?;
                return Err(error);
            }
        };
        if let (false, Some(host)) = (scheduled, &now.host) {
            progress.done(context.session, &format!("scheduled on {host}")).await?;
            scheduled = true;
        }
        rose |= now.state == MachineState::Starting;
        last = now;
        match standing(&last, goal, rose) {
            Standing::Reached => break,
            Standing::Missed => {
                progress.clear(context.session).await?;
                return Err(missed(&last));
            }
            Standing::Underway if progress.elapsed() >= limit => {
                progress.clear(context.session).await?;
                return Err(late(&last, limit));
            }
            Standing::Underway => {
                progress.now(context.session, doing(last.state)).await?;
                pause(progress).await;
            }
        }
    }
    progress.done(context.session, reached(goal)).await?;
    Ok(last)
}

/// Between two looks.
async fn pause(progress: &Progress) {
    let period = PERIOD.max(progress.elapsed() / 30).min(Duration::from_secs(1));
    tokio::time::sleep(period).await;
}

/// `rose`: it was seen starting since the wait began, so that a stop now is not the one from before.
fn standing(machine: &Machine, goal: Goal, rose: bool) -> Standing {
    use MachineState::{Created, Destroyed, Destroying, Failed, Started, Starting, Stopped, Stopping};
    match (goal, machine.state) {
        (Goal::StartedAfter(epoch), Started) if machine.epoch > epoch => Standing::Reached,
        (Goal::StartedAfter(_), Stopped) if rose => Standing::Missed,
        (Goal::StartedAfter(_), Started | Created | Starting | Stopping | Stopped) => Standing::Underway,
        (Goal::StartedAfter(_), Failed | Destroying | Destroyed) => Standing::Missed,
        (Goal::Stopped, Stopped | Failed) => Standing::Reached,
        (Goal::Stopped, Destroying | Destroyed) => Standing::Missed,
        (Goal::Stopped, Created | Starting | Started | Stopping) => Standing::Underway,
        (Goal::Gone, Destroyed) => Standing::Reached,
        (Goal::Gone, Created | Starting | Started | Stopping | Stopped | Destroying | Failed) => {
            Standing::Underway
        }
    }
}

fn doing(state: MachineState) -> &'static str {
    match state {
        MachineState::Created => "waiting for a host",
        MachineState::Starting => "booting",
        MachineState::Started => "started",
        MachineState::Stopping => "shutting down",
        MachineState::Stopped => "stopped",
        MachineState::Destroying => "removing",
        MachineState::Destroyed => "removed",
        MachineState::Failed => "failed",
    }
}

fn reached(goal: Goal) -> &'static str {
    match goal {
        Goal::StartedAfter(_) => "ready",
        Goal::Stopped => "stopped",
        Goal::Gone => "removed",
    }
}

fn missed(machine: &Machine) -> CliError {
    let reason = machine.reason.as_deref().unwrap_or("the fleet gave no reason");
    CliError::failed(format!("`{}` is {}: {reason}", machine.slug, machine.state.word()))
        .next(format!("mashines logs {}", machine.slug))
}

fn late(machine: &Machine, limit: Duration) -> CliError {
    let reason = machine.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let state = machine.state.word();
    let message =
        format!("`{}` is still {state} after {}{reason}; it goes on", machine.slug, text::span(limit));
    CliError::new(Exit::TimedOut, message).next(format!("mashines show {}", machine.slug))
}
