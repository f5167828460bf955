//! Virtual CPUs: what they look like (`cpuid`, `msr`), their threads (`vcpu`, `kick`) and their saved state (`state`).

pub mod cpuid;
mod cpuid_names;
pub mod kick;
pub mod msr;
pub mod state;
pub mod throttle;
pub mod vcpu;
