//! The switch-over: start, check, turn the front, let the old one drain.
//!
//! ```text
//! beside:    start new ▶ check ▶ state.json: live = new ▶ other processes: new start, old stop ▶ the front drains the old one
//! in place:  state.json: hold ▶ stop old ▶ start new ▶ check ▶ state.json: live = new
//!                                                  └ failed ▶ stop new ▶ start old ▶ state.json: as before
//! ```
//!
//! In place is for what has a port of its own (a compose file, `app_port`), since two cannot have it: connections wait in the front.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::phase::{Failure, TAIL};
use super::place::Place;
use super::plan::{Kind, WEB};
use super::release::{Release, Stage, State};
use super::report::Report;
use super::runner::{Activity, Runner, Unit};
use super::watch::Watch;
use super::{front, health, hint, run, turn};

const POLL: Duration = Duration::from_millis(100);
/// How long a release without a process that serves must run to count as started.
const SETTLED: Duration = Duration::from_secs(3);
/// How long requests under way have before a release is replaced in place.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

const LISTEN: &str = "the program must listen on $PORT, on 127.0.0.1, 0.0.0.0 or ::; if it cannot, write app_port = N in mashine.toml; \
    health in mashine.toml has the path and the time";

/// One switch-over.
pub struct Rollout<'a> {
    /// Where.
    pub place: &'a Place,
    /// By what.
    pub runner: &'a dyn Runner,
    /// To whom it is told.
    pub report: &'a Report,
    /// Without a check.
    pub skip_health: bool,
}

impl Rollout<'_> {
    /// Makes `release` serve. On failure what served before serves on.
    pub fn run(&self, release: &mut Release, watch: &mut Watch) -> Result<(), Failure> {
        let state = State::load(self.place)?;
        let live = state.live.map(|live| Release::load(self.place, live)).transpose()?.flatten();
        let live = live.filter(|live| live.version != release.version);
        let _sweep = turn::sweep(self.place)?;
        match &live {
            Some(live) if exclude_each_other(live, release) => self.in_place(live, release, &state, watch)?,
            Some(_) | None => self.beside(live.as_ref(), release, &state, watch)?,
        }
        self.runner.ensure_front()?;
        if release.plan.serves() && !front::listens(self.place, release.plan.port) {
            self.report.trouble(&format!(
                "nothing listens on port {} yet; journalctl -u mashines-front says why",
                release.plan.port
            ));
        }
        Ok(())
    }

    fn beside(
        &self,
        live: Option<&Release>,
        release: &mut Release,
        state: &State,
        watch: &mut Watch,
    ) -> Result<(), Failure> {
        let units = units(release);
        // Only what serves: two sets of workers at once are for as short as can be.
        let first = if release.plan.serves() { &units[..1] } else { &units[..] };
        if let Err(failure) = self.start(release, first).and_then(|()| self.ready(release, first, watch)) {
            self.runner.stop(first)?;
            return Err(failure);
        }
        self.live(release, state, watch)?;
        self.start(release, &units)?;
        if let Some(live) = live {
            let is_web = |unit: &Unit| unit.process == WEB && live.plan.serves();
            let others: Vec<Unit> = self::units(live).into_iter().filter(|unit| !is_web(unit)).collect();
            self.runner.stop(&others)?;
        }
        Ok(())
    }

    fn in_place(
        &self,
        live: &Release,
        release: &mut Release,
        state: &State,
        watch: &mut Watch,
    ) -> Result<(), Failure> {
        let (old, new) = (units(live), units(release));
        self.report.detail("new requests wait while it is replaced: both use the same port");
        State { hold: true, ..state.clone() }.store(self.place)?;
        sleep(LAST_REQUESTS);
        self.runner.stop(&old)?;
        let started = self.start(release, &new).and_then(|()| self.ready(release, &new[..1], watch));
        if let Err(failure) = started {
            self.runner.stop(&new)?;
            self.start(live, &old)?;
            state.store(self.place)?;
            return Err(failure);
        }
        self.live(release, state, watch)
    }

    /// The point of no return.
    fn live(&self, release: &mut Release, state: &State, watch: &mut Watch) -> Result<(), Failure> {
        // First the record: a front that starts in between must know it for one that may serve.
        release.stage = Stage::Ready;
        release.store(self.place)?;
        state.with_live(release).store(self.place)?;
        watch.passed();
        Ok(())
    }

    fn start(&self, release: &Release, units: &[Unit]) -> Result<(), Failure> {
        for unit in units {
            self.runner.start(unit).map_err(|error| {
                let what = format!("{} of v{}: {error:#}", unit.process, release.version);
                Failure::plain("Start", what, None)
            })?;
        }
        Ok(())
    }

    fn ready(&self, release: &Release, units: &[Unit], watch: &mut Watch) -> Result<(), Failure> {
        let started = Instant::now();
        let seconds = release.plan.health_seconds;
        loop {
            if let Some(stopped) = watch.stopped() {
                return Err(stopped.into());
            }
            for unit in units {
                if let Activity::Ended(why) = self.runner.activity(unit)? {
                    return Err(self.failure(release, "Start", unit, &format!("{}: {why}", unit.process)));
                }
            }
            let said = match (release.plan.serves(), self.skip_health) {
                (true, false) => {
                    health::check(release.plan.upstream(release.port), release.plan.health_path.as_deref())
                }
                (true, true) => Ok("not checked, as asked".to_owned()),
                (false, _) if started.elapsed() > SETTLED => Ok("it runs".to_owned()),
                (false, _) => Err("it runs only just now".to_owned()),
            };
            match said {
                Ok(said) => {
                    self.report
                        .step(&format!("Healthy after {:.1} s: {said}", started.elapsed().as_secs_f64()));
                    return Ok(());
                }
                Err(why) if started.elapsed().as_secs() >= seconds => {
                    let Some(unit) = units.first() else { continue };
                    return Err(self.failure(
                        release,
                        "Health check",
                        unit,
                        &format!("{why}, for {seconds} s"),
                    ));
                }
                Err(_) => sleep(POLL),
            }
        }
    }

    fn failure(&self, release: &Release, phase: &str, unit: &Unit, what: &str) -> Failure {
        let mut lines = self.runner.last_lines(unit, TAIL);
        if release.plan.kind == Kind::Compose {
            lines.extend(run::container_lines(TAIL));
        }
        let lines: Vec<String> = lines.iter().map(|line| super::report::clean(line)).collect();
        let hint = hint::of(&lines, None).unwrap_or(LISTEN).to_owned();
        Failure::Phase { phase: phase.to_owned(), what: what.to_owned(), lines, hint: Some(hint) }
    }
}

/// All processes of a release, the one that serves first.
pub fn units(release: &Release) -> Vec<Unit> {
    let version = release.version;
    release.plan.process_names().into_iter().map(|process| Unit { version, process }).collect()
}

fn exclude_each_other(old: &Release, new: &Release) -> bool {
    let same_project = old.plan.kind == Kind::Compose && new.plan.kind == Kind::Compose;
    let same_port = old.plan.in_place()
        && new.plan.in_place()
        && old.plan.upstream(old.port) == new.plan.upstream(new.port);
    same_project || same_port
}
