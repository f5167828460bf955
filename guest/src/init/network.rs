//! Links, addresses and default routes, by netlink.
//!
//! The machine's addresses are /128 and /32 and its gateways the same on every host, so nothing here changes when the
//! machine moves.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mashines_guest::config::Interface;

use super::netlink::{Route, add_address, default_route, link_up};

const LINKS: &str = "/sys/class/net";
const LINK_TIMEOUT: Duration = Duration::from_secs(5);

/// Brings the loopback and all interfaces up.
pub fn configure(interfaces: &[Interface]) -> Result<()> {
    let route = Route::open()?;
    let loopback = Path::new(LINKS).join("lo");
    route.ask(&link_up(index(&loopback)?, None)).context("bringing the loopback up")?;
    for interface in interfaces {
        configure_one(&route, interface).with_context(|| format!("network interface {}", interface.mac))?;
    }
    Ok(())
}

fn configure_one(route: &Route, interface: &Interface) -> Result<()> {
    let link = find(&interface.mac)?;
    let index = index(&link)?;
    ignore_router_advertisements(&link);
    route.ask(&link_up(index, interface.mtu)).context("bringing it up")?;
    let addresses = interface.ipv6.iter().chain(&interface.ipv4).chain(&interface.more_addresses);
    for prefix in addresses {
        route
            .ask(&add_address(index, prefix.address(), prefix.length()))
            .with_context(|| format!("adding the address {prefix}"))?;
    }
    let gateways = [interface.gateway6.map(IpAddr::V6), interface.gateway4.map(IpAddr::V4)];
    for gateway in gateways.into_iter().flatten() {
        route.ask(&default_route(index, gateway)).with_context(|| format!("routing through {gateway}"))?;
    }
    Ok(())
}

/// The machine's addresses come from its configuration alone; and its link-local address needs no duplicate detection on a
/// link of two. A kernel without IPv6 has none of these switches, and needs none.
fn ignore_router_advertisements(link: &Path) {
    let Some(name) = link.file_name().and_then(|name| name.to_str()) else { return };
    for (switch, value) in
        [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"), ("dad_transmits", "0")]
    {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{switch}"), value);
    }
}

fn find(mac: &str) -> Result<PathBuf> {
    let start = Instant::now();
    loop {
        let links = links()?;
        if let Some((link, _)) = links.iter().find(|(_, address)| address.eq_ignore_ascii_case(mac)) {
            return Ok(link.clone());
        }
        if start.elapsed() > LINK_TIMEOUT {
            let seen: Vec<String> =
                links.iter().map(|(link, address)| format!("{} {address}", link.display())).collect();
            bail!(
                "no link with this MAC address appeared within {} s; the links here are: {}",
                LINK_TIMEOUT.as_secs(),
                seen.join(", ")
            );
        }
        sleep(Duration::from_millis(5));
    }
}

fn links() -> Result<Vec<(PathBuf, String)>> {
    let entries = fs::read_dir(LINKS).with_context(|| format!("listing {LINKS}"))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter_map(|path| {
            Some((path.clone(), fs::read_to_string(path.join("address")).ok()?.trim().to_owned()))
        })
        .collect())
}

fn index(link: &Path) -> Result<u32> {
    let path = link.join("ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds '{}'", path.display(), text.trim()))
}
