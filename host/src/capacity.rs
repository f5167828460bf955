//! What a host offers: what its operator says, else what it has.

use std::path::Path;

use mashines_fleet::record::Capacity;

use crate::config::CapacityConfig;
use crate::error::{Context, HostError, Result};
use crate::files;

/// vCPUs that are promised for each CPU: most machines idle.
const VCPUS_PER_CPU: u32 = 4;

const MIB: u64 = 1 << 20;

/// The capacity of this host, whose machines' disks lie below `state`.
pub fn measure(config: &CapacityConfig, state: &Path) -> Result<Capacity> {
    let vcpus = match config.vcpus {
        Some(vcpus) => vcpus,
        None => cpus()?.saturating_mul(VCPUS_PER_CPU),
    };
    let memory_mib = match config.memory_mib {
        Some(memory) => memory,
        // An eighth stays for the host's kernel, its daemons and the monitors' own needs.
        None => total_memory_mib() / 8 * 7,
    };
    let disk_mib = match config.disk_mib {
        Some(disk) => disk,
        None => total_disk_mib(state)?,
    };
    Ok(Capacity { vcpus, memory_mib, disk_mib })
}

/// Refuses when the disk itself runs short, whatever was promised: sparse files make promises cheap.
pub fn check_free(config: &CapacityConfig, state: &Path) -> Result<()> {
    let reserve = config.disk_reserve_mib.unwrap_or(512);
    let free = files::free_bytes(state)? / MIB;
    if free >= reserve {
        return Ok(());
    }
    Err(HostError::no_room(format!(
        "no room on this host: {free} MiB are free below {}, {reserve} MiB are kept in reserve",
        state.display()
    )))
}

fn cpus() -> Result<u32> {
    let cpus = std::thread::available_parallelism().doing(|| "count the CPUs".to_owned())?;
    Ok(u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

fn total_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let units = u64::from(info.mem_unit);
    info.totalram.saturating_mul(units) / MIB
}

fn total_disk_mib(state: &Path) -> Result<u64> {
    let fs = rustix::fs::statvfs(state).doing(|| format!("ask for the size of {}", state.display()))?;
    Ok(fs.f_blocks.saturating_mul(fs.f_frsize) / MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_word_outweighs_the_measure() {
        let config = CapacityConfig { vcpus: Some(3), ..CapacityConfig::default() };
        let capacity = measure(&config, Path::new("/")).unwrap();
        assert_eq!(capacity.vcpus, 3);
        assert!(capacity.memory_mib > 0 && capacity.disk_mib > 0);
    }

    #[test]
    fn a_full_disk_takes_nothing_new() {
        let config = CapacityConfig { disk_reserve_mib: Some(u64::MAX), ..CapacityConfig::default() };
        assert!(check_free(&config, Path::new("/")).unwrap_err().message.contains("in reserve"));
    }
}
