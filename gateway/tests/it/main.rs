//! The gateway as its clients see it. One program, because each would be linked with all that they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may: a failed unwrap is a failed test"
)]

mod alone;
mod common;
mod edge;
mod ssh;
