//! One microVM: KVM, devices, live migration.

mod acpi;
pub mod api;
mod boot;
mod bus;
mod clock;
mod console_ring;
mod control;
mod cpu;
mod devices;
mod dirty;
mod kvm_ext;
mod layout;
mod memory;
pub mod migrate;
mod migrations;
mod num;
mod power;
mod priority;
pub mod run;
mod sections;
mod serial;
mod snapshot;
mod virtio;
mod vm;
mod vm_migrate;

pub use vm::Vm;
