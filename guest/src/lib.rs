//! Inside the machine: what the host tells a guest ([`config`]), how the telling travels ([`cpio`]), what the
//! host can ask the agent ([`protocol`]), and what people ask about releases ([`deployment`]). The binary `mashines-guest` is the
//! other end of all four.
//!
//! ```text
//! host: Config ──config_archive──▶ a second cpio archive behind the image's initrd
//! guest kernel: unpacks both into one initramfs ──▶ /init = mashines-guest reads /mashines/config.json
//! host ◀── one JSON line each way, vsock port 1024 ──▶ agent
//! ```

pub mod certificate;
pub mod config;
pub mod cpio;
pub mod deployment;
pub mod protocol;
pub mod words;

pub use config::Config;
pub use cpio::config_archive;
