//! What the two sides agree on before any page flows: protocol, migration, machine, epoch, shape.
//!
//! ```text
//! source                        destination
//!   control: Hello ───────────▶  right migration? same machine, memory, disks, CPU?
//!            ◀─────────── Welcome (or Abort with the first difference)
//!   stream n: Hello ──────────▶  (n = 1..=streams, each its own TCP and TLS connection)
//!            ◀───────────── Ready
//! ```

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::frame::VERSION;
use super::machine::Description;

/// The first message on each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol version the source speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// The migration.
    pub migration_id: String,
    /// The machine.
    pub machine_id: String,
    /// The epoch it will run in at the destination.
    pub next_epoch: u64,
    /// What the connection is for.
    pub role: Role,
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The one control connection.
    Control {
        /// How many data streams follow.
        streams: u16,
        /// What the destination must match.
        description: Box<Description>,
    },
    /// A data stream.
    Data {
        /// From 1.
        stream: u16,
    },
}

/// The destination's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both sides use from now on.
    pub version: u16,
}

/// The start of the SHA-256 of a migration's id: what each frame carries of it.
#[must_use]
pub fn migration_hash(migration_id: &str) -> u64 {
    let digest = Sha256::digest(migration_id.as_bytes());
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

/// The newest version both speak.
///
/// # Errors
/// When there is none.
pub fn agree(hello: &Hello) -> Result<Welcome> {
    ensure!(
        hello.oldest <= VERSION && hello.newest >= VERSION,
        "the source speaks migration protocol {} to {}, this monitor {VERSION}: update the older host first",
        hello.oldest,
        hello.newest
    );
    Ok(Welcome { version: VERSION })
}

/// Compares all that needs no knowledge of CPUs and devices.
///
/// # Errors
/// Names the first difference.
pub fn compatible(source: &Description, mine: &Description) -> Result<()> {
    ensure!(
        source.machine_id == mine.machine_id,
        "machine {} was expected, not {}",
        mine.machine_id,
        source.machine_id
    );
    ensure!(
        source.vcpus == mine.vcpus,
        "the machine has {} vCPUs, {} are prepared here",
        source.vcpus,
        mine.vcpus
    );
    ensure!(
        source.memory == mine.memory,
        "the machine's RAM is laid out as {:x?}, here as {:x?}",
        source.memory,
        mine.memory
    );
    for (index, disk) in source.disks.iter().enumerate() {
        let here = mine.disks.get(index).with_context(|| format!("disk {} is not prepared here", disk.id))?;
        ensure!(
            disk == here,
            "disk {index} is {} of {} bytes (read-only: {}), here {} of {} bytes (read-only: {})",
            disk.id,
            disk.size_bytes,
            disk.read_only,
            here.id,
            here.size_bytes,
            here.read_only
        );
    }
    if let Some(extra) = mine.disks.get(source.disks.len()) {
        bail!("disk {} is prepared here, but the machine has no such disk", extra.id);
    }
    Ok(())
}
