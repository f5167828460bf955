//! The API as its clients and the hosts see it. One program, because each would be linked with all that they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may: a failed unwrap is a failed test"
)]

mod access;
mod api;
mod certificates;
mod checks;
mod commands;
mod invites;
mod migration;
mod names;
mod support;
mod tokens;
mod updates;
