//! The control socket: one JSON request a line, one JSON reply a line (see [`crate::api`]).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use tracing::{debug, warn};

use crate::api::{MAX_LINE, Reply, Request, Status};
use crate::migrations::Migrations;
use crate::power::Exit;
use crate::snapshot;
use crate::vm::Vm;

/// Connections served at once; the host daemon needs one or two.
const MOST_CONNECTIONS: usize = 16;

/// What the socket controls.
struct Monitor {
    vm: Arc<Vm>,
    migrations: Migrations,
}

/// Serves the socket at `path` until the process ends. A socket file left over from a dead process is replaced.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, vm: Arc<Vm>) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on the socket {}", path.display()))?;
    let monitor = Arc::new(Monitor { vm, migrations: Migrations::default() });
    thread::Builder::new()
        .name("control".into())
        .spawn(move || accept(&listener, &monitor))
        .context("start the control thread")?;
    Ok(())
}

fn accept(listener: &UnixListener, monitor: &Arc<Monitor>) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if connections.load(Ordering::Acquire) >= MOST_CONNECTIONS {
            warn!("a control connection was refused: {MOST_CONNECTIONS} are open already");
            continue;
        }
        connections.fetch_add(1, Ordering::AcqRel);
        let (monitor, count) = (Arc::clone(monitor), Arc::clone(&connections));
        let body = move || {
            if let Err(error) = connection(&stream, &monitor) {
                debug!(error = format!("{error:#}"), "a control connection ended");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().name("control-conn".into()).spawn(body).is_err() {
            connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn connection(stream: &UnixStream, monitor: &Monitor) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let limit = MAX_LINE as u64 + 1;
        (&mut reader).take(limit).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() > MAX_LINE {
            answer(stream, &error(format!("the request is longer than {MAX_LINE} bytes")))?;
            return Ok(());
        }
        let reply = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => handle(request, monitor),
            Err(reason) => error(format!("not a request: {reason}")),
        };
        answer(stream, &reply)?;
    }
}

fn answer(mut stream: &UnixStream, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn error(error: String) -> Reply {
    Reply::Error { error }
}

fn done(result: Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Ok,
        Err(reason) => error(format!("{reason:#}")),
    }
}

fn handle(request: Request, monitor: &Monitor) -> Reply {
    let Monitor { vm, migrations } = monitor;
    match request {
        Request::Status => Reply::Status(Box::new(status(monitor))),
        Request::Pause => done(migrations.unless_migrating("pause", || vm.pause())),
        Request::Resume => done(migrations.unless_migrating("resume", || vm.resume())),
        Request::PowerButton => {
            vm.press_power_button();
            Reply::Ok
        }
        Request::Kill => {
            vm.end(Exit::PowerOff);
            Reply::Ok
        }
        Request::Snapshot { directory } => {
            done(migrations.unless_migrating("snapshot", || snapshot::write(vm, &directory)))
        }
        Request::Console => Reply::Console { text: String::from_utf8_lossy(&vm.console()).into_owned() },
        Request::MigrateOut(request) => done(migrations.start_out(vm, request)),
        Request::MigrateCancel => done(migrations.cancel()),
        Request::MigrateIn(request) => match migrations.start_in(vm, request) {
            Ok(address) => Reply::Listening { address },
            Err(reason) => error(format!("{reason:#}")),
        },
        Request::Resolve { run } => done(migrations.resolve(run)),
    }
}

fn status(monitor: &Monitor) -> Status {
    let vm = &monitor.vm;
    let phase = *vm.phase();
    let (migration, migrating) = monitor.migrations.status();
    Status {
        machine_id: vm.spec.machine_id.clone(),
        epoch: phase.epoch,
        state: phase.state,
        migration,
        migrating,
        cpu_time_us: u64::try_from(vm.cpu_time().as_micros()).unwrap_or(u64::MAX),
        resident_bytes: resident_bytes(),
    }
}

/// Resident bytes of this process, 0 where `/proc` does not tell.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * crate::memory::PAGE
}
