//! git's end of a push or a fetch: what sshd runs for the gateway.
//!
//! ```text
//! mashines-guest git receive-pack [--protocol VALUE] [--by WHO]
//! mashines-guest git upload-pack [--protocol VALUE]
//! mashines-guest git upload-archive
//! ```
//!
//! This program becomes git; not a byte passes through here. What it leaves behind for the hook are two open files: the turn, and one more of
//! stdout, by which the hook sees whether the client is still there (see watch). git itself would notice when it next writes, which in a silent
//! build is late.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::place::Place;
use super::repository::Repository;
use super::{turn, watch};

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    service: &'static str,
    protocol: Option<String>,
    by: Option<String>,
}

/// Becomes git; returns only when it cannot.
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
    let _open = match session.service {
        "receive-pack" => Some((turn::hand_down(place, &mut command)?, watch::hand_down(&mut command)?)),
        _ => None,
    };
    Err(command.exec()).context("starting git")
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
