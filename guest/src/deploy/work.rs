//! The three things that change what serves: a deployment (a push, `redeploy`), `rollback`, `config`.
//!
//! Whoever does one has the turn. A record of the release is there before anything else of it, so that what a crash leaves is known for what
//! it is and swept by the next one.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::phase::Failure;
use super::place::{Place, machine_name, now_ms};
use super::plan::{Plan, recognise};
use super::release::{self, Env, Release, Stage, State, free_port, prune, versions};
use super::report::Report;
use super::repository::{Commit, Repository};
use super::rollout::{Rollout, units};
use super::runner::{self, Runner};
use super::turn::{Claim, Turn};
use super::watch::Watch;
use super::{front, run, source};

/// Objects that a killed push left in quarantine are removed after this.
const QUARANTINE: Duration = Duration::from_secs(3600);

/// What is deployed, and why.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    /// The branch.
    pub branch: String,
    /// Who.
    pub by: Option<String>,
    /// `redeploy`, `config`; None: a push.
    pub cause: Option<String>,
    /// Push options for the record.
    pub options: Vec<String>,
    /// Variables set with it.
    pub env: Env,
    /// Switch over without a check.
    pub skip_health: bool,
}

/// Whoever does it.
pub struct Work {
    /// Where.
    pub place: Place,
    /// What is pushed.
    pub repository: Repository,
    /// To whom it is told.
    pub report: Report,
    /// Why it should stop.
    pub watch: Watch,
    runner: Box<dyn Runner>,
}

impl Work {
    /// Begins.
    pub fn new(place: Place, repository: Repository, watch: Watch) -> Self {
        let runner = runner::of(&place);
        Self { place, repository, report: Report::new(), watch, runner }
    }

    /// Waits for the turn; whoever has it is superseded. `who` is what they are told.
    pub fn turn(&mut self, who: &str) -> Result<Turn, Failure> {
        self.place.make()?;
        let claim = Claim::make(&self.place, who)?;
        self.watch.heed(claim.clone());
        let report = &self.report;
        let turn = claim.wait(&self.place, &mut self.watch, || {
            report.step("A build is under way; this one supersedes it")
        })?;
        let turn = turn?;
        self.sweep()?;
        Ok(turn)
    }

    /// What a commit is, before anything is done about it.
    pub fn recognise(&self, commit: &Commit<'_>) -> Result<Plan, Failure> {
        let plan = recognise(commit).map_err(|why| {
            Failure::plain("Recognition", why, Some("docs/deploy.md shows each kind with an example"))
        })?;
        let state = State::load(&self.place)?;
        if plan.serves() && state.listen != Some(plan.port) && front::bind(&self.place, plan.port).is_err() {
            return Err(Failure::plain(
                "Recognition",
                format!("port {}, on which the machine serves, is in use by another program", plan.port),
                Some("`ss -ltnp` in the machine shows which; stop it, or write port = N in mashine.toml"),
            ));
        }
        Ok(plan)
    }

    /// Builds a commit and makes it serve; gives its version. The turn is ours.
    pub fn deploy(&mut self, object: &str, plan: Plan, cause: Cause) -> Result<u64, Failure> {
        let repository = self.repository.clone();
        let commit = repository.commit(object)?;
        let version = versions(&self.place)?.last().map_or(1, |last| last + 1);
        let mut env = release::config(&self.place)?;
        env.extend(cause.env);
        let mut release = release::begin(version, commit.name(), plan);
        release.subject = commit.subject();
        release.port = free_port(&self.place, version)?;
        release.branch = cause.branch;
        release.by = cause.by;
        release.cause = cause.cause;
        release.options = cause.options;
        release.create(&self.place, &env)?;
        let who = release.by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
        self.report.step(&format!(
            "v{version}: {} of {} \"{}\"{who}",
            release.short(),
            release.branch,
            release.subject
        ));
        self.report.detail(&recognised(&release.plan));
        let made = source::fetch(&self.place, &release, &commit, &self.report, &mut self.watch)
            .and_then(|()| source::build(&self.place, &release, &self.report, &mut self.watch))
            .and_then(|()| self.serve(&mut release, &env, cause.skip_health));
        self.conclude(release, made)
    }

    /// Makes a kept release serve again.
    pub fn rollback(&mut self, to: Option<u64>) -> Result<u64, Failure> {
        let state = State::load(&self.place)?;
        let failed = |what: String, hint: &str| Failure::plain("Rollback", what, Some(hint));
        let list = "mashines releases MACHINE shows what there is";
        let Some(version) = to.or(state.former) else {
            return Err(failed("there is no former release".to_owned(), list));
        };
        let Some(mut release) = Release::load(&self.place, version)? else {
            return Err(failed(format!("there is no release v{version}"), list));
        };
        if state.live == Some(version) {
            return Err(failed(format!("v{version} serves already"), list));
        }
        if release.stage != Stage::Ready || !self.place.app(release.build).is_dir() {
            return Err(failed(format!("v{version} never served, and cannot"), list));
        }
        let env = release.env(&self.place)?;
        self.report.step(&format!("Back to v{version}: {} \"{}\"", release.short(), release.subject));
        let port = free_port(&self.place, version)?;
        // While it drains it still runs, on the port it has.
        if !self.runner.running()?.iter().any(|unit| unit.version == version) {
            release.port = port;
            release.store(&self.place)?;
        }
        if let Some(line) =
            run::build_command(&release).filter(|_| release.plan.kind == super::plan::Kind::Compose)
        {
            // Its images have been replaced by later ones; the layers are there.
            let app = self.place.app(release.build);
            let env = run::environment(&self.place, &release)?;
            super::phase::shell("Build", &line, &app, &env, &self.report, &mut self.watch)?;
        }
        self.switch(&mut release, &env, false)?;
        Ok(version)
    }

    /// Changes variables. What serves is served anew with them; without a release they wait for the first.
    pub fn config(
        &mut self,
        set: BTreeMap<String, String>,
        unset: &[String],
        by: Option<String>,
    ) -> Result<Option<u64>, Failure> {
        let before = release::config(&self.place)?;
        let mut env = before.clone();
        let names: Vec<String> = set.keys().chain(unset).cloned().collect();
        env.extend(set);
        unset.iter().for_each(|name| {
            env.remove(name);
        });
        if env == before {
            self.report.step("Nothing changes");
            return Ok(None);
        }
        let state = State::load(&self.place)?;
        let Some(live) = state.live.map(|live| Release::load(&self.place, live)).transpose()?.flatten()
        else {
            release::set_config(&self.place, &env)?;
            self.report.step("Stored for the first release");
            return Ok(None);
        };
        let version = versions(&self.place)?.last().map_or(1, |last| last + 1);
        let mut release = Release {
            version,
            at_ms: now_ms(),
            build: live.build,
            stage: Stage::Building,
            why: None,
            port: free_port(&self.place, version)?,
            ..live
        };
        release.by = by;
        release.cause = Some("config".to_owned());
        release.options.clear();
        release.create(&self.place, &env)?;
        self.report.step(&format!(
            "v{version}: the build of v{} with {} changed",
            release.build,
            names.join(", ")
        ));
        let made = self.serve(&mut release, &env, false);
        self.conclude(release, made).map(Some)
    }

    fn serve(&mut self, release: &mut Release, env: &Env, skip_health: bool) -> Result<(), Failure> {
        source::before_start(&self.place, release, &self.report, &mut self.watch)?;
        self.switch(release, env, skip_health)
    }

    fn switch(&mut self, release: &mut Release, env: &Env, skip_health: bool) -> Result<(), Failure> {
        self.report.step(&format!(
            "Starting v{}: {}",
            release.version,
            release.plan.process_names().join(", ")
        ));
        let former = State::load(&self.place)?.live;
        let rollout =
            Rollout { place: &self.place, runner: self.runner.as_ref(), report: &self.report, skip_health };
        rollout.run(release, &mut self.watch)?;
        release::set_config(&self.place, env)?;
        let back = former
            .filter(|former| *former != release.version)
            .map(|former| format!("; back to v{former}: mashines rollback {}", machine_name()))
            .unwrap_or_default();
        let at =
            if release.plan.serves() { format!(" on port {}", release.plan.port) } else { String::new() };
        self.report.step(&format!("v{} is live{at}{back}", release.version));
        Ok(())
    }

    /// Records how it ended, and takes away what is needed no more.
    fn conclude(&mut self, mut release: Release, made: Result<(), Failure>) -> Result<u64, Failure> {
        let version = release.version;
        let keep = release.plan.keep;
        let outcome = match made {
            Ok(()) => Ok(version),
            Err(failure) => {
                release.stage =
                    if matches!(failure, Failure::Stopped(_)) { Stage::Cancelled } else { Stage::Failed };
                release.why = Some(failure.summary());
                release.store(&self.place)?;
                Err(failure)
            }
        };
        if let Err(error) = self.clear(keep) {
            self.report.detail(&format!("old releases could not all be removed: {error:#}"));
        }
        outcome
    }

    fn clear(&self, keep: usize) -> Result<()> {
        let releases = Release::all(&self.place)?;
        let waste = prune(&releases, &State::load(&self.place)?, keep);
        // The front may still be draining it.
        let running = self.runner.running()?;
        for release in &releases {
            let drains = running.iter().any(|unit| unit.version == release.version);
            if waste.builds.contains(&release.version) && !drains {
                source::remove_tree(&self.place, release.version)?;
                if release.build == release.version {
                    run::forget_image(release);
                }
            }
            if waste.releases.contains(&release.version) && !drains {
                let directory = self.place.release(release.version);
                fs::remove_dir_all(&directory)
                    .with_context(|| format!("removing {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// Takes away what was begun and never ended: nobody works on it, since the turn is ours.
    fn sweep(&self) -> Result<()> {
        let live = State::load(&self.place)?.live;
        for version in versions(&self.place)? {
            // A record that cannot be read is as good as none.
            match Release::load(&self.place, version).unwrap_or_default() {
                Some(mut release) if release.stage == Stage::Building && live != Some(version) => {
                    self.runner.stop(&units(&release))?;
                    source::remove_tree(&self.place, version)?;
                    release.stage = Stage::Cancelled;
                    release.why = Some("it was cut short".to_owned());
                    release.store(&self.place)?;
                }
                None if live != Some(version) => {
                    let directory = self.place.release(version);
                    fs::remove_dir_all(&directory)
                        .with_context(|| format!("removing {}", directory.display()))?;
                }
                Some(_) | None => {}
            }
        }
        self.sweep_quarantine();
        Ok(())
    }

    fn sweep_quarantine(&self) {
        let Ok(entries) = fs::read_dir(self.repository.path().join("objects")) else { return };
        for entry in entries.flatten() {
            let age = entry
                .metadata()
                .and_then(|data| data.modified())
                .map(|at| SystemTime::now().duration_since(at));
            let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > QUARANTINE));
            if is_old && entry.file_name().to_string_lossy().contains("incoming-") {
                // What cannot be removed costs room and nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn recognised(plan: &Plan) -> String {
    let by = if plan.file.is_empty() { String::new() } else { format!(" (by {})", plan.file) };
    format!("recognised as {}{by}; runs: {}", plan.kind.word(), plan.process_names().join(", "))
}
