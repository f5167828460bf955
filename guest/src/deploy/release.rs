//! Releases: their records, which one serves, which are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use anyhow::{Context, Result, bail};
use mashines_guest::deployment::{ReleaseView, Releases, Standing};
use serde::{Deserialize, Serialize};

use super::place::{Place, now_ms, read_json, write_json};
use super::plan::Plan;

/// Ports of releases follow each other at this distance, so that a port taken by something else has neighbours.
const PORT_STEP: u16 = 10;
/// After as many releases the ports begin anew.
const PORT_TURN: u64 = 900;

/// Variables by name.
pub type Env = BTreeMap<String, String>;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Begun, and not yet serving.
    Building,
    /// It served, or serves.
    Ready,
    /// Its build, start or check failed.
    Failed,
    /// Ended before it was done.
    Cancelled,
}

/// One release's record, `release.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// v1, v2, …
    pub version: u64,
    /// The commit in full.
    pub commit: String,
    /// The first line of its message.
    pub subject: String,
    /// The branch it was pushed to.
    pub branch: String,
    /// Who pushed.
    pub by: Option<String>,
    /// What else it came from: `config`, `redeploy`.
    pub cause: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The push options, without values of variables.
    pub options: Vec<String>,
    /// The release whose tree and image it runs: its own, or with `config` an older one's.
    pub build: u64,
    /// How far it came.
    pub stage: Stage,
    /// Why it did not come farther.
    pub why: Option<String>,
    /// The port it was given.
    pub port: u16,
    /// How it is built and run.
    pub plan: Plan,
}

/// `state.json`: what serves. The front reads it; only who has the turn writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The release that serves.
    pub live: Option<u64>,
    /// The one before.
    pub former: Option<u64>,
    /// Where the front listens; None: no process serves requests.
    pub listen: Option<u16>,
    /// Where it connects to; None: nothing serves requests.
    pub target: Option<u16>,
    /// Connections wait: the live release is being replaced in place.
    #[serde(default)]
    pub hold: bool,
    /// How long connections to the former release may go on, in seconds.
    pub drain_seconds: u64,
}

impl State {
    /// Reads it; without a file nothing serves.
    pub fn load(place: &Place) -> Result<Self> {
        Ok(read_json(&place.base().join("state.json"))?.unwrap_or_default())
    }

    /// Writes it by one rename: the switch-over itself.
    pub fn store(&self, place: &Place) -> Result<()> {
        write_json(&place.base().join("state.json"), self, 0o600)
    }

    /// What it is when `release` serves.
    pub fn with_live(&self, release: &Release) -> Self {
        let former = if self.live == Some(release.version) { self.former } else { self.live };
        Self {
            live: Some(release.version),
            former,
            listen: release.plan.serves().then_some(release.plan.port),
            target: release.plan.serves().then(|| release.plan.upstream(release.port)),
            hold: false,
            drain_seconds: release.plan.drain_seconds,
        }
    }
}

impl Release {
    /// Reads one; `None` when there is none of that number.
    pub fn load(place: &Place, version: u64) -> Result<Option<Self>> {
        read_json(&place.release(version).join("release.json"))
    }

    /// Reads all, the oldest first. A directory whose record a crash cut off is none.
    pub fn all(place: &Place) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for version in versions(place)? {
            all.extend(Self::load(place, version)?);
        }
        Ok(all)
    }

    /// Writes it.
    pub fn store(&self, place: &Place) -> Result<()> {
        write_json(&place.release(self.version).join("release.json"), self, 0o600)
    }

    /// Its variables.
    pub fn env(&self, place: &Place) -> Result<Env> {
        Ok(read_json(&place.release(self.version).join("env.json"))?.unwrap_or_default())
    }

    /// Makes its directory, with record and variables.
    pub fn create(&self, place: &Place, env: &Env) -> Result<()> {
        let directory = place.release(self.version);
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        write_json(&directory.join("env.json"), env, 0o600)?;
        self.store(place)
    }

    /// The commit's short name.
    pub fn short(&self) -> &str {
        short(&self.commit)
    }

    /// The name of its image.
    pub fn image(&self) -> String {
        format!("localhost/mashines:v{}", self.build)
    }

    fn standing(&self, state: &State) -> Standing {
        match self.stage {
            Stage::Failed => Standing::Failed,
            Stage::Cancelled => Standing::Cancelled,
            _ if state.live == Some(self.version) => Standing::Live,
            Stage::Building => Standing::Building,
            Stage::Ready if state.former == Some(self.version) => Standing::Former,
            Stage::Ready => Standing::Kept,
        }
    }
}

/// A commit's short name.
pub fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// For people and programs, the newest first.
pub fn view(releases: &[Release], state: &State) -> Releases {
    let one = |release: &Release| ReleaseView {
        version: release.version,
        commit: release.commit.clone(),
        subject: release.subject.clone(),
        by: release.by.clone(),
        at_ms: release.at_ms,
        kind: release.plan.kind.word().to_owned(),
        state: release.standing(state),
        why: release.why.clone(),
        cause: release.cause.clone(),
        options: release.options.clone(),
    };
    Releases { releases: releases.iter().rev().map(one).collect(), port: state.listen }
}

/// The numbers for which there is a directory, the lowest first.
pub fn versions(place: &Place) -> Result<Vec<u64>> {
    let directory = place.releases();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let entries = fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut versions: Vec<u64> =
        names.filter_map(|name| name.strip_prefix('v').and_then(|number| number.parse().ok())).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// The variables of the next release.
pub fn config(place: &Place) -> Result<Env> {
    Ok(read_json(&place.base().join("config.json"))?.unwrap_or_default())
}

/// Sets them.
pub fn set_config(place: &Place, env: &Env) -> Result<()> {
    write_json(&place.base().join("config.json"), env, 0o600)
}

/// A port on which nobody listens, for release `version`; the same one for the same release, if it can be.
pub fn free_port(place: &Place, version: u64) -> Result<u16> {
    let first =
        u16::try_from(version % PORT_TURN)?.saturating_mul(PORT_STEP).saturating_add(place.first_port);
    let is_free = |port: &u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
            && TcpListener::bind((Ipv6Addr::LOCALHOST, *port))
                .map_or_else(|error| error.kind() != std::io::ErrorKind::AddrInUse, |_| true)
    };
    match (first..first.saturating_add(1000)).find(is_free) {
        Some(port) => Ok(port),
        None => bail!("no free port from {first} on for a release"),
    }
}

/// What to take away: whole releases, and trees that no kept release runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waste {
    /// Releases to forget.
    pub releases: BTreeSet<u64>,
    /// Trees and images to remove, of forgotten and of remembered releases.
    pub builds: BTreeSet<u64>,
}

/// Keeps the newest `keep` that can serve, the live one, the former one, and the records of as many that failed. Pure.
pub fn prune(releases: &[Release], state: &State, keep: usize) -> Waste {
    let newest = |ready: bool| {
        let fits = move |release: &&Release| (release.stage == Stage::Ready) == ready;
        releases.iter().rev().filter(fits).take(keep).map(|release| release.version)
    };
    let kept: BTreeSet<u64> =
        newest(true).chain(newest(false)).chain(state.live).chain(state.former).collect();
    let can_serve = |release: &&Release| {
        kept.contains(&release.version)
            && (release.stage == Stage::Ready || state.live == Some(release.version))
    };
    let needed: BTreeSet<u64> = releases.iter().filter(can_serve).map(|release| release.build).collect();
    let all = releases.iter().map(|release| release.version);
    Waste {
        releases: all
            .clone()
            .filter(|version| !kept.contains(version) && !needed.contains(version))
            .collect(),
        builds: all.filter(|version| !needed.contains(version)).collect(),
    }
}

/// The record of a release that has not been built.
pub fn begin(version: u64, commit: &str, plan: Plan) -> Release {
    Release {
        version,
        commit: commit.to_owned(),
        subject: String::new(),
        branch: String::new(),
        by: None,
        cause: None,
        at_ms: now_ms(),
        options: Vec::new(),
        build: version,
        stage: Stage::Building,
        why: None,
        port: 0,
        plan,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Tree, recognise};
    use super::*;

    struct Page;
    impl Tree for Page {
        fn read(&self, path: &str) -> Option<String> {
            (path == "index.html").then(String::new)
        }
    }

    fn release(version: u64, stage: Stage, build: u64) -> Release {
        Release { stage, build, ..begin(version, "0123456789", recognise(&Page).unwrap()) }
    }

    #[test]
    fn the_newest_the_live_and_the_former_are_kept() {
        let releases: Vec<Release> = (1..=9).map(|n| release(n, Stage::Ready, n)).collect();
        let state = State { live: Some(9), former: Some(2), ..State::default() };
        let waste = prune(&releases, &state, 5);
        assert_eq!(waste.releases, BTreeSet::from([1, 3, 4]));
        assert_eq!(waste.builds, BTreeSet::from([1, 3, 4]));
    }

    #[test]
    fn a_tree_stays_as_long_as_a_kept_release_runs_it() {
        let releases: Vec<Release> =
            (1..=7).map(|n| release(n, Stage::Ready, if n > 1 { 1 } else { n })).collect();
        let state = State { live: Some(7), former: Some(6), ..State::default() };
        let waste = prune(&releases, &state, 2);
        assert_eq!(waste.releases, BTreeSet::from([2, 3, 4, 5]));
        assert!(!waste.builds.contains(&1));
    }

    #[test]
    fn of_a_failed_release_only_the_record_stays() {
        let releases = [release(1, Stage::Ready, 1), release(2, Stage::Failed, 2)];
        let state = State { live: Some(1), ..State::default() };
        let waste = prune(&releases, &state, 5);
        assert_eq!((waste.releases, waste.builds), (BTreeSet::new(), BTreeSet::from([2])));
    }

    #[test]
    fn a_switch_makes_the_live_one_former_and_a_restart_does_not() {
        let state = State::default().with_live(&release(1, Stage::Ready, 1));
        let state = state.with_live(&release(2, Stage::Ready, 2));
        assert_eq!((state.live, state.former), (Some(2), Some(1)));
        let state = state.with_live(&release(2, Stage::Ready, 2));
        assert_eq!((state.live, state.former), (Some(2), Some(1)));
        let views = view(&[release(1, Stage::Ready, 1), release(2, Stage::Ready, 2)], &state).releases;
        assert_eq!((views[0].state, views[1].state), (Standing::Live, Standing::Former));
    }
}
