//! The commands against a real control. One program, because each would be linked with all that they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may: a failed unwrap is a failed test"
)]

mod binary;
mod certs;
mod commands;
mod dns;
mod people;
mod support;
