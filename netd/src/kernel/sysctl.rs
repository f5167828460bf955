//! The kernel's switches under /proc/sys, in the network namespace of the calling thread.

use std::fs;
use std::path::PathBuf;

use crate::error::Error;

/// Writes `net/…`, unless it says so already: some trees are read-only, and no write is needed then.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| Error::File { operation: "write", path, source })
}

/// Makes this host a router, without losing the default route that it may have from router advertisements: a router
/// ignores them unless `accept_ra` is 2.
pub fn forward() -> Result<(), Error> {
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let name = interface.file_name().to_string_lossy().into_owned();
        let accepts = fs::read_to_string(interface.path().join("accept_ra")).unwrap_or_default();
        if name != "all" && name != "default" && accepts.trim() == "1" {
            set(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")?;
    set("ipv4/ip_forward", "1")
}

/// Packets that wait for a CPU between two devices without hardware: taps, bridges. What is more is dropped, and the usual 1,000 are a few
/// milliseconds of a machine that moves.
const BACKLOG: u64 = 16_384;

/// Room for packets that wait for a CPU; what an operator set higher stays. In a network namespace of its own there is no such switch: it is the
/// box's.
pub fn backlog() -> Result<(), Error> {
    let name = "core/netdev_max_backlog";
    let now = fs::read_to_string(PathBuf::from("/proc/sys/net").join(name));
    match now.ok().and_then(|now| now.trim().parse::<u64>().ok()) {
        Some(now) if now < BACKLOG => set(name, &BACKLOG.to_string()),
        Some(_) | None => Ok(()),
    }
}

/// Prepares a device of ours before it comes up: no address but those it is given, no router advertisements, no check of IPv4
/// sources against routes (the filters check them exactly).
pub fn quiet(device: &str) -> Result<(), Error> {
    set(&format!("ipv6/conf/{device}/disable_ipv6"), "0")?;
    set(&format!("ipv6/conf/{device}/addr_gen_mode"), "1")?;
    set(&format!("ipv6/conf/{device}/accept_ra"), "0")?;
    set(&format!("ipv6/conf/{device}/accept_dad"), "0")?;
    set(&format!("ipv4/conf/{device}/rp_filter"), "0")
}

/// Lets an interface answer for others at once: the default makes a first packet wait up to 0.8 s.
pub fn proxy(interface: &str) -> Result<(), Error> {
    set(&format!("ipv6/conf/{interface}/proxy_ndp"), "1")?;
    set(&format!("ipv6/neigh/{interface}/proxy_delay"), "0")
}
