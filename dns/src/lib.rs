//! Authoritative names of the fleet.
//!
//! ```text
//! replica ──project──▶ Zone ──┬── UDP: packet ──answer──▶ packet
//! (View)   pure, zone.rs      └── TCP: the same, framed
//! ```
//!
//! [`zone::Zone::project`] and [`answer::answer`] are pure. What is left here is sockets. The server never asks control
//! anything: it answers from the replica while control is down, and a new machine's name is served as soon as its
//! record is in the replica.

pub mod internal;
pub mod kind;
pub mod message;
pub mod name;
pub mod operations;
pub mod reverse;
pub mod rrset;
pub mod sign;
mod sshfp;
pub mod transfer;
pub mod tsig;
pub mod update;
pub mod zone;
