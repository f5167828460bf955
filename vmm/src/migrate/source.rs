//! The side that the machine leaves. Mirror of [`super::destination`].
//!
//! ```text
//! Handshake ─▶ PreCopy ─▶ StopAndCopy ─▶ Prepared ─▶ HandedOver ─▶ Running
//!     └───────────┴────────────┴─────────────┤            └─▶ Doubtful: told, or not; never heard that it runs
//!                     Failed: the machine     │
//!                     goes on here            └ the durable record is the border
//! ```
//!
//! Invariants: before the record exists every error ends in [`Source::undo`], after it none does. Between `pause` and the
//! destination's `Running` nobody is asked but the destination.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::converge::{self, Decision, Rule};
use super::figures::{Report, Stopwatch, micros};
use super::frame::{MAX_STREAMS, Message, VERSION};
use super::gate::Gate;
use super::handover::{CommitError, Draft, HANDED_OVER, Record};
use super::handshake::{Hello, Role, Welcome, migration_hash};
use super::link::{Identity, Link, URGENT};
use super::machine::{Harvest, NetFrame, SourceMachine};
use super::packing::Chooser;
use super::pending::{Pending, inline};
use super::progress::Progress;
use super::receive::name;
use super::send::{Batch, Material, Pool, Tally};
use super::tls::Credentials;
use super::{Instance, hold, hooks};
use crate::api::{MigrateOut, MigrationStatus, Outcome, Phase};
use crate::priority::{self, Background, Favoured};

/// What fits the last delta into one write on the control connection; more is spread over the data streams.
const INLINE_BYTES: u64 = 4 << 20;
/// Late frames are forwarded until none came for this long …
const QUIET: Duration = Duration::from_millis(300);
/// … or for this long in all.
const LINGER: Duration = Duration::from_secs(3);
/// The part of the blackout that is not bytes, until it has been measured: pause, save, load, two round trips.
const FIXED: Duration = Duration::from_millis(10);

/// A migration that runs in its own thread.
pub struct Outgoing {
    progress: Arc<Progress>,
    gate: Arc<Gate>,
    thread: JoinHandle<()>,
}

impl Outgoing {
    /// Checks the request and starts.
    ///
    /// # Errors
    /// When the request makes no sense or its credentials cannot be read. Nothing was started then.
    pub fn start(machine: Arc<dyn SourceMachine>, request: MigrateOut, instance: Instance) -> Result<Self> {
        let streams = usize::from(request.streams);
        ensure!(
            (1..MAX_STREAMS).contains(&streams),
            "streams must be 1 to {}, not {streams}",
            MAX_STREAMS - 1
        );
        ensure!(
            request.next_epoch == instance.epoch + 1,
            "this instance runs in epoch {}: the next is {}, not {}",
            instance.epoch,
            instance.epoch + 1,
            request.next_epoch
        );
        ensure!(
            Duration::from_millis(request.budget_ms) > FIXED,
            "a blackout of {} ms cannot be had: {} ms go by with nothing left to send",
            request.budget_ms,
            FIXED.as_millis()
        );
        let credentials = Credentials::load(&request.tls)?;
        let (progress, gate) = (Arc::new(Progress::new(&request.migration_id)), Arc::new(Gate::default()));
        let source = Source {
            machine,
            request,
            instance,
            credentials,
            progress: Arc::clone(&progress),
            gate: Arc::clone(&gate),
        };
        let run = move || source.run();
        let thread = std::thread::Builder::new().name("migrate-out".into()).spawn(run)?;
        Ok(Self { progress, gate, thread })
    }

    /// Phase, figures, outcome.
    #[must_use]
    pub fn status(&self) -> MigrationStatus {
        self.progress.status()
    }

    /// Gives up; the machine goes on here. Takes effect at once, also within a blocked write; the outcome follows.
    ///
    /// # Errors
    /// When the machine is handed over already.
    pub fn cancel(&self) -> Result<()> {
        self.gate.cancel("cancelled on request")
    }

    /// Nothing of it is running any more, late frames included.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end.
    pub fn join(self) -> MigrationStatus {
        // A panic has no outcome set; the caller sees that.
        let _ = self.thread.join();
        self.progress.status()
    }
}

struct Source {
    machine: Arc<dyn SourceMachine>,
    request: MigrateOut,
    instance: Instance,
    credentials: Credentials,
    progress: Arc<Progress>,
    gate: Arc<Gate>,
}

/// What must be undone when it fails.
#[derive(Default)]
struct Stage {
    logging: bool,
    throttled: bool,
    paused: bool,
}

/// Connections and what goes over them.
struct Streams {
    control: Link,
    pool: Pool,
    material: Arc<Material>,
    round: u32,
    /// From just before the guest stands still until there is nothing left to do for it here.
    favour: Option<Favoured>,
}

/// How the part before the record ended, when not in an error.
enum Committed {
    /// The record is durable.
    Durable(Box<Streams>, Stopwatch, Option<hooks::Armed>),
    /// It may be.
    Doubtful(anyhow::Error),
}

impl Source {
    fn run(&self) {
        let mut stage = Stage::default();
        let outcome = match self.until_the_record(&mut stage) {
            Err(error) => self.undo(&stage, &error),
            Ok(Committed::Doubtful(error)) => {
                self.after_doubt(&stage);
                Outcome::Doubtful {
                    error: format!("{error:#}; the record may exist, so the machine is not resumed here"),
                }
            }
            Ok(Committed::Durable(streams, watch, hook)) => {
                return self.after_the_record(*streams, watch, hook, &stage);
            }
        };
        self.log_end(&outcome);
        self.progress.end(outcome);
    }

    fn until_the_record(&self, stage: &mut Stage) -> Result<Committed> {
        self.hold(Phase::Handshake, None)?;
        let mut streams = self.handshake()?;
        match self.transfer(&mut streams, stage) {
            Ok((watch, draft, hook)) => match draft.commit() {
                Ok(()) => Ok(Committed::Durable(Box::new(streams), watch, hook)),
                Err(CommitError::Doubtful(error)) => Ok(Committed::Doubtful(error)),
                Err(CommitError::Undone(error)) => {
                    self.resume_first(stage);
                    streams.control.abort(&format!("{error:#}"));
                    Err(error)
                }
            },
            Err(error) => {
                self.resume_first(stage);
                let error = streams.reason(error);
                let error = self.gate.check().err().unwrap_or(error);
                streams.control.abort(&format!("{error:#}"));
                // Ends the waits of the data streams, so that their threads can be joined.
                let _ = self.gate.cancel("the migration failed");
                streams.pool.join();
                Err(error)
            }
        }
    }

    fn handshake(&self) -> Result<Streams> {
        let machine = &self.machine;
        let description = Box::new(machine.describe().context("describing this machine")?);
        let hello = |role| Hello {
            oldest: VERSION,
            newest: VERSION,
            migration_id: self.request.migration_id.clone(),
            machine_id: self.instance.machine_id.clone(),
            next_epoch: self.request.next_epoch,
            role,
        };
        let count = u16::from(self.request.streams);
        let mut control = self.connect(0, &hello(Role::Control { streams: count, description }))?;
        match control.expect().context("the destination did not accept the machine")? {
            (_, Message::Welcome(json)) => {
                let welcome: Welcome =
                    serde_json::from_slice(&json).context("the destination's welcome is unreadable")?;
                ensure!(
                    welcome.version == VERSION,
                    "the destination chose protocol version {}",
                    welcome.version
                );
            }
            (_, other) => bail!("the destination answered {} instead of Welcome", name(&other)),
        }
        let links = (1..=count)
            .map(|stream| self.connect(stream, &hello(Role::Data { stream })))
            .collect::<Result<Vec<_>>>()?;
        let (_, ready) = control.expect().context("the destination did not become ready")?;
        ensure!(ready == Message::Ready, "the destination answered {} instead of Ready", name(&ready));
        let material = Arc::new(Material {
            regions: machine.ram()?,
            disks: machine.disks(),
            packing: Chooser::default(),
        });
        let pool = Pool::new(links, &material)?;
        Ok(Streams { control, pool, material, round: 0, favour: None })
    }

    fn connect(&self, stream: u16, hello: &Hello) -> Result<Link> {
        let identity = Identity {
            migration: migration_hash(&self.request.migration_id),
            epoch: self.request.next_epoch,
            stream,
        };
        let mut link = Link::connect(self.request.address, &self.credentials, identity, &self.gate)?;
        link.send(&Message::Hello(serde_json::to_vec(hello)?))?;
        Ok(link)
    }

    /// All from the first page to the destination's `Prepared`.
    fn transfer(
        &self,
        streams: &mut Streams,
        stage: &mut Stage,
    ) -> Result<(Stopwatch, Draft, Option<hooks::Armed>)> {
        self.progress.enter(Phase::PreCopy);
        self.hold(Phase::PreCopy, Some(&mut streams.control))?;
        let pending = self.pre_copy(streams, stage)?;

        // All that can be done before the guest stands still is done before.
        let record = Record {
            migration_id: self.request.migration_id.clone(),
            machine_id: self.instance.machine_id.clone(),
            next_epoch: self.request.next_epoch,
        };
        let draft = Draft::new(&self.instance.state_dir, HANDED_OVER, &record)?;
        let hook = hooks::Armed::new("handed-over", self.request.handed_over.as_ref());

        self.progress.enter(Phase::StopAndCopy);
        self.hold(Phase::StopAndCopy, Some(&mut streams.control))?;
        let mut watch = self.stop_and_copy(streams, stage, pending)?;

        self.progress.enter(Phase::Prepared);
        self.hold(Phase::Prepared, Some(&mut streams.control))?;
        // After the record nothing brings the machine back: a destination that died meanwhile must not take it along.
        streams.control.still_there()?;
        self.gate.commit()?;
        watch.lap("decide");
        Ok((watch, draft, hook))
    }

    /// Rounds until the rest fits the budget. Returns the rest.
    fn pre_copy(&self, streams: &mut Streams, stage: &mut Stage) -> Result<Pending> {
        let machine = &self.machine;
        // Not before: a handshake has its time-outs.
        let mut priority = Background::new();
        stage.logging = true;
        machine.start_dirty_log().context("starting the dirty log")?;
        let mut pending = Pending::everything(&streams.material)?;
        // The first harvest clears what an initially-set log reports; all of it is in `pending` already.
        machine.harvest(&mut pending.pages, Harvest::Round).context("reading the dirty log")?;

        let start = Instant::now();
        let timeout = Duration::from_millis(self.request.timeout_ms);
        let rule = Rule {
            budget: Duration::from_millis(self.request.budget_ms),
            fixed: FIXED,
            timeout,
            may_throttle: self.request.throttle,
        };
        let (mut history, mut throttle, mut since) = (Vec::new(), 0, 0);
        loop {
            let began = Instant::now();
            let sent = pending.bytes();
            if sent <= INLINE_BYTES {
                priority.dash();
            } else {
                priority.go_on();
            }
            self.send_round(streams, &pending, start + timeout)?;
            let took = began.elapsed();
            pending.pages.clear();
            machine.harvest(&mut pending.pages, Harvest::Round).context("reading the dirty log")?;
            pending.blocks_since(&streams.material, false)?;
            since += 1;
            let left = pending.bytes();
            history.push(converge::Round { sent, took, left });
            tracing::debug!(
                round = streams.round,
                sent,
                took_us = micros(took),
                left,
                throttle,
                "a round of pre-copy"
            );
            match converge::decide(&rule, &history, throttle, since, start.elapsed()) {
                Decision::Continue => {}
                Decision::StopNow => return Ok(pending),
                Decision::Throttle(percent) => {
                    stage.throttled = true;
                    machine.throttle(percent).context("slowing the vCPUs down")?;
                    (throttle, since) = (percent, 0);
                    self.progress.figures(|figures| figures.throttle_percent = percent);
                }
                Decision::GiveUp(why) => bail!(why),
            }
        }
    }

    fn send_round(&self, streams: &mut Streams, pending: &Pending, deadline: Instant) -> Result<()> {
        let batches = pending.batches(&streams.material)?;
        let Streams { control, pool, material, round, .. } = streams;
        let alive = |control: &mut Link| {
            self.gate.check()?;
            ensure!(
                Instant::now() < deadline,
                "the machine did not converge: the time allowed ended within round {round}"
            );
            control.send(&Message::Alive)
        };
        let tally = if pending.bytes() <= INLINE_BYTES {
            inline(control, material, &batches, |_, _| Ok(()))?
        } else {
            pool.round(batches, || alive(control))?
        };
        self.count(&tally);
        control.send(&Message::RoundEnd { round: *round, counts: pool.counts().to_vec() })?;
        match control.expect().context("waiting for the destination to apply a round")? {
            (_, Message::RoundDone { round: done }) if done == *round => {}
            (_, other) => bail!("the destination answered {} instead of RoundDone {round}", name(&other)),
        }
        *round += 1;
        self.progress.figures(|figures| figures.rounds = *round);
        self.gate.check()
    }

    /// The blackout's first half: the guest stops, the last of it goes over.
    fn stop_and_copy(
        &self,
        streams: &mut Streams,
        stage: &mut Stage,
        mut pending: Pending,
    ) -> Result<Stopwatch> {
        let machine = &self.machine;
        // Before the guest stands still. The data streams' threads have copied in the background until now.
        streams.favour = Some(Favoured::new());
        streams.control.patience(URGENT)?;
        streams.control.send(&Message::Pausing)?;
        priority::urgent();
        let mut watch = Stopwatch::default();
        stage.paused = true;
        machine.pause().context("pausing the machine")?;
        watch.lap("pause");
        let sections = machine.save().context("saving the device state")?;
        watch.lap("save");
        machine.harvest(&mut pending.pages, Harvest::Last).context("reading the dirty log")?;
        pending.blocks_since(&streams.material, true)?;
        let frames = self.take_frames()?;
        watch.lap("harvest");

        let batches = pending.batches(&streams.material)?;
        let Streams { control, pool, material, round, .. } = streams;
        let in_one = pending.bytes() <= INLINE_BYTES;
        let mut tally =
            if in_one { Tally::default() } else { pool.round(batches.clone(), || self.gate.check())? };
        let end = [
            Message::RoundEnd { round: *round, counts: pool.counts().to_vec() },
            Message::NetFrames(frames.clone()),
            Message::Sections(sections),
        ];
        let rest: &[Batch] = if in_one { &batches } else { &[] };
        tally += inline(control, material, rest, |encoder, out| {
            end.iter().try_for_each(|message| Ok(encoder.encode(out, message, &[])?))
        })?;
        watch.lap("send");
        self.count(&tally);
        self.progress.figures(|figures| {
            figures.last_pages = tally.pages;
            figures.frames = frames.len() as u64;
        });

        match control.expect().context("waiting for the destination to be prepared")? {
            (_, Message::Prepared(json)) => {
                watch.lap("prepare");
                watch.within("prepare/", Report::decode(&json).spans);
            }
            (_, other) => bail!("the destination answered {} instead of Prepared", name(&other)),
        }
        Ok(watch)
    }

    /// The blackout's second half, and what follows it. From here on nothing resumes the machine.
    fn after_the_record(
        &self,
        mut streams: Streams,
        mut watch: Stopwatch,
        hook: Option<hooks::Armed>,
        stage: &Stage,
    ) {
        watch.lap("record");
        // Unlocks the disks, which the destination locks next.
        let released = self.machine.release();
        self.progress.enter(Phase::HandedOver);
        watch.lap("release");
        let ran =
            released.context("releasing the disks").and_then(|()| self.tell(&mut streams, &mut watch, hook));
        priority::ordinary();
        let outcome = match ran {
            Ok(()) => Outcome::Completed,
            Err(error) => Outcome::Doubtful {
                error: format!(
                    "{error:#}; the machine was handed over in epoch {} and runs at {} or nowhere: ask there",
                    self.request.next_epoch, self.request.address
                ),
            },
        };
        let completed = outcome == Outcome::Completed;
        self.log_end(&outcome);
        self.progress.end(outcome);
        if completed {
            self.forward_late_frames(&mut streams.control);
        }
        let Streams { mut control, pool, .. } = streams;
        control.close();
        pool.join();
        self.end_logging(stage);
    }

    fn tell(&self, streams: &mut Streams, watch: &mut Stopwatch, hook: Option<hooks::Armed>) -> Result<()> {
        let control = &mut streams.control;
        self.hold(Phase::HandedOver, Some(control))?;
        let _redirecting = hook.map(hooks::Armed::fire);
        control.send(&Message::HandedOver)?;
        watch.lap("tell");
        match control.expect().context("waiting for the destination to run the machine")? {
            (_, Message::Running(json)) => {
                watch.lap("run");
                watch.within("run/", Report::decode(&json).spans);
            }
            (_, other) => bail!("the destination answered {} instead of Running", name(&other)),
        }
        self.progress.figures(|figures| {
            figures.blackout_us = micros(watch.elapsed());
            figures.spans = watch.take();
        });
        self.progress.enter(Phase::Running);
        Ok(())
    }

    /// What still reaches the old taps goes after the machine. Best effort: frames may be lost, as on any network.
    fn forward_late_frames(&self, control: &mut Link) {
        let forward = |control: &mut Link| -> Result<()> {
            self.hold(Phase::Running, Some(control))?;
            let (start, mut last) = (Instant::now(), Instant::now());
            while last.elapsed() < QUIET && start.elapsed() < LINGER {
                let frames = self.machine.take_frames()?;
                if frames.is_empty() {
                    self.machine.wait_for_frames(QUIET.saturating_sub(last.elapsed()))?;
                    continue;
                }
                last = Instant::now();
                self.progress.figures(|figures| figures.frames += frames.len() as u64);
                control.send(&Message::NetFrames(frames))?;
            }
            control.send(&Message::Bye)
        };
        if let Err(error) = forward(control) {
            tracing::warn!(error = format!("{error:#}"), "late frames were not all forwarded");
        }
    }

    /// The frames in the tap queues, as many as there are, within what one message carries.
    fn take_frames(&self) -> Result<Vec<NetFrame>> {
        let mut all = Vec::new();
        while all.len() < 2000 {
            let frames = self.machine.take_frames().context("reading the tap queues")?;
            if frames.is_empty() {
                break;
            }
            all.extend(frames);
        }
        Ok(all)
    }

    /// The guest runs again before anything else is tidied up.
    fn resume_first(&self, stage: &mut Stage) {
        if stage.paused && self.machine.resume().is_ok() {
            stage.paused = false;
        }
    }

    /// Back to as it was. Goes on through errors and names them all.
    fn undo(&self, stage: &Stage, error: &anyhow::Error) -> Outcome {
        let mut errors = vec![format!("{error:#}")];
        if stage.paused {
            errors.extend(
                self.machine.resume().err().map(|error| format!("the machine did not resume: {error:#}")),
            );
        }
        if stage.throttled {
            errors
                .extend(self.machine.throttle(0).err().map(|error| format!("it stays throttled: {error:#}")));
        }
        errors.extend(self.end_logging(stage).map(|error| format!("the dirty log stays on: {error:#}")));
        Outcome::Failed { error: errors.join("; ") }
    }

    fn after_doubt(&self, stage: &Stage) {
        if let Err(error) = self.machine.release() {
            tracing::error!(error = format!("{error:#}"), "the disks were not released");
        }
        self.progress.enter(Phase::HandedOver);
        self.end_logging(stage);
    }

    fn end_logging(&self, stage: &Stage) -> Option<anyhow::Error> {
        if !stage.logging {
            return None;
        }
        self.machine.disks().iter().for_each(|side| side.stop_tracking());
        self.machine.stop_dirty_log().err()
    }

    fn count(&self, tally: &Tally) {
        self.progress.figures(|figures| {
            figures.ram_bytes += tally.ram_bytes;
            figures.disk_bytes += tally.disk_bytes;
            figures.zero_pages += tally.zero_pages;
        });
    }

    fn hold(&self, phase: Phase, mut control: Option<&mut Link>) -> Result<()> {
        let state_dir: &PathBuf = &self.instance.state_dir;
        hold::wait(state_dir, phase, || {
            self.gate.check()?;
            control.as_mut().map_or(Ok(()), |control| control.send(&Message::Alive))
        })
    }

    fn log_end(&self, outcome: &Outcome) {
        let migration = &self.request.migration_id;
        match outcome {
            Outcome::Completed => tracing::info!(migration, "the machine runs at the destination"),
            Outcome::Failed { error } => tracing::warn!(migration, error, "the machine goes on here"),
            Outcome::Doubtful { error } => tracing::error!(migration, error, "handed over, in doubt"),
        }
    }
}

impl Streams {
    /// Why it failed, as the destination tells it: its reason says more than a broken connection here.
    fn reason(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.control.patience(Duration::from_millis(200)).is_err() {
            return error;
        }
        loop {
            match self.control.receive() {
                Ok((_, Message::Abort(why))) => return anyhow!("the destination gave up: {why}"),
                Ok((header, _)) if header.data == 0 => {}
                Ok(_) | Err(_) => return error,
            }
        }
    }
}
