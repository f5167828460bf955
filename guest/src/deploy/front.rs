//! The front: where the machine serves, whichever release is live. It passes TCP connections on to the live release's port.
//!
//! ```text
//! state.json ──looked at for each connection──▶ target ──▶ 127.0.0.1:target or [::1]:target
//! ```
//!
//! Invariants:
//! - A connection belongs to one release from its beginning to its end; it is counted for that release before the release is chosen, so that
//!   none is stopped while a connection is on its way to it.
//! - While the state says hold, or the target does not accept, a connection waits (for [`PATIENCE`]): a switch in place, a release that
//!   is started anew and a boot cost time and no request. A hold counts only while somebody has the turn.
//! - A release that is live no more is stopped when its last connection has ended, at the latest after `drain_seconds`. A connection
//!   that rests after an answer ends sooner: HTTP clients take that for the end of a persistent connection.
//! - The front starts the live release at its own start: that is how it runs again after a boot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::health;
use super::place::Place;
use super::release::{Release, Stage, State};
use super::runner::{self, Runner, Unit};
use super::turn;

/// How long a connection waits for a release that accepts it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a front may take to listen where it is told to.
const LISTENS: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long a connection of a release that drains rests after an answer before it is ended.
const REST: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(200);
const TICK_MS: u16 = 200;
const MAX_CONNECTIONS: usize = 4096;
const CHUNK: usize = 32 * 1024;

/// Runs it; it ends only by a signal.
pub fn run(place: &Place) -> Result<()> {
    let _only = only_one(place)?;
    let runner: Arc<dyn Runner> = Arc::from(runner::of(place));
    let front = Arc::new(Front::new(place.clone()));
    resume(place, runner.as_ref())?;
    let janitor = Arc::clone(&front);
    thread::spawn(move || {
        loop {
            thread::sleep(TICK);
            if let Err(error) = janitor.retire(runner.as_ref()) {
                eprintln!("front: {error:#}");
            }
        }
    });
    loop {
        if let Err(error) = front.listen() {
            eprintln!("front: {error:#}");
            thread::sleep(Duration::from_secs(1));
        }
    }
}

fn only_one(place: &Place) -> Result<File> {
    place.make()?;
    let path = place.base().join("front.lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let started = Instant::now();
    // One that was killed takes a moment to be gone.
    while file.try_lock().is_err() {
        if started.elapsed() > Duration::from_secs(5) {
            bail!("another front runs already");
        }
        thread::sleep(TRY_AGAIN);
    }
    Ok(file)
}

/// Starts the live release, and stops what another front left to be drained. A release that is just being tried is left alone.
fn resume(place: &Place, runner: &dyn Runner) -> Result<()> {
    let state = State::load(place)?;
    start_live(place, &state, runner)?;
    let releases = Release::all(place)?;
    let retired = |unit: &Unit| {
        let is_ready =
            releases.iter().any(|release| release.version == unit.version && release.stage == Stage::Ready);
        is_ready && state.live != Some(unit.version)
    };
    let left: Vec<Unit> = runner.running()?.into_iter().filter(retired).collect();
    runner.stop(&left)
}

fn start_live(place: &Place, state: &State, runner: &dyn Runner) -> Result<()> {
    let Some(live) = state.live.map(|live| Release::load(place, live)).transpose()?.flatten() else {
        return Ok(());
    };
    live.plan
        .process_names()
        .into_iter()
        .try_for_each(|process| runner.start(&Unit { version: live.version, process }))
}

struct Front {
    place: Place,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Of the file that `state` was read from.
    read_from: Option<(u64, i64, i64)>,
    /// Open connections by release.
    open: BTreeMap<u64, usize>,
    /// Since when releases that were live are not any more.
    retired: BTreeMap<u64, Instant>,
}

/// A connection counted for a release.
struct Counted<'a> {
    front: &'a Front,
    version: u64,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.front.lock().open.get_mut(&self.version) {
            *open = open.saturating_sub(1);
        }
    }
}

impl Front {
    fn new(place: Place) -> Self {
        Self { place, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nobody panics with it in hand; if somebody did, the counts would still be the best there is.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The state as the file is now.
    fn look(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        let path = self.place.base().join("state.json");
        let id = fs::metadata(&path).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec()));
        if id != inner.read_from
            && let Ok(state) = State::load(&self.place)
        {
            if let Some(before) = inner.state.live.filter(|before| Some(*before) != state.live) {
                inner.retired.insert(before, Instant::now());
            }
            if let Some(live) = state.live {
                inner.retired.remove(&live);
            }
            inner.state = state;
            inner.read_from = id;
        }
        inner
    }

    /// Accepts connections where the state says, until it says something else.
    fn listen(self: &Arc<Self>) -> Result<()> {
        let Some(port) = self.look().state.listen else {
            thread::sleep(TICK);
            return Ok(());
        };
        let listener = bind(&self.place, port)?;
        listener.set_nonblocking(true).context("setting the listener up")?;
        loop {
            let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, PollTimeout::from(TICK_MS));
            match listener.accept() {
                Ok((client, _)) => self.take(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors, say.
                Err(_) => thread::sleep(TRY_AGAIN),
            }
            let (wanted, open) = {
                let inner = self.look();
                (inner.state.listen, inner.open.values().sum::<usize>())
            };
            if wanted != Some(port) {
                return Ok(());
            }
            if open >= MAX_CONNECTIONS {
                thread::sleep(TRY_AGAIN);
            }
        }
    }

    fn take(self: &Arc<Self>, client: TcpStream) {
        let front = Arc::clone(self);
        let spawned = thread::Builder::new().stack_size(192 * 1024).spawn(move || {
            // What goes wrong on one connection is seen by its two ends.
            let _ = front.serve(client);
        });
        if let Err(error) = spawned {
            eprintln!("front: no thread for a connection: {error}");
        }
    }

    fn serve(&self, client: TcpStream) -> io::Result<()> {
        let Some((release, counted)) = self.connect() else { return Ok(()) };
        client.set_nodelay(true)?;
        release.set_nodelay(true)?;
        splice(&client, &release, || self.lock().retired.contains_key(&counted.version))
    }

    fn connect(&self) -> Option<(TcpStream, Counted<'_>)> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some((port, counted)) = self.choose()
                && let Ok(stream) = health::connect(port)
            {
                return Some((stream, counted));
            }
            thread::sleep(TRY_AGAIN);
        }
        None
    }

    fn choose(&self) -> Option<(u16, Counted<'_>)> {
        let mut inner = self.look();
        if inner.state.hold && turn::is_taken(&self.place) {
            return None;
        }
        let (version, port) = (inner.state.live?, inner.state.target?);
        *inner.open.entry(version).or_default() += 1;
        drop(inner);
        Some((port, Counted { front: self, version }))
    }

    /// Stops releases that have drained.
    fn retire(&self, runner: &dyn Runner) -> Result<()> {
        let state = self.look().state.clone();
        if state.hold && !turn::is_taken(&self.place) {
            // Whoever held was killed in the middle: what was live shall run.
            start_live(&self.place, &state, runner)?;
        }
        // Who has it is about to start releases again that may be retired.
        let Some(_sweep) = turn::try_sweep(&self.place)? else { return Ok(()) };
        let due: Vec<u64> = {
            let inner = self.look();
            let longest = Duration::from_secs(inner.state.drain_seconds);
            let is_due = |version: &u64, since: &Instant| {
                let open = inner.open.get(version).copied().unwrap_or(0);
                since.elapsed() > longest || (open == 0 && since.elapsed() > TICK)
            };
            inner.retired.iter().filter(|(version, since)| is_due(version, since)).map(|(v, _)| *v).collect()
        };
        for version in due {
            let units: Vec<Unit> =
                runner.running()?.into_iter().filter(|unit| unit.version == version).collect();
            runner.stop(&units)?;
            let mut inner = self.lock();
            // It may have become live again meanwhile.
            if inner.state.live != Some(version) {
                inner.retired.remove(&version);
            }
        }
        Ok(())
    }
}

/// Listens where this place serves; in a machine on every address, IPv4 too.
pub fn bind(place: &Place, port: u16) -> Result<TcpListener> {
    let bound = match place.test_listen {
        Some(port) => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
        None => TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    };
    bound.with_context(|| format!("listening on port {port}"))
}

/// Waits a little until the front listens there: it has just been told, or started.
pub fn listens(place: &Place, port: u16) -> bool {
    let started = Instant::now();
    while started.elapsed() < LISTENS {
        if health::connect(place.test_listen.unwrap_or(port)).is_ok() {
            return true;
        }
        thread::sleep(TRY_AGAIN);
    }
    false
}

/// One direction: what was read and not yet written.
struct Flow {
    buffer: Vec<u8>,
    written: usize,
    ended: bool,
    shut: bool,
}

impl Flow {
    fn new() -> Self {
        Self { buffer: Vec::new(), written: 0, ended: false, shut: false }
    }

    fn is_empty(&self) -> bool {
        self.written == self.buffer.len()
    }

    fn read(&mut self, mut from: &TcpStream, room: &mut [u8]) -> io::Result<bool> {
        if self.ended || !self.is_empty() {
            return Ok(false);
        }
        match from.read(room) {
            Ok(0) => self.ended = true,
            Ok(length) => {
                self.buffer.clear();
                self.buffer.extend_from_slice(&room[..length]);
                self.written = 0;
                return Ok(true);
            }
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    fn write(&mut self, mut to: &TcpStream) -> io::Result<()> {
        while !self.is_empty() {
            match to.write(&self.buffer[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if again(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.ended && !self.shut {
            self.shut = true;
            // The other end may be gone already.
            let _ = to.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Passes bytes both ways until both have ended. Ends it sooner when `drains` and it rests after an answer.
fn splice(client: &TcpStream, release: &TcpStream, drains: impl Fn() -> bool) -> io::Result<()> {
    client.set_nonblocking(true)?;
    release.set_nonblocking(true)?;
    let (mut request, mut answer) = (Flow::new(), Flow::new());
    let mut room = vec![0; CHUNK];
    // When the release last spoke, if it was the last to speak.
    let mut answered: Option<Instant> = None;
    loop {
        if request.read(client, &mut room)? {
            answered = None;
        }
        if answer.read(release, &mut room)? {
            answered = Some(Instant::now());
        }
        request.write(release)?;
        answer.write(client)?;
        if request.shut && answer.shut {
            return Ok(());
        }
        let interest = |reads: &Flow, writes: &Flow| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !reads.ended && reads.is_empty());
            flags.set(PollFlags::POLLOUT, !writes.is_empty());
            flags
        };
        let mut ends = [
            PollFd::new(client.as_fd(), interest(&request, &answer)),
            PollFd::new(release.as_fd(), interest(&answer, &request)),
        ];
        let events = poll(&mut ends, PollTimeout::from(TICK_MS)).map_err(io::Error::from)?;
        if events == 0 && answered.is_some_and(|at| at.elapsed() > REST) && drains() {
            return Ok(());
        }
        // Told only of a hang-up that neither direction asked about: nothing more can be passed on.
        let gone = |end: &PollFd<'_>| {
            end.revents().is_some_and(|seen| {
                seen.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL)
                    || (seen.contains(PollFlags::POLLHUP) && !seen.contains(PollFlags::POLLIN))
            })
        };
        if gone(&ends[0]) || (gone(&ends[1]) && answer.is_empty()) {
            return Ok(());
        }
        if gone(&ends[1]) {
            // The client reads slowly what the release has left; poll would not wait.
            thread::sleep(TRY_AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_and_ends_pass_both_ways() {
        let (mut person, client) = pair();
        let (release, mut program) = pair();
        let splicing = thread::spawn(move || splice(&client, &release, || false));
        let big = vec![7; 3_000_000];
        let sent = big.clone();
        let echo = thread::spawn(move || {
            let mut got = Vec::new();
            program.read_to_end(&mut got).unwrap();
            program.write_all(&got).unwrap();
        });
        person.write_all(&sent).unwrap();
        person.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        person.read_to_end(&mut got).unwrap();
        assert!(got == big);
        echo.join().unwrap();
        splicing.join().unwrap().unwrap();
    }

    #[test]
    fn a_resting_connection_ends_when_its_release_drains() {
        let (mut person, client) = pair();
        let (release, mut program) = pair();
        let splicing = thread::spawn(move || splice(&client, &release, || true));
        program.write_all(b"answer").unwrap();
        let started = Instant::now();
        let mut got = Vec::new();
        person.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"answer");
        assert!(started.elapsed() >= REST);
        splicing.join().unwrap().unwrap();
    }
}
