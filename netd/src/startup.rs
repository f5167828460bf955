//! From a host of any state to one whose network is as the ledger and the plan say; and back to nothing.
//!
//! A start never breaks what works: devices, rules and routes that are there already are adopted, the filters are replaced
//! in one transaction, and what nobody owns goes last.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::{Port, TAP_PREFIX};
use crate::config::{Ingress, NetdConfig, Underlay};
use crate::error::Error;
use crate::filter;
use crate::kernel::{Kernel, Link, LinkSettings, all_or_several, sysctl, wireguard};
use crate::ledger::Ledger;
use crate::plan::Known;
use crate::reconcile::Routes;
use crate::requests::remove_tap;
use crate::shell::{Core, Shell, Slow};
use crate::store::Store;
use crate::view::NetView;

/// Brings the host up; the routes of machines follow with [`Shell::follow`].
pub(crate) async fn start(config: NetdConfig, view: Arc<NetView>) -> Result<Arc<Shell>, Error> {
    check(&config)?;
    let (store, entries) = Store::open(&config.state_dir)?;
    let kernel = Kernel::open()?;
    sysctl::forward()?;
    if let Err(error) = sysctl::backlog() {
        tracing::warn!(%error, "a burst of packets may be dropped while the CPUs are busy");
    }
    let mut slow = Slow::default();
    let mut public_key = None;
    if config.underlay == Underlay::Wireguard {
        let private = wireguard::private_key(&config.state_dir.join("wireguard.key"))?;
        public_key = Some(wireguard::public_key(private));
        start_mesh(&kernel, &config, private).await?;
        slow.peers = wireguard::peers(&config.wireguard_interface).await?;
    }
    start_overlay(&kernel, &config).await?;
    if let Ingress::Ndp { interface } = &config.ingress {
        sysctl::proxy(interface)?;
    }
    let mut routes = Routes::default();
    routes.found(kernel.routes(&config.overlay_interface).await?);
    let core = Core { ledger: Ledger::new(entries), store, view, routes, proxies: Default::default() };
    let leaves = Known { config: &config, view: &core.view }.leaves_through_entry();
    kernel.put_rules(&config, leaves).await?;
    let shell = Arc::new(Shell::new(config, kernel, core, slow, public_key));
    start_machines(&shell).await?;
    Ok(shell)
}

/// Filters before taps: no tap of ours is ever without them.
async fn start_machines(shell: &Arc<Shell>) -> Result<(), Error> {
    let mut slow = shell.slow.lock().await;
    shell.settle_filters(&mut slow).await?;
    let machines: BTreeSet<String> = {
        let mut core = shell.core.lock().await;
        let held = existing_proxies(shell, &core).await?;
        core.proxies = held;
        core.ledger.iter().map(|(machine, _)| machine.clone()).collect()
    };
    shell.settle_taps(true).await;
    drop(slow);
    shell.settle_all(machines).await;
    Ok(())
}

/// The neighbour proxies that are there, by machine; those of nobody are taken away.
async fn existing_proxies(
    shell: &Shell,
    core: &Core,
) -> Result<std::collections::BTreeMap<String, BTreeSet<std::net::Ipv6Addr>>, Error> {
    let Some(link) = shell.ingress_link().await? else { return Ok(Default::default()) };
    let known = shell.known(core);
    let wanted: std::collections::BTreeMap<_, _> = core
        .ledger
        .iter()
        .flat_map(|(machine, entry)| {
            known.proxies(machine, Some(entry)).into_iter().map(move |a| (a, machine.clone()))
        })
        .collect();
    let mut held = std::collections::BTreeMap::<String, BTreeSet<_>>::new();
    for address in shell.kernel.proxies(&link).await? {
        match wanted.get(&address) {
            Some(machine) => {
                held.entry(machine.clone()).or_default().insert(address);
            }
            // Only addresses of the region can be netd's; others on this interface are somebody else's business.
            None if shell.config.region_prefixes.iter().any(|p| p.contains(address.into())) => {
                shell.log("remove a leftover proxy", shell.kernel.delete_proxy(&link, address).await);
            }
            None => {}
        }
    }
    Ok(held)
}

fn check(config: &NetdConfig) -> Result<(), Error> {
    if !config.mesh_prefix.contains(config.mesh_addr) {
        return Err(Error::Config(format!(
            "mesh_addr {} lies outside mesh_prefix {}",
            config.mesh_addr, config.mesh_prefix
        )));
    }
    if let Some(resolver) = config.resolver {
        let taken = config.region_prefixes.iter().copied().chain([config.mesh_prefix.into()]);
        if let Some(prefix) = taken.into_iter().find(|prefix| prefix.contains(resolver.into())) {
            return Err(Error::Config(format!(
                "machines' resolver {resolver} lies in {prefix}, which has other addresses: choose another prefix for those"
            )));
        }
    }
    if config.overlay_mtu() < 1280 {
        return Err(Error::Config(format!(
            "underlay_mtu {} leaves {} for machines' packets; IPv6 needs 1280",
            config.underlay_mtu,
            config.overlay_mtu()
        )));
    }
    Ok(())
}

async fn start_mesh(kernel: &Kernel, config: &NetdConfig, private: wireguard::Key) -> Result<(), Error> {
    let name = &config.wireguard_interface;
    if kernel.find_link(name).await?.is_none() {
        kernel.add_wireguard(name).await?;
    }
    sysctl::quiet(name)?;
    wireguard::set_device(name, private, config.wireguard_port).await?;
    let link = kernel.link(name).await?;
    let mtu = config.overlay_mtu().saturating_add(crate::config::GPE_OVERHEAD);
    kernel.set_up(&link, LinkSettings { mtu: Some(mtu), ..LinkSettings::default() }).await?;
    // With the prefix's length, so that the kernel routes all peers here.
    kernel.add_address(&link, config.mesh_addr.into(), config.mesh_prefix.prefix()).await
}

async fn start_overlay(kernel: &Kernel, config: &NetdConfig) -> Result<(), Error> {
    let name = &config.overlay_interface;
    if kernel.find_link(name).await?.is_none() {
        kernel.add_overlay(name).await?;
    }
    sysctl::quiet(name)?;
    let link = kernel.link(name).await?;
    kernel.set_up(&link, LinkSettings { mtu: Some(config.overlay_mtu()), ..LinkSettings::default() }).await
}

impl Shell {
    /// Makes the taps that are missing, or looks after `all`, and removes those of nobody. The caller holds the slow lane.
    pub(crate) async fn settle_taps(&self, all: bool) {
        let ports: Vec<Port> = {
            let core = self.core.lock().await;
            core.ledger.iter().filter_map(|(_, e)| e.port.as_ref()).map(|local| local.port.clone()).collect()
        };
        let links = match self.kernel.links().await {
            Ok(links) => links,
            Err(error) => return self.log("look after the taps", Err(error)),
        };
        let there: BTreeSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        for port in ports.iter().filter(|port| all || !there.contains(port.tap.as_str())) {
            self.log("make the tap of a machine", self.make_tap(port).await);
        }
        let owned: BTreeSet<&str> = ports.iter().map(|port| port.tap.as_str()).collect();
        for tap in there.iter().filter(|name| name.starts_with(TAP_PREFIX) && !owned.contains(*name)) {
            tracing::info!(tap, "removing a tap that belongs to no machine");
            self.log("remove a tap that belongs to no machine", remove_tap(tap).await);
        }
    }

    /// Makes the mesh's peers those of the fleet's records.
    pub(crate) async fn settle_peers(&self, slow: &mut Slow, view: &NetView) -> Result<(), Error> {
        if self.config.underlay != Underlay::Wireguard || view.revision == 0 {
            return Ok(());
        }
        let others = view.hosts.values().filter(|host| host.host_id != self.config.host_id);
        let wanted: wireguard::Peers = others
            .filter_map(|host| {
                let key = wireguard::parse_key(host.wg_public_key.as_deref()?)?;
                Some((key, wireguard::Peer { endpoint: host.underlay, mesh_addr: host.mesh_addr }))
            })
            .collect();
        wireguard::set_peers(&self.config.wireguard_interface, &slow.peers, &wanted).await?;
        slow.peers = wanted;
        Ok(())
    }
}

/// Takes everything of netd away from this host; goes on after a failure and answers all of them. Taps that a
/// monitor holds stay. The state directory stays, too.
pub async fn teardown(config: &NetdConfig) -> Result<(), Error> {
    let kernel = Kernel::open()?;
    let mut failures = Vec::new();
    match kernel.routes(&config.overlay_interface).await {
        Ok(routes) => {
            for key in routes.keys() {
                failures.extend(kernel.drop_route(key).await.err());
            }
        }
        Err(error) => failures.push(error),
    }
    failures.extend(kernel.delete_rules().await.err());
    match kernel.links().await {
        Ok(links) => {
            for link in links {
                failures.extend(remove_link(&kernel, config, &link).await.err());
            }
        }
        Err(error) => failures.push(error),
    }
    failures.extend(filter::load(&format!("add table {0}\ndelete table {0}\n", filter::TABLE)).await.err());
    all_or_several(failures)
}

async fn remove_link(kernel: &Kernel, config: &NetdConfig, link: &Link) -> Result<(), Error> {
    if link.name.starts_with(TAP_PREFIX) {
        return remove_tap(&link.name).await;
    }
    let ours = link.name == config.overlay_interface
        || (config.underlay == Underlay::Wireguard && link.name == config.wireguard_interface);
    if ours { kernel.delete_link(link).await } else { Ok(()) }
}
