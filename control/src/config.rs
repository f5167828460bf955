//! The `[control]` section of `mashinesd`'s configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::zone_keys::Timing;

/// How control runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the API listens, for people and for daemons.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Names and addresses besides `control.mashines.internal` that the certificate is made for, at `init`.
    #[serde(default)]
    pub names: Vec<String>,
    /// The store's file; `control.sqlite` in the daemon's directory when absent.
    #[serde(default)]
    pub store: Option<PathBuf>,
    /// Machines that a drain moves at the same time.
    #[serde(default = "two")]
    pub drain_parallel: usize,
    /// The blackout that a migration aims for when nobody says otherwise, milliseconds.
    #[serde(default = "budget")]
    pub blackout_budget_ms: u64,
    /// How long a migration may take when nobody says otherwise, seconds.
    #[serde(default = "timeout")]
    pub migration_timeout_s: u64,
    /// Resolvers that are asked whether a domain's owner wants it here, and what zones' parents have; those of `/etc/resolv.conf` when
    /// empty. One that validates DNSSEC makes the proof as strong as the domain's zone.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// How long caches may keep what they know of a zone: what a rollover of its keys waits for.
    #[serde(default)]
    pub zone_keys: Timing,
    /// How often the parents of zones are looked at, seconds.
    #[serde(default = "parent_look")]
    pub parent_look_s: u64,
}

fn listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8443))
}

fn two() -> usize {
    2
}

fn budget() -> u64 {
    20
}

fn parent_look() -> u64 {
    60
}

fn timeout() -> u64 {
    600
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: listen(),
            names: Vec::new(),
            store: None,
            drain_parallel: two(),
            blackout_budget_ms: budget(),
            migration_timeout_s: timeout(),
            resolvers: Vec::new(),
            zone_keys: Timing::default(),
            parent_look_s: parent_look(),
        }
    }
}

impl Config {
    /// The store's file.
    pub fn store_path(&self, state_dir: &Path) -> PathBuf {
        self.store.clone().unwrap_or_else(|| state_dir.join("control.sqlite"))
    }
}
