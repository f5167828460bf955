//! What should be: REST API, scheduler, lifecycle and migration sagas.
//!
//! ```text
//! people, CLI, lobby ── REST ──┐                       ┌── change stream ──▶ replicas
//!                              ▼                       │
//!                    api ─▶ records (store + view) ────┘
//!                              ▲          │ what should be
//!   hosts' reports ─▶ hosts ───┤          ▼
//!                              └── lifecycle, migration: pure decisions, thin executors ── calls ──▶ hosts
//! ```
//!
//! Invariants:
//! - Control is the only writer of records; each write is a transaction that fails when what it was decided from has changed.
//! - Decisions are pure functions (`scheduler::choose`, `lifecycle::decide`, `migration::next`); executors do one action
//!   and look again. Killed at any point, control goes on from the store.
//! - A machine's epoch rises by compare-and-swap, once a start and once a move.

mod addresses;
mod api;
mod certificates;
mod checks;
mod config;
mod control;
mod failure;
mod found;
mod hosts;
mod invites;
mod lifecycle;
mod migration;
mod newcomers;
mod records;
mod resolver;
mod scheduler;
mod signed;
mod ssh_ca;
#[cfg(test)]
mod testing;
mod time;
mod usage;
mod zone_keys;

pub use config::Config;
pub use control::{run, run_with};
pub use failure::{Failure, Kind};
pub use found::{Founded, Founding, init, join_token};
pub use zone_keys::Timing;
