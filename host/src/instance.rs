//! The durable record of a machine on this host.

use mashines_fleet::host_api::{LocalState, MachineSpec};
use mashines_fleet::id::{Epoch, MachineId, MigrationId};
use serde::{Deserialize, Serialize};

use crate::error::{HostError, Result};
use crate::files;
use crate::layout::{Layout, MachineDir};
use crate::process::Process;

/// A machine on this host: what it is, the epoch it has here, how far its life has come.
///
/// It is on disk before anything that it describes is done: a daemon that died in between finds the intent, and looks what
/// became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// What it is.
    pub spec: MachineSpec,
    /// The epoch it has here.
    pub epoch: Epoch,
    /// How far its life has come.
    pub phase: LocalState,
    /// Why it is there.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its monitor, once it was started.
    #[serde(default)]
    pub process: Option<Process>,
    /// The move that this instance takes part in, or took part in last.
    #[serde(default)]
    pub migration: Option<MigrationId>,
}

impl Instance {
    /// The machine.
    pub fn id(&self) -> &MachineId {
        &self.spec.id
    }

    /// Its paths.
    pub fn dir(&self, layout: &Layout) -> MachineDir {
        layout.machine(&self.spec.id)
    }

    /// Makes the record durable.
    pub fn store(&self, layout: &Layout) -> Result<()> {
        files::store_json(&self.dir(layout).instance(), self)
    }
}

/// All records of machines; damaged ones are told apart so that one of them does not stop the rest.
pub fn load_all(layout: &Layout) -> Result<(Vec<Instance>, Vec<HostError>)> {
    let mut found = Vec::new();
    let mut damaged = Vec::new();
    for name in names_in(&layout.machines())? {
        let Ok(id) = name.parse::<MachineId>() else { continue };
        match files::load_json::<Instance>(&layout.machine(&id).instance()) {
            Ok(Some(instance)) if instance.spec.id == id => found.push(instance),
            Ok(Some(other)) => damaged.push(HostError::internal(format!(
                "the record of machine {id} names machine {}: it was copied by hand",
                other.spec.id
            ))),
            Ok(None) => {}
            Err(e) => damaged.push(e),
        }
    }
    Ok((found, damaged))
}

/// The highest epoch of a machine that may never start here again, though its directory may be gone.
pub fn fence(layout: &Layout, id: &MachineId) -> Result<Option<Epoch>> {
    files::load_json(&layout.fence(id))
}

/// Raises the fence of a machine.
pub fn raise_fence(layout: &Layout, id: &MachineId, epoch: Epoch) -> Result<()> {
    match fence(layout, id)? {
        Some(higher) if higher >= epoch => Ok(()),
        Some(_) | None => files::store_json(&layout.fence(id), &epoch),
    }
}

/// The names of what is in a directory, in order.
pub(crate) fn names_in(dir: &std::path::Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(|e| HostError::internal(format!("list {}: {e}", dir.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine for tests.
    pub(crate) fn instance() -> Instance {
        let spec = serde_json::json!({
            "id": "0123456789abcd", "slug": "web", "account": "ann", "app": "web", "region": "lab",
            "config": {"image": "container-os", "guest": {"cpus": 2, "memory_mb": 512},
                "mounts": [{"volume": "vol_0123456789abcd", "path": "/data"}]},
            "image": "container-os", "image_digest": "sha256:00",
            "net": {"ipv6": "2001:db8::1", "private6": "fd00:1:2::1", "mac": "02:00:00:00:00:01", "ssh_port": null},
            "private_prefix": "fd00:1:2::", "ssh_keys": [], "ssh_user_ca": null,
            "volumes": [{"id": "vol_0123456789abcd", "name": "data", "size_mib": 64}],
        });
        Instance {
            spec: serde_json::from_value(spec).unwrap(),
            epoch: Epoch(1),
            phase: LocalState::Ready,
            reason: None,
            process: None,
            migration: None,
        }
    }

    #[test]
    fn a_fence_only_rises() {
        let state = tempfile::tempdir().unwrap();
        let layout = Layout::new(state.path());
        std::fs::create_dir_all(layout.fences()).unwrap();
        let id = MachineId::random();
        assert_eq!(fence(&layout, &id).unwrap(), None);
        raise_fence(&layout, &id, Epoch(4)).unwrap();
        raise_fence(&layout, &id, Epoch(2)).unwrap();
        assert_eq!(fence(&layout, &id).unwrap(), Some(Epoch(4)));
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_others() {
        let state = tempfile::tempdir().unwrap();
        let layout = Layout::new(state.path());
        let good = instance();
        std::fs::create_dir_all(good.dir(&layout).path()).unwrap();
        good.store(&layout).unwrap();
        let bad = layout.machine(&MachineId::random());
        std::fs::create_dir_all(bad.path()).unwrap();
        std::fs::write(bad.instance(), b"{").unwrap();
        let (found, damaged) = load_all(&layout).unwrap();
        assert_eq!(found, vec![good]);
        assert_eq!(damaged.len(), 1);
    }
}
