//! The agent: answers the host's questions over vsock (see [`mashines_guest::protocol`]) and its power button.
//!
//! Invariants: at most [`MAX_CONNECTIONS`] connections at a time, each with one thread and one request; a peer that says
//! nothing is dropped after [`REQUEST_TIMEOUT`]; no request can end the agent.

mod button;
mod clock;
mod exec;
mod ops;
mod shutdown;
mod ssh;
mod vsock;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mashines_guest::Config;
use mashines_guest::protocol::{MAX_LINE, PORT, Request, Response};

pub use clock::status;
pub use ssh::{SSH_CONFIG, SSH_PROGRAM};

use crate::log;
use vsock::{Listener, Stream};

/// Where init leaves what the agent needs. /run is a tmpfs: nothing of it outlives the boot.
pub const AGENT_DIRECTORY: &str = "/run/mashines";
/// The agent's program.
pub const AGENT_PROGRAM: &str = "/run/mashines/agent";
/// The machine's configuration without its secrets.
pub const AGENT_CONFIG: &str = "/run/mashines/config.json";

const MAX_CONNECTIONS: usize = 32;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a vsock device there is nobody to serve; one may still be plugged in.
const RETRY: Duration = Duration::from_secs(10);

/// Serves for ever.
pub fn run() {
    let config = Arc::new(read_config().unwrap_or_else(|error| {
        log::console(format_args!("the agent goes on without the machine's configuration: {error:#}"));
        Config::new("", "")
    }));
    button::watch();
    ssh::keep(&config);
    loop {
        if let Err(error) = serve(&config) {
            log::note(format_args!("agent: {error:#}; trying again in {} s", RETRY.as_secs()));
        }
        sleep(RETRY);
    }
}

fn read_config() -> Result<Config> {
    let text = fs::read(AGENT_CONFIG).with_context(|| format!("reading {AGENT_CONFIG}"))?;
    serde_json::from_slice(&text).with_context(|| format!("understanding {AGENT_CONFIG}"))
}

fn serve(config: &Arc<Config>) -> Result<()> {
    let listener = Listener::bind(PORT)?;
    let connections = Arc::new(AtomicUsize::new(0));
    log::note(format_args!("agent: listening on vsock port {PORT}"));
    loop {
        let stream = listener.accept(REQUEST_TIMEOUT)?;
        let slot = Slot::take(&connections);
        let config = Arc::clone(config);
        let thread = std::thread::Builder::new().name("request".to_owned()).spawn(move || {
            if let Err(error) = answer(stream, &config, slot.is_some()) {
                log::note(format_args!("agent: {error:#}"));
            }
            drop(slot);
        });
        if let Err(error) = thread {
            log::note(format_args!("agent: no thread for a connection: {error}"));
        }
    }
}

/// One of the [`MAX_CONNECTIONS`]; given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(connections: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = connections
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < MAX_CONNECTIONS).then_some(n + 1));
        taken.ok().map(|_| Self(Arc::clone(connections)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(mut stream: Stream, config: &Config, has_slot: bool) -> Result<()> {
    let response = if has_slot {
        match read_request(&mut stream) {
            Ok(request) => ops::carry_out(&request, config, || stream.peer_gone()),
            Err(error) => Response::Error { error: format!("{error:#}") },
        }
    } else {
        Response::Error {
            error: format!("the agent serves {MAX_CONNECTIONS} connections already; try again"),
        }
    };
    let mut line = serde_json::to_vec(&response).context("writing an answer as JSON")?;
    line.push(b'\n');
    stream.write_all(&line).context("sending an answer")?;
    ops::afterwards(&response);
    Ok(())
}

fn read_request(stream: impl Read) -> Result<Request> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE)? + 1;
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut line).with_context(|| {
        format!("no whole request came within {} s of silence", REQUEST_TIMEOUT.as_secs())
    })?;
    if line.pop() != Some(b'\n') {
        bail!("a request is one line of at most {MAX_LINE} bytes; this one has no end");
    }
    serde_json::from_slice(&line).context("a request that is not understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line() {
        assert_eq!(read_request(&b"{\"op\":\"ready\"}\nrest"[..]).unwrap(), Request::Ready);
        assert!(read_request(&b"{\"op\":\"ready\"}"[..]).is_err());
        assert!(read_request(&b"{\"op\":\"dance\"}\n"[..]).is_err());
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_cap() {
        let error = read_request(std::io::repeat(b'x')).unwrap_err();
        assert!(error.to_string().contains("1048576"), "{error}");
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let connections = Arc::new(AtomicUsize::new(0));
        let mut slots: Vec<_> = (0..MAX_CONNECTIONS).map(|_| Slot::take(&connections).unwrap()).collect();
        assert!(Slot::take(&connections).is_none());
        slots.pop();
        assert!(Slot::take(&connections).is_some());
    }
}
