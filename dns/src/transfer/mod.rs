//! Copies of our zones at other people's servers: AXFR (RFC 5936), IXFR (RFC 1995), NOTIFY (RFC 1996).
//!
//! ```text
//! Zones ──publish, in a thread──▶ ZoneCopy ──▶ Published: the copy and the last changes
//!        when something changed,              │              │
//!        and in each new period               ▼              ▼
//!                                     stream: AXFR, IXFR   notify: "there is a new serial", until it is heard
//! ```
//!
//! - Nobody gets a zone who is not named in the configuration, by address, and by key where one is named.
//! - A copy costs a look at every name and a signature for each set that changed, so it is made some time after a change: at once when the
//!   last one took little, later when it took long ([`publish`]).

pub mod copy;
pub mod journal;
pub mod notify;
mod publish;
pub mod secondary;
pub mod stream;

pub use publish::{Board, publish};
