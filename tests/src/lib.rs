//! The lab's fleet and the people in front of it, for the end-to-end tests, the demo and the benches.
//!
//! Hosts are network namespaces of one kernel joined by a bridge: one clock, so what two of them saw can be compared.
//!
//! ```text
//!                 client                    the internet: a person, 198.51.100.2, 2001:db8:1::2
//!                   │
//!                 entry                     gateway, dns, netd; 198.51.100.1, 2001:db8:1::1
//!                   │
//!   ctl ────────── sw (bridge) ──────── a   control, and two hosts (host daemon, netd, monitors)
//!                         └──────────── b
//! ```

pub mod bench_guest;
pub mod browser;
pub mod config;
pub mod daemons;
pub mod deploy;
pub mod disk;
pub mod drops;
pub mod figures;
pub mod guest;
pub mod issuer;
pub mod lab;
pub mod monitor;
pub mod names;
pub mod netns;
pub mod peer;
pub mod person;
pub mod probe;
pub mod run;
pub mod stream;
pub mod through;
pub mod web;
