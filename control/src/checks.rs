//! What entries found when they tried machines' health checks: in memory only, from their reports.
//!
//! Each entry tries each check by itself, since what one reaches another may not. A machine is shown as badly as the worst of those
//! entries sees it that were heard of lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mashines_fleet::api::{Check, CheckStatus};
use mashines_fleet::entry_api::{CheckFound, CheckReport, LONGEST_OUTPUT};
use mashines_fleet::id::{HostId, MachineId};
use mashines_fleet::record::services::CheckKind;
use mashines_fleet::record::{Machine, MachineState, UnixMs};

use crate::time::rfc3339;

/// An entry that said nothing for longer has no say. Entries tell all that they know every 10 s.
const HEARD: Duration = Duration::from_secs(35);

/// One check: the service's port, its number there.
type Which = (u16, usize);

/// What is known.
#[derive(Debug, Default)]
pub struct Checks(Mutex<HashMap<HostId, Entry>>);

#[derive(Debug)]
struct Entry {
    at: Instant,
    found: HashMap<MachineId, HashMap<Which, Seen>>,
}

#[derive(Debug, Clone)]
struct Seen {
    status: CheckStatus,
    output: String,
    since: UnixMs,
}

impl Checks {
    /// A report came in, at `now`. `known` says whether there is such a machine: of others nothing is kept.
    pub fn report(
        &self,
        entry: &HostId,
        report: CheckReport,
        (at, now): (Instant, UnixMs),
        known: impl Fn(&MachineId) -> bool,
    ) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, heard| at.saturating_duration_since(heard.at) < HEARD);
        let heard = entries.entry(entry.clone()).or_insert_with(|| Entry { at, found: HashMap::new() });
        heard.at = at;
        if report.whole {
            heard.found.clear();
        }
        for CheckFound { machine, port, number, status, output, since } in report.checks {
            if known(&machine) {
                let output = output.chars().take(LONGEST_OUTPUT).collect();
                // An entry whose clock is ahead tells no future.
                let seen = Seen { status, output, since: since.min(now) };
                heard.found.entry(machine).or_default().insert((port, number), seen);
            }
        }
    }

    /// The checks of a machine, as the API shows them: all that it has while it runs, whether tried yet or not.
    pub fn of(&self, machine: &Machine, at: Instant) -> Vec<Check> {
        if machine.state != MachineState::Started {
            return Vec::new();
        }
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = entries.values().filter(|heard| at.saturating_duration_since(heard.at) < HEARD);
        let found: Vec<_> = lately.filter_map(|heard| heard.found.get(&machine.id)).collect();
        let checks = machine.config.services.iter().flat_map(|service| {
            let port = service.internal_port;
            service.checks.iter().enumerate().map(move |(number, check)| ((port, number), check))
        });
        let shown = checks.enumerate().map(|(place, (which, check))| {
            let kind = match check.kind {
                CheckKind::Tcp => "tcp",
                CheckKind::Http => "http",
            };
            let name = format!("servicecheck-{place:02}-{kind}-{}", check.port.unwrap_or(which.0));
            let seen = found.iter().filter_map(|found| found.get(&which));
            match seen.max_by_key(|seen| (seen.status, seen.since)) {
                Some(Seen { status, output, since }) => {
                    Check { name, status: *status, output: output.clone(), updated_at: rfc3339(*since) }
                }
                None => Check {
                    name,
                    status: CheckStatus::Warning,
                    output: "no entry has tried it yet".to_owned(),
                    updated_at: String::new(),
                },
            }
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::machine;

    fn found(machine: &Machine, number: usize, status: CheckStatus, since: u64) -> CheckFound {
        let output = format!("{status:?} at {since}");
        CheckFound { machine: machine.id.clone(), port: 8080, number, status, output, since }
    }

    fn web() -> Machine {
        let mut web = machine(None);
        web.state = MachineState::Started;
        web.config.services = serde_json::from_value(json!([{
            "internal_port": 8080, "ports": [], "checks": [{"type": "http", "path": "/up"}, {"type": "tcp", "port": 9000}],
        }]))
        .unwrap();
        web
    }

    #[test]
    fn the_worst_of_the_entries_counts_for_as_long_as_it_is_heard_of() {
        use CheckStatus::{Critical, Passing, Warning};
        let (checks, mut web, start) = (Checks::default(), web(), Instant::now());
        let (one, two) = ("entry1".parse().unwrap(), "entry2".parse().unwrap());
        let tell = |entry: &HostId, whole, checks_found: Vec<CheckFound>, after: u64| {
            let at = start + Duration::from_secs(after);
            checks.report(entry, CheckReport { whole, checks: checks_found }, (at, 50), |_| true);
        };
        let shown = |web: &Machine, after: u64| {
            let shown = checks.of(web, start + Duration::from_secs(after));
            shown.into_iter().map(|check| (check.status, check.output)).collect::<Vec<_>>()
        };
        let names: Vec<_> = checks.of(&web, start).into_iter().map(|check| check.name).collect();
        assert_eq!(names, ["servicecheck-00-http-8080", "servicecheck-01-tcp-9000"]);
        let untried = (Warning, "no entry has tried it yet".to_owned());
        assert_eq!(shown(&web, 0), [untried.clone(), untried.clone()]);

        tell(&one, true, vec![found(&web, 0, Passing, 1), found(&web, 1, Passing, 1)], 0);
        tell(&two, true, vec![found(&web, 0, Critical, 2)], 20);
        let passing = (Passing, "Passing at 1".to_owned());
        assert_eq!(shown(&web, 20), [(Critical, "Critical at 2".to_owned()), passing.clone()]);
        tell(&one, false, vec![found(&web, 1, Warning, 99)], 30);
        assert_eq!(shown(&web, 30)[1], (Warning, "Warning at 99".to_owned()));
        assert_eq!(checks.of(&web, start + Duration::from_secs(30))[1].updated_at, rfc3339(50), "no future");
        assert_eq!(shown(&web, 57)[0], passing, "the second entry is silent");
        tell(&one, true, vec![], 58);
        assert_eq!(shown(&web, 58), [untried.clone(), untried], "it looks at nothing any more");

        web.state = MachineState::Stopped;
        assert_eq!(shown(&web, 58), [], "what stands still is not tried");
    }

    #[test]
    fn nothing_is_kept_of_machines_that_are_not_there_and_outputs_are_short() {
        let (checks, web, start) = (Checks::default(), web(), Instant::now());
        let entry = "entry1".parse().unwrap();
        let mut long = found(&web, 0, CheckStatus::Critical, 1);
        long.output = "x".repeat(10_000);
        let report = |checks| CheckReport { whole: true, checks };
        checks.report(&entry, report(vec![long.clone()]), (start, 5), |_| false);
        assert!(checks.0.lock().unwrap()[&entry].found.is_empty());
        checks.report(&entry, report(vec![long]), (start, 5), |_| true);
        assert_eq!(checks.of(&web, start)[0].output.len(), LONGEST_OUTPUT);
    }
}
