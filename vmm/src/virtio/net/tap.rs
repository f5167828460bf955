//! A tap that netd made: opened by name, one queue, virtio-net headers of 12 bytes, non-blocking.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libc::{c_int, c_uint, c_ulong};

use super::HEADER;

// linux/if_tun.h
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
/// The host may hand us frames without a checksum.
pub const TUN_F_CSUM: c_uint = 1;
/// … and TCP segments over IPv4 larger than the MTU.
pub const TUN_F_TSO4: c_uint = 2;
/// … and over IPv6.
pub const TUN_F_TSO6: c_uint = 4;
/// … with ECN.
pub const TUN_F_TSO_ECN: c_uint = 8;

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Attaches to the tap called `name` in this network namespace.
    ///
    /// # Errors
    /// When it does not exist, is in use, or was made with other flags.
    pub fn open(name: &str) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.len() < libc::IFNAMSIZ,
            "tap name {name:?}: 1 to 15 bytes are a network device's name"
        );
        let exists = std::path::Path::new("/sys/class/net").join(name).exists();
        ensure!(exists, "tap {name}: no such network device in this network namespace; netd makes it first");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        let tap = Self { file, name: name.to_owned() };
        tap.attach().with_context(|| {
            format!("attach to tap {name} (does another monitor hold it, or was it made without vnet_hdr?)")
        })?;
        Ok(tap)
    }

    fn attach(&self) -> Result<()> {
        // SAFETY: an all-zero ifreq is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = i16::try_from(flags)?;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let size = c_int::try_from(HEADER)?;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        Ok(())
    }

    /// What the guest understands of what the host may hand over: `TUN_F_*`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_offload(&self, flags: c_uint) -> Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(flags)) })
            .with_context(|| format!("TUNSETOFFLOAD {flags:#x} on tap {}", self.name))
    }

    /// The next frame with its header, or `None` when none waits.
    ///
    /// # Errors
    /// When the tap is gone or down.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame with its header.
    ///
    /// # Errors
    /// When the kernel refuses it: then it is lost, as on any network.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Waits until one of the taps can be read, at most so long.
///
/// # Errors
/// When the kernel refuses.
pub fn wait_readable(taps: &[RawFd], longest: Duration) -> io::Result<()> {
    let watched = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut watched: Vec<_> = taps.iter().map(watched).collect();
    let count = libc::nfds_t::try_from(watched.len()).unwrap_or(0);
    let millis = c_int::try_from(longest.as_millis().saturating_add(1)).unwrap_or(c_int::MAX);
    // SAFETY: `watched` holds `count` pollfds for as long as the call lasts.
    match check(unsafe { libc::poll(watched.as_mut_ptr(), count, millis) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
