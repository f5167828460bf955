//! A move of a running machine as a saga: each step is in the store before it is begun, so whoever takes over goes on.
//!
//! - `next`: the decision, pure: what to do, given the step and what each side says.
//! - `saga`: the executor: asks both sides, does one action, looks again.
//! - `begin`: how a move is asked for, and asked to end.
//! - `drain`: all machines of a host, a few at a time.

mod begin;
mod drain;
mod next;
mod saga;
mod settle;

pub use begin::{Asked, Terms, begin, cancel};
pub use drain::{begin as begin_drain, state as drain_state};

use crate::control::Control;

/// Takes up every saga and drain of the store that does not run in this process.
pub fn resume(control: &Control) {
    for migration in control.view().migrations.values().filter(|m| !m.step.is_final()) {
        saga::start(control, &migration.id);
    }
    drain::resume(control);
}
