//! The kernel's own file systems, first in the initramfs, then in the image's root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::log;

/// What every step of init needs: /dev, /proc, /sys.
pub fn kernel_file_systems() -> Result<()> {
    kernel_file_systems_below("")
}

/// /run of a machine that stays in its initramfs.
pub fn run_directory() -> Result<()> {
    mount_at("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")
}

/// Gives the root at `root` its own /dev, /proc, /sys and /run: systemd keeps all four when it finds them mounted.
pub fn kernel_file_systems_into(root: &str) -> Result<()> {
    kernel_file_systems_below(root)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("tmpfs", &format!("{root}/run"), "tmpfs", flags, "mode=0755")
}

/// What a process expects that runs alone: terminals (`devpts`), shared memory (shm_open(3)), and the names of its own descriptors. It
/// may do without, so a failure is a note.
pub fn what_an_init_would_mount() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let mounted = [
        mount_at("devpts", "/dev/pts", "devpts", flags, "mode=0620,ptmxmode=0666,gid=5"),
        mount_at("tmpfs", "/dev/shm", "tmpfs", flags | MsFlags::MS_NODEV, "mode=1777"),
    ];
    mounted.into_iter().filter_map(Result::err).for_each(|error| log::note(format_args!("{error:#}")));
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        if let Err(error) = symlink(target, format!("/dev/{name}")) {
            log::note(format_args!("linking /dev/{name}: {error}"));
        }
    }
}

/// Takes the initramfs's own instances away before it is left, so that nothing stays mounted out of sight.
pub fn leave_kernel_file_systems() {
    for target in ["/sys", "/proc", "/dev"] {
        if let Err(errno) = umount2(target, MntFlags::MNT_DETACH) {
            log::note(format_args!("unmounting the initramfs's {target}: {errno}"));
        }
    }
}

fn kernel_file_systems_below(root: &str) -> Result<()> {
    let plain = MsFlags::MS_NOSUID;
    let closed = plain | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("devtmpfs", &format!("{root}/dev"), "devtmpfs", plain, "mode=0755")?;
    mount_at("proc", &format!("{root}/proc"), "proc", closed, "")?;
    mount_at("sysfs", &format!("{root}/sys"), "sysfs", closed, "")
}

/// Mounts, making the mount point first.
pub fn mount_at(source: &str, target: &str, fstype: &str, flags: MsFlags, data: &str) -> Result<()> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).with_context(|| format!("making the mount point {target}"))?;
    }
    mount(Some(source), target, Some(fstype), flags, Some(data))
        .with_context(|| format!("mounting {source} ({fstype}) at {target}"))
}
