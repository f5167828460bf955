//! One microVM: KVM, devices, live migration.

pub mod api;
pub mod migrate;
