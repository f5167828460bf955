//! Volumes: made when blank, checked, grown to their device, mounted.
//!
//! Invariant: a device that holds anything but zeros where a signature would stand is never formatted.

use anyhow::{Context, Result, bail};
use mashines_guest::config::Volume;
use nix::mount::MsFlags;

use super::ext4::{self, Content};
use super::{mounts, process, root};

/// e2fsck's exit code is a bit mask; up to here it found nothing or repaired all (e2fsck(8)).
const E2FSCK_REPAIRED: i32 = 1 | 2;

/// ext4 would zero the inode tables of a fresh file system in the background. Ours were made on zeros: zeroing them again would
/// only fill the sparse file on the host, and be copied along by every move.
pub const NO_ZEROING: &str = "noinit_itable";

/// Mounts all of them, in order, so that one may be mounted below another.
pub fn mount_all(volumes: &[Volume]) -> Result<()> {
    for volume in volumes {
        mount(volume).with_context(|| {
            format!("volume '{}' ({}) for {}", volume.name, volume.device, volume.mountpoint)
        })?;
    }
    Ok(())
}

fn mount(volume: &Volume) -> Result<()> {
    root::wait_for(&volume.device)?;
    match ext4::probe(&volume.device)? {
        Content::Blank => make(volume)?,
        Content::Ext { .. } => check(volume)?,
        Content::Other => bail!(
            "it holds data that is no ext4 file system, so it is neither mounted nor formatted; \
             wipe its first 128 KiB to have it formatted"
        ),
    }
    if !volume.mountpoint.starts_with('/') || volume.mountpoint.split('/').any(|part| part == "..") {
        bail!("its mount point is not an absolute path without '..'");
    }
    mounts::mount_at(&volume.device, &volume.mountpoint, "ext4", MsFlags::MS_NOATIME, NO_ZEROING)
}

fn make(volume: &Volume) -> Result<()> {
    // At most 16 bytes of label fit (mke2fs(8) -L), and a name may be longer.
    let label: String = volume.name.chars().filter(char::is_ascii).take(16).collect();
    // A blank device needs no discarding, and NO_ZEROING spares the zeroing of its inode tables.
    let mut arguments = vec![
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "0",
        "-E",
        "nodiscard,lazy_itable_init=1",
        "-L",
        &label,
    ];
    if let Some(uuid) = &volume.fs_uuid {
        arguments.extend(["-U", uuid]);
    }
    arguments.push(&volume.device);
    match process::image_program("mke2fs", &arguments)? {
        Some(0) => Ok(()),
        Some(code) => bail!("it is blank and mke2fs ended with exit code {code} (its words are above)"),
        None => bail!("it is blank and the image has no mke2fs (Debian package e2fsprogs) to format it with"),
    }
}

fn check(volume: &Volume) -> Result<()> {
    if let Some(code) = process::image_program("e2fsck", &["-p", &volume.device])?
        && code & !E2FSCK_REPAIRED != 0
    {
        bail!("e2fsck -p ended with exit code {code} (its words are above): the file system needs a person");
    }
    // The volume was extended. Online growing would do as well; before the mount it needs no journal.
    if ext4::spare_bytes(&volume.device)?.is_some() {
        match process::image_program("resize2fs", &[&volume.device])? {
            Some(0) | None => {}
            Some(code) => crate::log::console(format_args!(
                "volume '{}' keeps its old size: resize2fs ended with {code}",
                volume.name
            )),
        }
    }
    Ok(())
}
