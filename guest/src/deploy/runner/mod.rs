//! Running the processes of releases: by systemd in a machine, as plain children in tests.

mod children;
mod systemd;

use std::fmt::{self, Display};

use anyhow::Result;

use super::place::Place;

/// One process of one release: `v7-web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// Of which release.
    pub version: u64,
    /// Its name there.
    pub process: String,
}

impl Unit {
    /// Reads `v7-web`.
    pub fn parse(text: &str) -> Option<Self> {
        let (version, process) = text.strip_prefix('v')?.split_once('-')?;
        super::manifest::check_process(process).ok()?;
        Some(Self { version: version.parse().ok()?, process: process.to_owned() })
    }
}

impl Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}-{}", self.version, self.process)
    }
}

/// What a unit does just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs, or starts.
    Running,
    /// It ended, in these words, and is not started again just now.
    Ended(String),
}

/// What runs processes. Everything is idempotent: a deployment cut short is repeated.
pub trait Runner: Send + Sync {
    /// Starts it, and from then on again when it fails.
    fn start(&self, unit: &Unit) -> Result<()>;
    /// What it does.
    fn activity(&self, unit: &Unit) -> Result<Activity>;
    /// Asks them to end (SIGTERM), waits, and in the end makes them.
    fn stop(&self, units: &[Unit]) -> Result<()>;
    /// All that were started and not stopped.
    fn running(&self) -> Result<Vec<Unit>>;
    /// The last lines it wrote.
    fn last_lines(&self, unit: &Unit, count: usize) -> Vec<String>;
    /// Sees to it that the front runs, now and after a boot.
    fn ensure_front(&self) -> Result<()>;
}

/// The one for this place.
pub fn of(place: &Place) -> Box<dyn Runner> {
    match place.test_listen {
        None => Box::new(systemd::Systemd),
        Some(_) => Box::new(children::Children::new(place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_name_reads_back() {
        let unit = Unit { version: 7, process: "web".into() };
        assert_eq!(Unit::parse(&unit.to_string()), Some(unit));
        for bad in ["web", "v-web", "v7", "vx-web", "v7-../x"] {
            assert_eq!(Unit::parse(bad), None, "{bad}");
        }
    }
}
