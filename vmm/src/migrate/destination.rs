//! The side that the machine comes to. Mirror of [`super::source`].
//!
//! ```text
//! Handshake ─▶ PreCopy ─▶ StopAndCopy ─▶ Prepared ─▶ HandedOver ─▶ Running
//!     └───────────┴────────────┴──▶ discarded   ├─ the source says that it gave up: discarded
//!                                               └─ silence: waits for the authority's verdict, never guesses
//! ```
//!
//! Invariants: nothing is loaded before every byte of it was checked, and nothing runs before the source's `HandedOver` or the
//! authority's word.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::figures::{Report, Stopwatch};
use super::frame::{MAX_STREAMS, Message};
use super::gate::Gate;
use super::handover::{ACCEPTED, Draft, Record};
use super::handshake::{Hello, Role, agree, compatible};
use super::hooks::{Armed, Fired};
use super::link::{Link, PATIENT, URGENT};
use super::listener::Listener;
use super::machine::{DestinationMachine, NetFrame, Section};
use super::progress::{Progress, lock};
use super::receive::{Buffers, Streams, Target, name};
use super::tls::Credentials;
use super::{Instance, handover, hold, hooks};
use crate::api::{MigrateIn, MigrationStatus, Outcome, Phase};
use crate::priority::{self, Favoured};

/// The data streams follow the control connection within this time.
const GATHER: Duration = Duration::from_secs(5);
/// The guest waits for netd no longer than this; the host daemon repairs what netd missed.
const ACTIVATION: Duration = Duration::from_millis(250);
/// The most bytes of network frames kept for the guest before it runs.
const MAX_FRAME_BYTES: usize = 8 << 20;

/// A migration that is waited for, or under way.
pub struct Incoming {
    address: SocketAddr,
    progress: Arc<Progress>,
    gate: Arc<Gate>,
    verdict: Arc<Verdict>,
    thread: JoinHandle<()>,
}

impl Incoming {
    /// Listens for the one source named.
    ///
    /// # Errors
    /// When this instance was handed over before, the credentials cannot be read or the address not be listened on.
    /// Nothing was started then.
    pub fn listen(
        machine: Arc<dyn DestinationMachine>,
        request: MigrateIn,
        instance: Instance,
    ) -> Result<Self> {
        handover::refuse_if_handed_over(&instance.state_dir)?;
        let credentials = Credentials::load(&request.tls)?;
        let (progress, gate) = (Arc::new(Progress::new(&request.migration_id)), Arc::new(Gate::default()));
        let listener =
            Listener::new(request.listen, credentials, request.migration_id.clone(), Arc::clone(&gate))?;
        let (address, verdict) = (listener.address(), Arc::new(Verdict::default()));
        let destination = Destination {
            machine,
            request,
            instance,
            progress: Arc::clone(&progress),
            gate: Arc::clone(&gate),
            verdict: Arc::clone(&verdict),
        };
        let run = move || destination.run(listener);
        let thread = std::thread::Builder::new().name("migrate-in".into()).spawn(run)?;
        Ok(Self { address, progress, gate, verdict, thread })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Phase, figures, outcome.
    #[must_use]
    pub fn status(&self) -> MigrationStatus {
        self.progress.status()
    }

    /// The authority's word for an instance that is prepared and has not heard of the hand-over.
    ///
    /// # Errors
    /// When it is not in that state.
    pub fn resolve(&self, run: bool) -> Result<()> {
        self.verdict.give(run)?;
        // Ends the wait for the source. After `give` nothing else can come of it.
        self.gate.cancel("the authority has decided")
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

/// Run or discard: decided once, by the source's word or by the authority's.
#[derive(Default)]
struct Verdict {
    stand: Mutex<Stand>,
    given: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stand {
    /// Not prepared.
    #[default]
    Early,
    /// Prepared, undecided.
    Open,
    /// The authority has spoken.
    Given(bool),
    /// The source has spoken, or it is carried out already.
    Closed,
}

impl Verdict {
    fn open(&self) {
        *lock(&self.stand) = Stand::Open;
    }

    fn give(&self, run: bool) -> Result<()> {
        let mut stand = lock(&self.stand);
        match *stand {
            Stand::Early => bail!("this instance is not prepared: there is nothing to resolve"),
            Stand::Closed => bail!("this instance knows already whether it runs"),
            Stand::Given(before) => ensure!(before == run, "the opposite was resolved before"),
            Stand::Open => *stand = Stand::Given(run),
        }
        self.given.notify_all();
        Ok(())
    }

    /// The source's word counts if the authority has not spoken.
    fn source_says(&self, run: bool) -> bool {
        match std::mem::replace(&mut *lock(&self.stand), Stand::Closed) {
            Stand::Given(given) => given,
            Stand::Early | Stand::Open | Stand::Closed => run,
        }
    }

    fn wait(&self) -> bool {
        let mut stand = lock(&self.stand);
        loop {
            if let Stand::Given(run) = *stand {
                *stand = Stand::Closed;
                return run;
            }
            stand = self.given.wait(stand).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Destination {
    machine: Arc<dyn DestinationMachine>,
    request: MigrateIn,
    instance: Instance,
    progress: Arc<Progress>,
    gate: Arc<Gate>,
    verdict: Arc<Verdict>,
}

/// Connections and where their bytes go.
struct Session {
    control: Link,
    streams: Streams,
    target: Arc<Target>,
    next_epoch: u64,
}

/// What is ready before the guest stands still.
struct Armory {
    draft: Draft,
    activate: Option<Armed>,
    announce: Option<Armed>,
    favour: Favoured,
}

/// How far the stop-and-copy has come.
struct Stopped {
    favour: Favoured,
    watch: Stopwatch,
    activation: Option<Fired>,
    frames: Vec<NetFrame>,
    frame_bytes: usize,
    last_round: bool,
    blocks: bool,
}

impl Destination {
    fn run(&self, listener: Listener) {
        let mut activated = false;
        let outcome = self.receive(listener, &mut activated);
        let Err(error) = outcome else { return };
        let error = format!("{error:#}");
        tracing::warn!(migration = self.request.migration_id, error, "this instance is discarded");
        self.machine.discard();
        if activated
            && let Some(hook) = &self.instance.hooks.abandoned
            && let Err(error) = hooks::send(hook)
        {
            tracing::error!(hook = "abandoned", error = format!("{error:#}"), "a hook failed");
        }
        self.progress.end(Outcome::Failed { error });
    }

    /// Everything; an error means that this instance must be discarded.
    fn receive(&self, listener: Listener, activated: &mut bool) -> Result<()> {
        let mut session = self.handshake(&listener)?;
        drop(listener);
        let loaded = self.until_prepared(&mut session, activated);
        let (armory, watch) = match loaded {
            Ok(ready) => ready,
            Err(error) => {
                session.control.abort(&format!("{error:#}"));
                return self.hang_up(session, error);
            }
        };
        if let Err(error) = self.hear_the_hand_over(&mut session) {
            return self.hang_up(session, error);
        }
        self.run_the_machine(session, armory, watch)
    }

    fn hang_up<T>(&self, session: Session, error: anyhow::Error) -> Result<T> {
        // Ends the waits of the data streams, so that their threads can be joined.
        let _ = self.gate.cancel("the migration ended");
        session.streams.join();
        Err(error)
    }

    fn handshake(&self, listener: &Listener) -> Result<Session> {
        hold::wait(&self.instance.state_dir, Phase::Handshake, || Ok(()))?;
        let deadline = Instant::now() + Duration::from_millis(self.request.timeout_ms);
        let (mut control, hello, count) = loop {
            let (mut link, hello) = listener.next(deadline)?;
            match hello.role {
                Role::Control { streams, .. } => break (link, hello, streams),
                Role::Data { .. } => link.abort("the control connection comes first"),
            }
        };
        match self.complete(listener, &mut control, &hello, count) {
            Ok((streams, target)) => Ok(Session { control, streams, target, next_epoch: hello.next_epoch }),
            Err(error) => {
                control.abort(&format!("{error:#}"));
                Err(error)
            }
        }
    }

    fn complete(
        &self,
        listener: &Listener,
        control: &mut Link,
        hello: &Hello,
        count: u16,
    ) -> Result<(Streams, Arc<Target>)> {
        self.check(hello, count)?;
        control.patience(PATIENT)?;
        control.send(&Message::Welcome(serde_json::to_vec(&agree(hello)?)?))?;
        let target = Arc::new(Target { regions: self.machine.ram()?, disks: self.machine.disks() });
        let links = gather(listener, hello, count)?;
        let streams = Streams::new(links, &target)?;
        control.send(&Message::Ready)?;
        Ok((streams, target))
    }

    fn check(&self, hello: &Hello, count: u16) -> Result<()> {
        agree(hello)?;
        let Role::Control { description, .. } = &hello.role else { bail!("no control connection") };
        ensure!((1..MAX_STREAMS).contains(&usize::from(count)), "the source wants {count} data streams");
        ensure!(
            hello.machine_id == self.instance.machine_id,
            "machine {} is expected here, not {}",
            self.instance.machine_id,
            hello.machine_id
        );
        ensure!(
            hello.next_epoch >= self.instance.epoch,
            "this instance is for epoch {}; the source would hand over to epoch {}, which is past",
            self.instance.epoch,
            hello.next_epoch
        );
        let mine = self.machine.describe().context("describing the prepared machine")?;
        compatible(description, &mine)?;
        self.machine.check_compatible(description).context("this host cannot run the machine as it is")
    }

    fn until_prepared(&self, session: &mut Session, activated: &mut bool) -> Result<(Armory, Stopwatch)> {
        self.progress.enter(Phase::PreCopy);
        self.hold(Phase::PreCopy, &mut session.control)?;
        let record = Record {
            migration_id: self.request.migration_id.clone(),
            machine_id: self.instance.machine_id.clone(),
            next_epoch: session.next_epoch,
        };
        let draft = Draft::new(&self.instance.state_dir, ACCEPTED, &record)?;
        let mut activate = Armed::new("prepared", self.instance.hooks.prepared.as_ref());
        let announce = Armed::new("running", self.instance.hooks.running.as_ref());

        let (sections, mut stopped) = self.copy(session, &mut activate, activated)?;
        self.load(session, &sections, &mut stopped)?;
        Ok((Armory { draft, activate, announce, favour: stopped.favour }, stopped.watch))
    }

    /// Rounds until the device state comes.
    fn copy(
        &self,
        session: &mut Session,
        activate: &mut Option<Armed>,
        activated: &mut bool,
    ) -> Result<(Vec<Section>, Stopped)> {
        let Session { control, streams, target, .. } = session;
        let (mut round, mut buffers, mut blocks) = (0, Buffers::default(), false);
        let mut stopped: Option<Stopped> = None;
        // Small rounds come over this connection, and they tell the source how long the blackout would be.
        priority::favoured();
        loop {
            let (header, message) = control.expect()?;
            match (message, &mut stopped) {
                (message @ (Message::Pages(_) | Message::Blocks(_)), stopped)
                    if stopped.as_ref().is_none_or(|stopped| !stopped.last_round) =>
                {
                    blocks |= target.apply(&header, &message, control, &mut buffers)?;
                }
                (Message::RoundEnd { round: ended, counts }, None) => {
                    ensure!(ended == round, "round {ended} ended where round {round} was due");
                    let streamed = streams.wait(&counts, PATIENT)?;
                    if std::mem::take(&mut blocks) || streamed {
                        target.sync()?;
                    }
                    control.send(&Message::RoundDone { round })?;
                    round += 1;
                    self.progress.figures(|figures| figures.rounds = round);
                }
                (Message::Pausing, None) => {
                    self.progress.enter(Phase::StopAndCopy);
                    self.hold(Phase::StopAndCopy, control)?;
                    priority::urgent();
                    control.patience(URGENT)?;
                    stopped = Some(Stopped::new(activate.take().map(Armed::fire)));
                    *activated = true;
                }
                (Message::RoundEnd { round: ended, counts }, Some(stopped)) if !stopped.last_round => {
                    ensure!(ended == round, "round {ended} ended where round {round} was due");
                    stopped.blocks = streams.wait(&counts, URGENT)? || std::mem::take(&mut blocks);
                    stopped.last_round = true;
                }
                (Message::NetFrames(frames), Some(stopped)) => stopped.keep(frames)?,
                (Message::Sections(sections), Some(now)) if now.last_round => {
                    now.watch.lap("receive");
                    let stopped = stopped.take().context("stopped")?;
                    return Ok((sections, stopped));
                }
                (other, _) => bail!("{} arrived out of order", name(&other)),
            }
        }
    }

    fn load(&self, session: &mut Session, sections: &[Section], stopped: &mut Stopped) -> Result<()> {
        if stopped.blocks {
            session.target.sync()?;
            stopped.watch.lap("sync");
        }
        self.machine.load(sections).context("loading the device state")?;
        stopped.watch.lap("load");
        self.progress.figures(|figures| figures.frames = stopped.frames.len() as u64);
        self.machine
            .inject_frames(std::mem::take(&mut stopped.frames))
            .context("keeping the frames in flight")?;
        if let Some(activation) = &stopped.activation
            && !activation.wait(ACTIVATION)
        {
            tracing::error!(
                "netd did not answer the `prepared` hook in time; the machine does not wait for it"
            );
        }
        stopped.watch.lap("activate");
        self.progress.enter(Phase::Prepared);
        self.hold(Phase::Prepared, &mut session.control)?;
        self.machine.prepared();
        self.verdict.open();
        let spans = stopped.watch.take();
        let sent = session.control.send(&Message::Prepared(Report::encode(spans)));
        if let Err(error) = sent {
            // Whether it arrived is unknown: the same as silence after it.
            tracing::warn!(error = format!("{error:#}"), "telling the source that all is prepared");
        }
        Ok(())
    }

    /// Returns when this instance may run.
    fn hear_the_hand_over(&self, session: &mut Session) -> Result<()> {
        let (run, why) = match session.control.receive_past_alive() {
            Ok((_, Message::HandedOver)) => {
                (self.verdict.source_says(true), anyhow!("the source handed over"))
            }
            Ok((_, Message::Abort(why))) => {
                (self.verdict.source_says(false), anyhow!("the source gave up: {why}"))
            }
            other => {
                let seen =
                    other.map_or_else(|error| error, |(_, message)| anyhow!("{} arrived", name(&message)));
                tracing::error!(
                    migration = self.request.migration_id,
                    seen = format!("{seen:#}"),
                    "prepared, and the source fell silent: waiting for a verdict (resolve)"
                );
                (
                    self.verdict.wait(),
                    anyhow!("the authority decided, after the source fell silent ({seen:#})"),
                )
            }
        };
        ensure!(run, "{why:#}: this instance is not to run");
        Ok(())
    }

    fn run_the_machine(&self, mut session: Session, armory: Armory, mut watch: Stopwatch) -> Result<()> {
        watch.lap("wait");
        self.progress.enter(Phase::HandedOver);
        // The source's record is what forbids two runners; this one need not be durable before the guest runs.
        if let Err(error) = armory.draft.publish() {
            tracing::error!(error = format!("{error:#}"), "the record of the acceptance was not written");
        }
        self.hold(Phase::HandedOver, &mut session.control)?;
        watch.lap("accept");
        let ran = self.machine.run(session.next_epoch).with_context(|| {
            format!(
                "running machine {} after the source handed it over; it runs nowhere now",
                self.instance.machine_id
            )
        });
        let spans = match ran {
            Ok(spans) => spans,
            Err(error) => {
                session.control.abort(&format!("{error:#}"));
                return self.hang_up(session, error);
            }
        };
        watch.lap("run");
        watch.within("run/", spans);
        let spans = watch.take();
        let told = session.control.send(&Message::Running(Report::encode(spans.clone())));
        let _announcing = armory.announce.map(Armed::fire);
        self.progress.enter(Phase::Running);
        self.progress.figures(|figures| figures.spans = spans);
        self.progress.end(Outcome::Completed);
        tracing::info!(migration = self.request.migration_id, "the machine runs here");
        if let Err(error) = armory.draft.settle() {
            tracing::error!(
                error = format!("{error:#}"),
                "the record of the acceptance may not survive a power loss"
            );
        }
        if let Err(error) = told.and_then(|()| self.take_late_frames(&mut session)) {
            tracing::warn!(error = format!("{error:#}"), "late frames of the source may be missing");
        }
        drop(armory.favour);
        let _ = self.gate.cancel("the migration is over");
        session.streams.join();
        drop(armory.activate);
        Ok(())
    }

    fn take_late_frames(&self, session: &mut Session) -> Result<()> {
        self.hold(Phase::Running, &mut session.control)?;
        loop {
            match session.control.expect()? {
                (_, Message::NetFrames(frames)) => {
                    self.progress.figures(|figures| figures.frames += frames.len() as u64);
                    self.machine.inject_frames(frames)?;
                }
                (_, Message::Bye) => return Ok(()),
                (_, other) => bail!("{} arrived out of order", name(&other)),
            }
        }
    }

    fn hold(&self, phase: Phase, control: &mut Link) -> Result<()> {
        hold::wait(&self.instance.state_dir, phase, || {
            // A source that is gone is noticed where something is expected of it.
            let _ = control.send(&Message::Alive);
            Ok(())
        })
    }
}

impl Stopped {
    fn new(activation: Option<Fired>) -> Self {
        let watch = Stopwatch::default();
        let favour = Favoured::new();
        Self {
            favour,
            watch,
            activation,
            frames: Vec::new(),
            frame_bytes: 0,
            last_round: false,
            blocks: false,
        }
    }

    fn keep(&mut self, frames: Vec<NetFrame>) -> Result<()> {
        self.frame_bytes += frames.iter().map(|frame| frame.bytes.len()).sum::<usize>();
        ensure!(self.frame_bytes <= MAX_FRAME_BYTES, "the source sends more frames than any tap queue holds");
        self.frames.extend(frames);
        Ok(())
    }
}

/// The data streams, ordered.
fn gather(listener: &Listener, hello: &Hello, count: u16) -> Result<Vec<Link>> {
    let deadline = Instant::now() + GATHER;
    let mut links: Vec<Option<Link>> = (0..count).map(|_| None).collect();
    while links.iter().any(Option::is_none) {
        let (mut link, its) = listener.next(deadline).context("waiting for the data streams")?;
        let Role::Data { stream } = its.role else {
            link.abort("this migration has its control connection already");
            continue;
        };
        ensure!(
            its.next_epoch == hello.next_epoch && its.machine_id == hello.machine_id,
            "data stream {stream} belongs to another machine or epoch"
        );
        let place = stream.checked_sub(1).and_then(|index| links.get_mut(usize::from(index)));
        let place = place.with_context(|| format!("there is no data stream {stream} of {count}"))?;
        ensure!(place.replace(link).is_none(), "data stream {stream} came twice");
    }
    Ok(links.into_iter().flatten().collect())
}
