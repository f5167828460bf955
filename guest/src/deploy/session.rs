//! git's end of a push or a fetch: what sshd runs for the gateway.
//!
//! ```text
//! mashines-guest git receive-pack [--protocol VALUE] [--by WHO]
//! mashines-guest git upload-pack [--protocol VALUE]
//! mashines-guest git upload-archive
//! ```
//!
//! git has our stdin, stdout and stderr; not a byte passes through here. We only look whether the client is still there: git itself notices
//! when it next writes, which in a silent build is late. sshd gives a command without a terminal no signal when its client goes; what it does
//! is close its ends, which poll(2) tells: POLLHUP on a socket, POLLERR on a pipe. The end of stdin says nothing, since a client closes that
//! as soon as the pack is sent.

use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::Place;
use super::repository::Repository;
use super::{tether, turn};

/// How long git has to end by itself when its client has gone.
const GRACE: Duration = Duration::from_secs(3);
const POLL_MS: u8 = 20;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    service: &'static str,
    protocol: Option<String>,
    by: Option<String>,
}

/// Serves it, and gives git's exit code.
pub fn run(place: &Place, arguments: &[String]) -> Result<i32> {
    let session = Session::parse(arguments)?;
    let repository = Repository::open(place)?;
    let mut command = Command::new("git");
    command.arg(session.service).arg(repository.path());
    if let Some(protocol) = &session.protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    if let Some(by) = &session.by {
        command.env("MASHINES_BY", by);
    }
    command.env("MASHINES_AGENT", std::env::current_exe().context("finding this program")?);
    let _turn = match session.service {
        "receive-pack" => Some(turn::hand_down(place, &mut command)?),
        _ => None,
    };
    let mut child = tether::die_with_parent(&mut command).spawn().context("starting git")?;
    Ok(wait(&mut child)?.code().unwrap_or(128))
}

impl Session {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut words = arguments.iter().map(String::as_str);
        let service = match words.next() {
            Some("receive-pack") => "receive-pack",
            Some("upload-pack") => "upload-pack",
            Some("upload-archive") => "upload-archive",
            Some(other) => {
                bail!("'{other}' is no service of git's; there are receive-pack, upload-pack, upload-archive")
            }
            None => bail!("git receive-pack, upload-pack or upload-archive?"),
        };
        let mut session = Self { service, protocol: None, by: None };
        while let Some(word) = words.next() {
            let Some(value) = words.next() else { bail!("{word} needs a value") };
            match word {
                "--protocol" if is_protocol(value) => session.protocol = Some(value.to_owned()),
                "--protocol" => bail!("{value:?} is no GIT_PROTOCOL: version=2 and the like"),
                "--by" => session.by = Some(super::report::clean(value)),
                _ => bail!("unknown option {word}; there are --protocol and --by"),
            }
        }
        Ok(session)
    }
}

fn is_protocol(value: &str) -> bool {
    value.len() <= 200 && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=:-._".contains(&byte))
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("waiting for git")? {
            return Ok(status);
        }
        if client_gone() {
            return end(child);
        }
    }
}

/// Waits a little, and says whether the other end of stdout is closed.
fn client_gone() -> bool {
    let stdout = std::io::stdout();
    let mut ends = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    poll(&mut ends, PollTimeout::from(POLL_MS)).is_ok_and(|ready| ready > 0)
        && ends[0].revents().is_some_and(|events| events.intersects(closed))
}

/// git removes the quarantined objects when it is asked to end; the hook sees its parent gone, and ends the build.
fn end(child: &mut Child) -> Result<ExitStatus> {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let started = Instant::now();
    while started.elapsed() < GRACE {
        if let Some(status) = child.try_wait().context("waiting for git")? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("ending git")?;
    child.wait().context("waiting for git")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Session> {
        Session::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_gateways_lines_read() {
        let session = parse("receive-pack --protocol version=2 --by alice").unwrap();
        assert_eq!((session.service, session.protocol.as_deref()), ("receive-pack", Some("version=2")));
        assert_eq!(session.by.as_deref(), Some("alice"));
        assert_eq!(parse("upload-archive").unwrap().protocol, None);
    }

    #[test]
    fn what_is_no_line_of_the_gateways_is_refused() {
        for line in ["", "gc", "receive-pack /path", "receive-pack --protocol a;b", "upload-pack --by"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
