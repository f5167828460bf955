//! A machine's life: what should be, what is, and the one next step between them.
//!
//! Level-triggered: whenever a record or a report changes, each machine is looked at anew. [`decide`] is pure; the
//! [`driver`] does one action for a machine at a time and looks again, so a lost answer, a restart of control or a host that
//! comes back all lead through the same door.

mod decide;
mod driver;
mod outcome;
mod sweep;

pub use driver::Driver;
pub use outcome::{event, restart_or_stop};
