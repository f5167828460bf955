//! They hold one thing's time against another's: nothing else may run beside them.

mod crowds;
mod edge_crowds;
mod limits;
mod strangers;
