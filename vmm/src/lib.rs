//! One microVM: KVM, devices, live migration.
