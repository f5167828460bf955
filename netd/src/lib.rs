//! One host's network: taps, addresses, routes, hand-over.
//!
//! - [`api`]: what netd is told and what it answers, over a unix socket of its own host.
//! - [`client`]: a blocking client for it, on the standard library alone.
//! - [`config`]: what the person who runs the host decides.
//! - [`view`]: what netd must know of the rest of the fleet, as a watched value.

pub mod api;
pub mod client;
pub mod config;
pub mod mac;
pub mod view;
