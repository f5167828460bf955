//! The gateway's own SSH connections to machines: it enters as root with a short-lived certificate of the platform's SSH CA.
//!
//! Invariants:
//! - A connection carries one client channel at a time. russh grants window as data arrives, so a channel that nobody reads
//!   blocks its whole connection; with one channel there is nobody else to block. Guests' `MaxSessions` never bites either.
//! - A connection whose channel ended cleanly is kept for the next channel of the same account and machine, so that a second
//!   `ssh web@… true` costs no key exchange. One that forwarded an agent is not kept.
//! - What a machine opens by itself (agent, `-R`) goes to the one client that the connection serves, and to nobody else.
//! - It survives a move: the machine keeps its address, and nothing here looks at where it is.

mod connect;
pub mod credentials;
pub mod pins;
mod pool;

pub use connect::{Taker, UpstreamError};
pub use pool::{Lease, Listening, Place, Pool, Wanted};
