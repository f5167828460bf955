//! Volumes on this host: the `local` driver, one sparse file each.
//!
//! A volume's file is made by control's word, with the first machine that has it, or by a move that arrives. It is removed only
//! by control's word, or with a start or a move that failed and had made it.

use mashines_fleet::host_api::PutVolume;
use mashines_fleet::id::VolumeId;

use crate::error::{Context, HostError, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::{capacity, files, instance};

const MIB: u64 = 1 << 20;

/// The volumes whose files are here.
pub fn list(layout: &Layout) -> Vec<VolumeId> {
    let names = instance::names_in(&layout.volumes()).unwrap_or_default();
    names.iter().filter_map(|name| name.strip_suffix(".img")?.parse().ok()).collect()
}

impl Host {
    /// Makes a volume exist. One that exists already must have that size.
    pub fn put_volume(&self, id: &VolumeId, volume: &PutVolume) -> Result<()> {
        if *id != volume.id {
            return Err(HostError::invalid(format!("the path names volume {id}, the body {}", volume.id)));
        }
        let path = self.layout.volume(id);
        if volume.size_mib == 0 || volume.size_mib > u64::MAX / MIB {
            return Err(HostError::invalid(format!(
                "volume {id}: a size of {} MiB is none",
                volume.size_mib
            )));
        }
        if !path.exists() {
            capacity::check_free(&self.config.capacity, self.layout.state())?;
            if volume.size_mib > self.capacity.disk_mib {
                return Err(HostError::no_room(format!(
                    "volume {id} of {} MiB is larger than this host's disk of {} MiB",
                    volume.size_mib, self.capacity.disk_mib
                )));
            }
        }
        files::create_sparse(&path, volume.size_mib * MIB)?;
        self.changed();
        Ok(())
    }

    /// Removes a volume's bytes for good. Done as well when there are none.
    pub fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        let user = self.machines().into_iter().find_map(|m| {
            let instance = m.instance()?;
            instance.spec.volumes.iter().any(|v| v.id == *id).then(|| m.id().clone())
        });
        if let Some(machine) = user {
            return Err(HostError::conflict(format!(
                "volume {id} is attached to machine {machine} on this host: remove the machine first"
            )));
        }
        match std::fs::remove_file(self.layout.volume(id)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).doing(|| format!("remove volume {id}")),
        }
        self.changed();
        Ok(())
    }
}
