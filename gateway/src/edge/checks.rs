//! Telling control what health checks find, for people to see: at each change, and all of it now and then, since control keeps it in
//! memory only.
//!
//! A probe that finds what the one before found is told to nobody. When control is away nothing is kept for it: the next report
//! that it hears is the whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::api::CheckStatus;
use mashines_fleet::entry_api::{CheckFound, CheckReport, LONGEST_OUTPUT, MOST_CHECKS};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::health::{Health, Seen, Which};
use crate::control::Control;

/// From one whole report to the next.
const WHOLE: Duration = Duration::from_secs(10);

/// The least time between two reports: checks fail in flocks.
const LEAST: Duration = Duration::from_millis(500);

/// What control knows of.
type Told = HashMap<Which, CheckStatus>;

/// Reports until the edge ends.
pub async fn tell(health: Arc<Health>, control: Control) {
    // None: control is to be told all.
    let mut told: Option<Told> = Some(Told::new());
    let mut whole_at = Instant::now() + WHOLE;
    loop {
        if timeout_at(whole_at, health.changed.notified()).await.is_err() {
            whole_at = Instant::now() + WHOLE;
            // Who has no checks, and had none, has nothing to say.
            told = told.filter(HashMap::is_empty);
        }
        let seen = health.all();
        if let Some(report) = report(&seen, told.as_ref()) {
            told = match control.checks(&report).await {
                Ok(()) => Some(seen.iter().map(|(which, seen)| (which.clone(), seen.status())).collect()),
                Err(error) => {
                    debug!(%error, "edge: control was not told of health checks");
                    None
                }
            };
        }
        sleep(LEAST).await;
    }
}

/// What control is to be told that knows `told`, or nothing; none when it knows all.
fn report(seen: &HashMap<Which, Seen>, told: Option<&Told>) -> Option<CheckReport> {
    let news =
        seen.iter().filter(|(which, seen)| told.and_then(|told| told.get(*which)) != Some(&seen.status()));
    let mut checks: Vec<_> = news.map(|(which, seen)| found(which, seen)).collect();
    if told.is_some() && checks.is_empty() {
        return None;
    }
    if checks.len() > MOST_CHECKS {
        warn!(checks = checks.len(), most = MOST_CHECKS, "edge: control is not told of all health checks");
        // Those that fail are what people look for.
        checks.sort_by_key(|check| std::cmp::Reverse(check.status));
        checks.truncate(MOST_CHECKS);
    }
    Some(CheckReport { whole: told.is_none(), checks })
}

fn found((machine, port, number): &Which, seen: &Seen) -> CheckFound {
    CheckFound {
        machine: machine.clone(),
        port: *port,
        number: *number,
        status: seen.status(),
        output: seen.found.chars().take(LONGEST_OUTPUT).collect(),
        since: seen.since,
    }
}

#[cfg(test)]
mod tests {
    use mashines_fleet::id::MachineId;

    use super::*;

    #[test]
    fn only_what_has_changed_is_told_and_all_of_it_to_who_knows_nothing() {
        let which = |number| (MachineId::random(), 80, number);
        let seen = |failures| Seen { failures, found: "503".to_owned(), since: 1 };
        let (one, two) = (which(0), which(1));
        let mut all = HashMap::from([(one.clone(), seen(0)), (two.clone(), seen(1))]);
        let whole = report(&all, None).unwrap();
        assert!(whole.whole && whole.checks.len() == 2);
        let told: Told = all.iter().map(|(which, seen)| (which.clone(), seen.status())).collect();
        assert_eq!(report(&all, Some(&told)), None);
        all.insert(one, seen(0));
        all.insert(two.clone(), seen(5));
        let news = report(&all, Some(&told)).unwrap();
        assert!(!news.whole && news.checks.len() == 1);
        assert_eq!((&news.checks[0].machine, news.checks[0].status), (&two.0, CheckStatus::Critical));
        assert_eq!(report(&HashMap::new(), Some(&Told::new())), None);
        assert_eq!(report(&HashMap::new(), None).unwrap().checks, [], "what is gone is gone at control too");
    }

    #[test]
    fn a_report_is_bounded_and_begins_with_what_fails() {
        let of = |n: usize| {
            (
                (MachineId::random(), 80, n),
                Seen { failures: u32::from(n.is_multiple_of(100)) * 9, found: "é".repeat(999), since: 1 },
            )
        };
        let all = (0..MOST_CHECKS + 50).map(of).collect();
        let report = report(&all, None).unwrap();
        assert_eq!(report.checks.len(), MOST_CHECKS);
        assert_eq!(report.checks.iter().filter(|check| check.status == CheckStatus::Critical).count(), 201);
        assert_eq!(report.checks[0].output.chars().count(), LONGEST_OUTPUT);
    }
}
