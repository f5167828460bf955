//! `mashines-guest-ssh`: SSH in a machine whose image has no sshd.
//!
//! ```text
//! mashines-guest-ssh serve CONFIG [ADDRESS]   the server, on port 22 of all addresses (see server)
//! mashines-guest-ssh sftp                     one SFTP session on standard input and output (see sftp)
//! ```
//!
//! ```text
//! agent ─starts─▶ serve ─▶ handler (thin) ─┬─▶ session ─▶ shell, command, or `mashines-guest-ssh sftp`
//!                          access (pure)   └─▶ forward ─▶ TCP, unix sockets
//! ```
//!
//! It behaves as OpenSSH's sshd does with its default settings, so that nobody has to know which of the two they talk to. Beyond it: what
//! is left of a session is ended with its client, and an image without any shell can still run its programs.

mod access;
mod forward;
mod handler;
mod program;
mod remote;
mod resolve;
mod server;
mod session;
mod sftp;
mod spawn;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let outcome = match words.as_slice() {
        ["serve", config] => server::run(config, server::EVERYWHERE),
        ["serve", config, address] => server::run(config, address),
        ["sftp"] => sftp::run(),
        _ => {
            note("usage: mashines-guest-ssh serve CONFIG [ADDRESS] | sftp");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line of the log: standard error, which is the kernel's log when the agent started this. One write, so that it stays one line there.
fn note(text: impl std::fmt::Display) {
    use std::io::Write as _;
    // There is nobody to tell when telling fails.
    let _ = std::io::stderr().write_all(format!("mashines-guest-ssh: {text}\n").as_bytes());
}
