//! A configuration as a client writes it, checked: every refusal says what is wrong with which part.

use std::collections::BTreeSet;

use base64::Engine;
use mashines_fleet::api::{ConfigRequest, GuestRequest, MountRequest, NewVolume};
use mashines_fleet::id::{AccountId, AppName, BadId, ImageName, MachineId, VolumeId};
use mashines_fleet::key::Key;
use mashines_fleet::record::{Guest, Machine, MachineConfig, Mount, Volume, VolumeDriver};

use super::services;
use super::suggest::did_you_mean;
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Edit, Private};
use crate::time::now;

/// The most vCPUs of a machine.
const MOST_CPUS: u32 = 8;
/// The least memory that a kernel and an init live in, MiB.
const LEAST_MEMORY: u64 = 128;
/// The most memory, MiB: beyond it the number is a mistake.
const MOST_MEMORY: u64 = 1 << 20;
/// The most volumes of a machine: virtio devices are few.
const MOST_VOLUMES: usize = 8;
/// Volume sizes, MiB.
const VOLUME_SIZES: std::ops::RangeInclusive<u64> = 16..=(16 << 20);

fn bad_id(error: BadId) -> Failure {
    Failure::invalid(error.to_string())
}

/// The image's name; it must be on some host.
pub fn image(control: &Control, name: &str) -> Result<ImageName> {
    if name.is_empty() {
        return Err(Failure::invalid("config.image is missing: name the image to start"));
    }
    let view = control.view();
    let known: BTreeSet<&str> =
        view.hosts.values().flat_map(|host| &host.images).map(|image| image.name.as_str()).collect();
    if known.contains(name) {
        return name.parse().map_err(bad_id);
    }
    let name: String = name.chars().take(80).collect();
    let hint = did_you_mean(&name, known.iter().copied());
    let list = known.into_iter().collect::<Vec<_>>().join(", ");
    let list = if list.is_empty() { "none: no host has reported one".to_owned() } else { list };
    Err(Failure::invalid(format!("there is no image {name:?}{hint} (images: {list})")))
}

/// CPU and memory, from a preset and what is said besides.
pub fn guest(size: Option<&str>, asked: Option<&GuestRequest>) -> Result<Guest> {
    let preset = size.map(preset).transpose()?;
    let none = GuestRequest::default();
    let asked = asked.unwrap_or(&none);
    let kind = asked.cpu_kind.clone().or_else(|| preset.as_ref().map(|p| p.cpu_kind.clone()));
    let kind = kind.unwrap_or_else(|| "shared".to_owned());
    if kind != "shared" && kind != "performance" {
        return Err(Failure::invalid(format!("cpu_kind {kind:?}: it is shared or performance")));
    }
    let cpus = asked.cpus.or(preset.as_ref().map(|p| p.cpus.into())).unwrap_or(1);
    let fits = u8::try_from(cpus).ok().filter(|_| (1..=MOST_CPUS).contains(&cpus));
    let cpus = fits.ok_or_else(|| Failure::invalid(format!("cpus {cpus}: it is 1 to {MOST_CPUS}")))?;
    let each = if kind == "shared" { 256 } else { 2048 };
    let default = preset.map_or(each * u64::from(cpus), |p| p.memory_mb);
    let memory_mb = asked.memory_mb.unwrap_or(default);
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&memory_mb) {
        return Err(Failure::invalid(format!(
            "memory_mb {memory_mb}: it is {LEAST_MEMORY} to {MOST_MEMORY}"
        )));
    }
    Ok(Guest { cpu_kind: kind, cpus, memory_mb })
}

/// `shared-cpu-2x`, `performance-4x`.
fn preset(size: &str) -> Result<Guest> {
    let unknown = || {
        Failure::invalid(format!(
            "size {size:?} is unknown: there are shared-cpu-1x, -2x, -4x, -8x (256 MiB a CPU) and performance-1x to -8x (2 GiB a CPU)"
        ))
    };
    let (kind, times) = match (size.strip_prefix("shared-cpu-"), size.strip_prefix("performance-")) {
        (Some(times), _) => ("shared", times),
        (None, Some(times)) => ("performance", times),
        (None, None) => return Err(unknown()),
    };
    let cpus: u8 = times.strip_suffix('x').and_then(|n| n.parse().ok()).ok_or_else(unknown)?;
    if ![1, 2, 4, 8].contains(&cpus) {
        return Err(unknown());
    }
    let each = if kind == "shared" { 256 } else { 2048 };
    Ok(Guest { cpu_kind: kind.to_owned(), cpus, memory_mb: each * u64::from(cpus) })
}

/// A path in the guest that can stand in its configuration.
fn guest_path(what: &str, path: &str) -> Result<()> {
    let wrong = |why: &str| Err(Failure::invalid(format!("{what} {path:?} {why}")));
    if !path.starts_with('/') || path == "/" {
        return wrong("is no absolute path below /");
    }
    if path.len() > 512 || path.chars().any(|c| c.is_control() || matches!(c, ',' | ':')) {
        return wrong("is too long or holds a comma, a colon or a control character");
    }
    if path.split('/').any(|part| part == "..") {
        return wrong("holds `..`");
    }
    Ok(())
}

fn check_rest(asked: &ConfigRequest) -> Result<()> {
    for (name, value) in &asked.env {
        let named = !name.is_empty() && !name.contains(['=', '\0', '\n']) && !value.contains('\0');
        if !named {
            return Err(Failure::invalid(format!("env {name:?} is no name of an environment variable")));
        }
    }
    for file in &asked.files {
        guest_path("files: guest_path", &file.guest_path)?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(&file.raw_value);
        decoded.map_err(|error| {
            Failure::invalid(format!("files: raw_value of {} is no base64: {error}", file.guest_path))
        })?;
    }
    Ok(())
}

/// Who a machine's volumes must belong to.
pub struct Owner<'a> {
    /// The machine they are attached to.
    pub machine: &'a MachineId,
    /// Its account.
    pub account: &'a AccountId,
    /// Its app.
    pub app: &'a AppName,
}

/// The mounts of existing volumes, which are attached to the machine in the same transaction.
pub async fn mounts(
    edit: &mut Edit<'_>,
    control: &Control,
    owner: &Owner<'_>,
    asked: &[MountRequest],
) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for request in asked {
        guest_path("mounts: path", &request.path)?;
        let id = volume_id(control, owner, &request.volume)?;
        let mut volume: Volume = edit.require(&Key::Volume(id.clone())).await?;
        match &volume.attached_machine {
            Some(other) if other != owner.machine => {
                return Err(Failure::conflict(format!(
                    "volume {} is attached to machine {other}",
                    request.volume
                )));
            }
            Some(_) => {}
            None => {
                volume.attached_machine = Some(owner.machine.clone());
                edit.put(&volume)?;
            }
        }
        mounts.push(Mount { volume: id, path: request.path.clone() });
    }
    Ok(mounts)
}

/// A volume of the app, by id or name.
pub fn volume_id(control: &Control, owner: &Owner<'_>, name: &str) -> Result<VolumeId> {
    let view = control.view();
    let mut mine = view.volumes.values().filter(|v| v.account == *owner.account && v.app == *owner.app);
    if let Some(volume) = mine.clone().find(|v| v.id.as_str() == name || v.name == name) {
        return Ok(volume.id.clone());
    }
    let hint = did_you_mean(name, mine.by_ref().map(|v| v.name.as_str()));
    let name: String = name.chars().take(80).collect();
    Err(Failure::not_found(format!("app {} has no volume {name:?}{hint}", owner.app)))
}

/// A volume that is made in this transaction. Its name is claimed in the app.
pub async fn new_volume(
    edit: &mut Edit<'_>,
    owner: (&AccountId, &AppName),
    name: &str,
    size_mib: u64,
    machine: Option<&MachineId>,
) -> Result<Volume> {
    let (account, app) = owner;
    name.parse::<AppName>().map_err(|_| {
        Failure::invalid(format!("volume name {name:?}: it is a DNS label: a-z, 0-9 and hyphens, at most 63"))
    })?;
    if !VOLUME_SIZES.contains(&size_mib) {
        let (least, most) = (VOLUME_SIZES.start(), VOLUME_SIZES.end());
        return Err(Failure::invalid(format!("volume {name}: size {size_mib} MiB: it is {least} to {most}")));
    }
    let key = Private::VolumeName(account, app, name);
    let taken: Option<VolumeId> = edit.private(key).await?;
    if let Some(taken) = taken {
        return Err(Failure::conflict(format!("app {app} has a volume {name} already ({taken})")));
    }
    let volume = Volume {
        id: VolumeId::random(),
        name: name.to_owned(),
        account: account.clone(),
        app: app.clone(),
        size_mib,
        driver: VolumeDriver::Local,
        host: None,
        attached_machine: machine.cloned(),
        created_at: now(),
    };
    edit.claim(key, &volume.id)?.put(&volume)?;
    Ok(volume)
}

/// Mounts of volumes that are made with the machine; what they need of a host's disk.
pub async fn new_volumes(
    edit: &mut Edit<'_>,
    owner: &Owner<'_>,
    asked: &[NewVolume],
) -> Result<(Vec<Mount>, u64)> {
    let (mut mounts, mut disk_mib) = (Vec::new(), 0_u64);
    for request in asked {
        let path = request.path.clone().unwrap_or_else(|| format!("/mnt/{}", request.name));
        guest_path("volumes: path", &path)?;
        let size = request.size_mib;
        let volume =
            new_volume(edit, (owner.account, owner.app), &request.name, size, Some(owner.machine)).await?;
        disk_mib = disk_mib.saturating_add(size);
        mounts.push(Mount { volume: volume.id, path });
    }
    Ok((mounts, disk_mib))
}

/// No volume twice, no path twice, not too many.
pub fn check_mounts(mounts: &[Mount]) -> Result<()> {
    if mounts.len() > MOST_VOLUMES {
        return Err(Failure::invalid(format!(
            "{} volumes: a machine has at most {MOST_VOLUMES}",
            mounts.len()
        )));
    }
    let (mut paths, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for mount in mounts {
        if !paths.insert(mount.path.trim_end_matches('/')) {
            return Err(Failure::invalid(format!("two volumes are mounted at {}", mount.path)));
        }
        if !volumes.insert(&mount.volume) {
            return Err(Failure::invalid(format!("volume {} is mounted twice", mount.volume)));
        }
    }
    Ok(())
}

/// All of a configuration but its mounts.
pub fn without_mounts(control: &Control, asked: &ConfigRequest) -> Result<MachineConfig> {
    check_rest(asked)?;
    services::check(&asked.services)?;
    Ok(MachineConfig {
        image: image(control, &asked.image)?,
        guest: guest(asked.size.as_deref(), asked.guest.as_ref())?,
        env: asked.env.clone(),
        metadata: asked.metadata.clone(),
        mounts: Vec::new(),
        files: asked.files.clone(),
        init: asked.init.clone(),
        restart: asked.restart.clone(),
        auto_destroy: asked.auto_destroy,
        autostart: asked.autostart,
        record_sessions: asked.record_sessions,
        services: asked.services.clone(),
        other: asked.other.clone(),
    })
}

/// The new configuration of a machine that is there: volumes that it no longer mounts are detached.
pub async fn config(
    control: &Control,
    edit: &mut Edit<'_>,
    machine: &Machine,
    asked: &ConfigRequest,
) -> Result<MachineConfig> {
    let mut config = without_mounts(control, asked)?;
    let owner = Owner { machine: &machine.id, account: &machine.account, app: &machine.app };
    config.mounts = mounts(edit, control, &owner, &asked.mounts).await?;
    check_mounts(&config.mounts)?;
    let view = control.view();
    let host = machine.place.as_ref().map(|place| &place.host);
    for mount in &config.mounts {
        let there = view.volumes.get(&mount.volume).and_then(|volume| volume.host.as_ref());
        if let (Some(host), Some(there)) = (host, there.filter(|there| Some(*there) != host)) {
            return Err(Failure::conflict(format!(
                "volume {} is on {there}, the machine is on {host}",
                mount.volume
            )));
        }
    }
    let kept: BTreeSet<&VolumeId> = config.mounts.iter().map(|mount| &mount.volume).collect();
    for gone in machine.config.mounts.iter().filter(|mount| !kept.contains(&mount.volume)) {
        let volume: Option<Volume> = edit.get(&Key::Volume(gone.volume.clone())).await?;
        if let Some(mut volume) = volume {
            volume.attached_machine = None;
            edit.put(&volume)?;
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_give_what_fly_gives_and_the_guest_wins() {
        let shared = guest(Some("shared-cpu-2x"), None).unwrap();
        assert_eq!((shared.cpu_kind.as_str(), shared.cpus, shared.memory_mb), ("shared", 2, 512));
        let fast = guest(Some("performance-1x"), None).unwrap();
        assert_eq!((fast.cpus, fast.memory_mb), (1, 2048));
        let more = GuestRequest { memory_mb: Some(1024), ..GuestRequest::default() };
        assert_eq!(guest(Some("shared-cpu-1x"), Some(&more)).unwrap().memory_mb, 1024);
        assert_eq!(guest(None, None).unwrap().memory_mb, 256);
    }

    #[test]
    fn impossible_guests_are_refused() {
        let asked = |cpus, memory_mb| GuestRequest { cpu_kind: None, cpus, memory_mb };
        for bad in [
            asked(Some(0), None),
            asked(Some(9), None),
            asked(Some(300), None),
            asked(None, Some(1)),
            asked(None, Some(u64::MAX)),
        ] {
            assert!(guest(None, Some(&bad)).is_err(), "{bad:?}");
        }
        for bad in ["", "tiny", "shared-cpu-3x", "performance-x", "shared-cpu-999x"] {
            assert!(guest(Some(bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_that_would_break_the_guests_configuration_are_refused() {
        assert!(guest_path("p", "/data").is_ok());
        for bad in ["data", "/", "", "/a,b", "/a:b", "/a/../etc", "/a\nb"] {
            assert!(guest_path("p", bad).is_err(), "{bad:?}");
        }
    }
}
