//! Taps, which only the ioctls of /dev/net/tun can make.
//!
//! A tap is persistent: it outlives netd and the monitor. It has one queue, so one process at most holds it, and the
//! kernel says who may take it: `EBUSY` means that somebody does. See the kernel's `Documentation/networking/tuntap.rst`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use crate::error::Error;

const DEVICE: &str = "/dev/net/tun";

/// The frames that wait for a paused guest: 4 ms at a million a second, 4 s at a thousand.
pub const QUEUE: u32 = 4096;

/// Makes the tap if it is not there; one that a monitor holds is left as it is.
pub fn create(name: &str) -> Result<(), Error> {
    match attach(name) {
        Ok(tap) => persist(&tap, name, true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(source) => Err(Error::Kernel { operation: "create", object: format!("tap {name}"), source }),
    }
}

/// Removes the tap, unless a process holds it.
pub fn remove(name: &str) -> Result<(), Error> {
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Ok(());
    }
    match attach(name) {
        // The last close of a tap that does not persist removes it.
        Ok(tap) => persist(&tap, name, false),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(Error::TapHeld { tap: name.to_owned(), holders: holders(name) })
        }
        Err(source) => Err(Error::Kernel { operation: "remove", object: format!("tap {name}"), source }),
    }
}

/// Answers whether no process holds the tap; one that does not exist is held by nobody.
pub fn released(name: &str) -> Result<(), Error> {
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Ok(());
    }
    match attach(name) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(Error::TapHeld { tap: name.to_owned(), holders: holders(name) })
        }
        Err(source) => Err(Error::Kernel { operation: "look at", object: format!("tap {name}"), source }),
    }
}

fn attach(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = ifreq(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::Error::other("tap flags outgrew their field"))?;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let answer = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(tun) }
}

fn persist(tap: &File, name: &str, keep: bool) -> Result<(), Error> {
    // SAFETY: the descriptor is open, and TUNSETPERSIST takes its argument by value.
    let answer = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(keep)) };
    if answer < 0 {
        let source = io::Error::last_os_error();
        return Err(Error::Kernel {
            operation: "set the persistence of",
            object: format!("tap {name}"),
            source,
        });
    }
    Ok(())
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Who holds a tap: the kernel names it in the file's `fdinfo`.
fn holders(name: &str) -> String {
    let line = format!("iff:\t{name}");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = process.file_name().to_string_lossy().into_owned();
        if !id.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let files = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        let holds = files
            .filter_map(|file| fs::read_to_string(file.path()).ok())
            .any(|info| info.lines().any(|l| l == line));
        if holds {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {id} ({})", command.trim()));
        }
    }
    if found.is_empty() { "a process".to_owned() } else { found.join(", ") }
}
