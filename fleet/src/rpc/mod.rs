//! Calls between daemons, and the listener for them: HTTP/JSON over mutual TLS.
//!
//! A [`Client`] speaks to one peer and states whose certificate it expects there, a [`Control`] to the first of several that
//! answers; [`serve`] runs an axum router and puts
//! the caller's verified name, a [`Peer`], into each request's extensions. Both sides are bounded: connections,
//! handshakes, heads and bodies have limits, so that a peer that says nothing or too much costs little.

mod client;
mod control;
mod server;

pub use client::{Client, Empty, Lines, RpcError};
pub use control::Control;
pub use server::{Limits, Peer, serve};

#[cfg(test)]
mod tests;
