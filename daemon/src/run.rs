//! `run`: the roles of one process, until one fails or the daemon is told to end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use ipnetwork::Ipv6Network;
use mashines_fleet::daemon::Common;
use mashines_fleet::host_api::HostState;
use mashines_fleet::pki::Identity;
use mashines_fleet::record::{Capacity, HostRole};
use mashines_fleet::replica::{ReplicaConfig, follow};
use mashines_fleet::view::View;
use mashines_host::Node;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, DNS_PORT, Role};
use crate::{netview, report, secret};

/// How long the roles may take to put their things in order.
const GRACE: Duration = Duration::from_secs(10);

/// How long netd waits to hear the fleet's prefix when the configuration names none.
const PREFIX_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) type Ended = (&'static str, Result<()>);

/// Runs the roles; returns when all of them ended in order.
pub async fn run(config: Config, roles: BTreeSet<Role>) -> Result<()> {
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    let (stop, shutdown) = watch::channel(false);
    start(&config, &roles, shutdown, &mut tasks)?;
    notify("READY=1");
    let ended = tokio::select! {
        signal = told_to_end() => {
            tracing::info!("{} came: the roles end", signal?);
            None
        }
        ended = tasks.join_next() => ended,
    };
    notify("STOPPING=1");
    stop.send_replace(true);
    let failed = ended.map(|e| whose(e.map_err(|e| anyhow!(e)))).transpose().map(|_| ());
    let rest = async {
        let mut first = Ok(());
        while let Some(ended) = tasks.join_next().await {
            if let Err(e) = whose(ended.map_err(|e| anyhow!(e))) {
                tracing::error!("{e:#}");
                first = first.and(Err(e));
            }
        }
        first
    };
    // A gateway waits for its sessions; whoever cannot wait for that says so a second time.
    let grace = GRACE + Duration::from_secs(config.gateway.as_ref().map_or(0, |gateway| gateway.drain_s));
    let rest = tokio::select! {
        rest = tokio::time::timeout(grace, rest) => rest.unwrap_or_else(|_| {
            tracing::warn!("some role did not end within {grace:?}");
            Ok(())
        }),
        signal = told_to_end() => {
            tracing::warn!("{} came again: the roles are not waited for", signal?);
            Ok(())
        }
    };
    failed.and(rest)
}

/// A role that ends before it is told to has failed, whatever it says.
fn whose(ended: Result<Ended>) -> Result<&'static str> {
    let (name, result) = ended.context("a role panicked")?;
    result.with_context(|| format!("the role {name} ended"))?;
    Ok(name)
}

fn start(
    config: &Arc<Config>,
    roles: &BTreeSet<Role>,
    shutdown: watch::Receiver<bool>,
    tasks: &mut JoinSet<Ended>,
) -> Result<()> {
    if roles.contains(&Role::Control) {
        let section = config.control.clone().context("the role `control` needs a section [control]")?;
        let identity = load_identity(config.control_identity_dir(), "mashinesd init")?;
        let common = common(config, identity, "control", shutdown.clone())?;
        tasks.spawn(async move { ("control", mashines_control::run(section, common).await) });
    }
    let members: Vec<Role> = roles.iter().copied().filter(|role| *role != Role::Control).collect();
    if members.is_empty() {
        return Ok(());
    }
    let identity = load_identity(config.identity_dir(), "mashinesd join --control URL --token TOKEN")?;
    // Processes of one box share the state directory, not the copy of the records.
    let copy = members.iter().map(|role| role.name()).collect::<Vec<_>>().join("-");
    let common = common(config, identity, &copy, shutdown)?;
    for role in members {
        match role {
            Role::Control => {}
            Role::Netd => start_netd(config, &common, tasks),
            Role::Host => start_host(config, &common, tasks)?,
            Role::Entry => start_entry(config, &common, tasks)?,
        }
    }
    Ok(())
}

fn load_identity(dir: PathBuf, how: &str) -> Result<Identity> {
    Identity::load(&dir)
        .with_context(|| format!("this box has no certificate of a fleet yet: run `{how}` first"))
}

fn common(
    config: &Config,
    identity: Identity,
    copy: &str,
    shutdown: watch::Receiver<bool>,
) -> Result<Common> {
    let replica = ReplicaConfig {
        control: config.control_urls()?,
        tls: identity.clone(),
        file: config.state_dir.join(format!("replica-{copy}.json")),
    };
    let (view, _following) = follow(replica);
    let (_nobody, secret) = watch::channel(None);
    Ok(Common { state_dir: config.state_dir.clone(), identity, view, secret, shutdown })
}

fn start_netd(config: &Arc<Config>, common: &Common, tasks: &mut JoinSet<Ended>) {
    let (config, common) = (Arc::clone(config), common.clone());
    tasks.spawn(async move {
        let run = async {
            let prefix = match config.names_region_prefixes() {
                true => None,
                false => fleet_prefix(common.view.clone()).await,
            };
            let view = netview::follow(common.view.clone());
            netd::run(config.netd(prefix)?, view, async move { common.stopped().await }).await?;
            Ok(())
        };
        ("netd", run.await)
    });
}

/// The fleet's prefix, once it is known. Machines are reached without it; only packets to nobody take a detour.
async fn fleet_prefix(mut view: watch::Receiver<Arc<View>>) -> Option<Ipv6Network> {
    let known = view.wait_for(|view| view.config.is_some());
    let known = tokio::time::timeout(PREFIX_PATIENCE, known).await.ok()?.ok()?;
    known.config.as_ref().map(|config| config.prefix)
}

fn start_host(config: &Arc<Config>, common: &Common, tasks: &mut JoinSet<Ended>) -> Result<()> {
    let section = config.host.clone().context("the role `host` needs a section [host]")?;
    let node = Node {
        id: config.id.clone(),
        underlay: config.underlay,
        state_dir: config.state_dir.join("host"),
        identity_dir: config.identity_dir(),
        netd_socket: config.netd(None)?.socket,
    };
    let nothing = HostState {
        host: config.id.clone(),
        capacity: Capacity { vcpus: 0, memory_mib: 0, disk_mib: 0 },
        images: Vec::new(),
        machines: Vec::new(),
        migrations: Vec::new(),
        volumes: Vec::new(),
    };
    let (tell, state) = watch::channel(nothing);
    if let Some(address) = config.resolver() {
        let forward = section.guest_dns.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect();
        let own = common.clone();
        tasks.spawn(async move {
            ("host: machines' resolver", mashines_dns::internal::run(address, forward, own).await)
        });
    }
    let own = common.clone();
    tasks.spawn(async move { ("host", mashines_host::run(node, section, own, tell).await) });
    let (config, common) = (Arc::clone(config), common.clone());
    tasks.spawn(async move {
        let mut state = state;
        // What is here is known only after the host has looked: an empty report would be a lie.
        let reported = match state.changed().await {
            Ok(()) => report::run(&config, HostRole::Host, &common, Some(state)).await,
            Err(_) => Ok(()),
        };
        ("host's reports", reported)
    });
    Ok(())
}

fn start_entry(config: &Arc<Config>, common: &Common, tasks: &mut JoinSet<Ended>) -> Result<()> {
    let common = &Common { secret: secret::follow(config, common, tasks)?, ..common.clone() };
    let mut doors = config.gateway.clone().context("the role `entry` needs a section [gateway]")?;
    if doors.control.is_empty() {
        doors.control = config.control_urls()?;
    }
    let own = common.clone();
    tasks.spawn(async move { ("entry: gateway", mashines_gateway::run(doors, own).await) });
    let mut names = config.dns.clone().context("the role `entry` needs a section [dns]")?;
    if names.control.is_empty() {
        names.control = config.control_urls()?;
    }
    let own = common.clone();
    tasks.spawn(async move { ("entry: dns", mashines_dns::run(names, own).await) });
    if let Some(mut certificates) = config.acme.clone() {
        if certificates.control.is_empty() {
            certificates.control = config.control_urls()?;
        }
        let own = common.clone();
        tasks.spawn(async move { ("entry: acme", mashines_acme::run(certificates, own).await) });
    }
    let (config, common) = (Arc::clone(config), common.clone());
    tasks.spawn(
        async move { ("entry's reports", report::run(&config, HostRole::Entry, &common, None).await) },
    );
    Ok(())
}

/// The roles that a process takes: those asked for, which the configuration must name, else all.
pub fn roles(config: &Config, asked: &[Role]) -> Result<BTreeSet<Role>> {
    if let Some(stranger) = asked.iter().find(|role| !config.roles.contains(role)) {
        bail!("--role {}: the configuration's `roles` does not name it", stranger.name());
    }
    let roles = if asked.is_empty() { &config.roles } else { asked };
    Ok(roles.iter().copied().collect())
}

async fn told_to_end() -> Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// Tells systemd, where it started this process with `Type=notify`.
fn notify(what: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|s| s.send_to(what.as_bytes(), &socket));
    if let Err(e) = told {
        tracing::debug!("systemd was not told {what}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config() -> Config {
        Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("mashinesd.example.toml")).unwrap()
    }

    #[test]
    fn without_a_role_asked_for_all_run() {
        assert_eq!(roles(&config(), &[]).unwrap().len(), 4);
        assert_eq!(roles(&config(), &[Role::Netd]).unwrap(), BTreeSet::from([Role::Netd]));
    }

    #[test]
    fn a_role_that_the_configuration_lacks_is_refused() {
        let mut config = config();
        config.roles = vec![Role::Host];
        assert!(roles(&config, &[Role::Control]).is_err());
    }

    #[tokio::test]
    async fn a_role_that_fails_is_named() {
        let failed = whose(Ok(("netd", Err(anyhow!("no tun device"))))).unwrap_err();
        assert_eq!(format!("{failed:#}"), "the role netd ended: no tun device");
    }
}
