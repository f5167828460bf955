//! Live migration.

pub mod machine;
mod region;
