//! The image's root file system: wait for it, mount it, become it.

use std::fs;
use std::os::unix::fs::chroot;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mashines_guest::config::Root;
use nix::mount::{MsFlags, mount as mount_call};

use super::volumes::NO_ZEROING;
use super::{ext4, mounts, process};
use crate::log;

/// Where the image's root is mounted before it becomes `/`.
pub const MOUNTPOINT: &str = "/root";

const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Mounts the root file system at [`MOUNTPOINT`].
pub fn mount(root: &Root) -> Result<()> {
    wait_for(&root.device)?;
    let options = if root.fstype == "ext4" { NO_ZEROING } else { "" };
    mounts::mount_at(&root.device, MOUNTPOINT, &root.fstype, MsFlags::MS_NOATIME, options)
}

/// Grows the root file system to its disk: a disk larger than the image is the normal case. That takes the image's
/// resize2fs; without it the machine keeps the image's size, which is worth a note and no failure.
pub fn grow(root: &Root) -> Result<()> {
    let device = &root.device;
    if root.fstype != "ext4" {
        return Ok(());
    }
    let Some(spare) = ext4::spare_bytes(device)? else { return Ok(()) };
    match process::image_program("resize2fs", &[device]) {
        Ok(Some(0)) => {}
        Ok(Some(code)) => {
            log::console(format_args!("{spare} bytes of {device} stay unused: resize2fs ended with {code}"))
        }
        Ok(None) => {
            log::note(format_args!("{spare} bytes of {device} stay unused: the image has no resize2fs"))
        }
        Err(error) => log::console(format_args!("{spare} bytes of {device} stay unused: {error:#}")),
    }
    Ok(())
}

/// Waits until the device exists: its driver may still be probing.
pub fn wait_for(device: &str) -> Result<()> {
    let start = Instant::now();
    while !Path::new(device).exists() {
        if start.elapsed() > DEVICE_TIMEOUT {
            let seen = block_devices();
            bail!(
                "{device} did not appear within {} s; the block devices here are: {seen}",
                DEVICE_TIMEOUT.as_secs()
            );
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn block_devices() -> String {
    let names: Vec<String> = fs::read_dir("/sys/block")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

/// Makes [`MOUNTPOINT`] the root of this process, and gives the initramfs's memory back.
pub fn switch() -> Result<()> {
    for path in ["/modules", "/mashines"] {
        let _ = fs::remove_dir_all(path);
    }
    let _ = fs::remove_file("/init");
    mounts::leave_kernel_file_systems();
    std::env::set_current_dir(MOUNTPOINT).with_context(|| format!("entering {MOUNTPOINT}"))?;
    mount_call(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("moving the root file system to /")?;
    chroot(".").context("changing the root directory")?;
    std::env::set_current_dir("/").context("entering the new root directory")
}
