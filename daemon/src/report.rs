//! Telling control what this box is and what runs on it: at each change and every three seconds.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mashines_fleet::daemon::Common;
use mashines_fleet::host_api::{HostState, Report};
use mashines_fleet::record::{Capacity, Host, HostRole};
use mashines_fleet::rpc::{Control, Empty};
use netd::config::Underlay;
use tokio::sync::watch;

use crate::config::{Config, Role};

/// Between two reports without a change.
const EVERY: Duration = Duration::from_secs(3);

/// The least time between two reports: changes come in flocks.
const LEAST: Duration = Duration::from_millis(20);

/// How long control may take to answer one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reports until the daemon ends. `role` is `host` (with what runs there) or `entry`.
pub async fn run(
    config: &Config,
    role: HostRole,
    common: &Common,
    mut state: Option<watch::Receiver<HostState>>,
) -> Result<()> {
    let base = record(config, role)?;
    let control = Control::new(&common.identity, &config.control_urls()?).context("clients of control")?;
    let control = control.with_timeout(TIMEOUT);
    let path = format!("/internal/v1/hosts/{}/report", config.id);
    let mut trouble: Option<String> = None;
    loop {
        let now = state.as_mut().map(|s| s.borrow_and_update().clone());
        let heard = control.ask(&path, &report(&base, now)).await;
        let heard = heard.map(|Empty {}| ()).map_err(|error| error.to_string());
        match (&heard, &trouble) {
            (Ok(()), Some(_)) => tracing::info!("control hears the reports again"),
            (Err(e), before) if before.as_ref() != Some(e) => tracing::warn!("control was not told: {e}"),
            (Ok(()), None) | (Err(_), _) => {}
        }
        trouble = heard.err();
        tokio::select! {
            () = common.stopped() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
            () = changed(&mut state) => tokio::time::sleep(LEAST).await,
        }
    }
}

async fn changed(state: &mut Option<watch::Receiver<HostState>>) {
    if let Some(state) = state
        && state.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn report(base: &Host, state: Option<HostState>) -> Report {
    let mut host = base.clone();
    if let Some(state) = &state {
        host.capacity = state.capacity;
        host.images.clone_from(&state.images);
    }
    Report { host, state }
}

/// This box's own record, but for what changes.
fn record(config: &Config, role: HostRole) -> Result<Host> {
    let netd = config.netd(None)?;
    let wireguard_key = match netd.underlay {
        Underlay::Plain => None,
        Underlay::Wireguard => {
            Some(netd::wireguard_public_key(&netd).context("the WireGuard key of this box")?)
        }
    };
    let api = match (&config.host, config.roles.contains(&Role::Host)) {
        (Some(host), true) => reachable(config, host.listen),
        (None, true) => bail!("the role `host` needs a section [host]"),
        (Some(_) | None, false) => SocketAddr::new(config.underlay, 0),
    };
    Ok(Host {
        id: config.id.clone(),
        roles: vec![role],
        region: config.region.clone(),
        api,
        underlay: config.underlay,
        wireguard_port: netd.wireguard_port,
        wireguard_key,
        mesh: netd.mesh_addr,
        capacity: Capacity { vcpus: 0, memory_mib: 0, disk_mib: 0 },
        images: Vec::new(),
        cordoned: false,
        seen_at: 0,
        public_ipv4: config.entry.public_ipv4.clone(),
        public_ipv6: config.entry.public_ipv6.clone(),
    })
}

/// The address that control calls: a listener on every address is reached on the underlay.
fn reachable(config: &Config, listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() { SocketAddr::new(config.underlay, listen.port()) } else { listen }
}
