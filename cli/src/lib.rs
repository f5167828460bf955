//! The `mashines` command tree, as a library: the binary runs it on a person's machine, the SSH lobby runs it at the gateway.
//!
//! ```text
//!   main.rs ── Session::local() ──┐
//!                                 ├─► run(args, session) ─► commands/*.rs ─► Client ─► REST API
//!   gateway ── Session::lobby() ──┘            │
//!                                              └─► session.stdout: the answer; session.stderr: progress, errors
//! ```
//!
//! Invariants:
//! - A command touches the outside only through its [`Session`]: nothing here prints, reads the environment or asks the process's
//!   terminal when the session is a lobby's.
//! - With `--json`, standard output gets exactly one JSON document, also when the command fails
//!   (`{"error", "code", "next"?}`); without it, only the answer. Progress and errors for people go to standard error.
//! - The exit codes are those of [`Exit`], and the remote command's own for `exec`, `enter` and `cp`.

pub mod client;
pub mod commands;
pub mod deployment;
pub mod doors;
pub mod error;
pub mod figures;
pub mod https;
pub mod kvm;
pub mod parse;
pub mod progress;
pub mod session;
pub mod settings;
pub mod ssh;
pub mod suggest;
pub mod text;
pub mod words;

pub use client::{CallError, Client, Request, Transport};
pub use commands::{command_names, complete, run};
pub use error::{CliError, Exit};
pub use session::{Place, Session};
