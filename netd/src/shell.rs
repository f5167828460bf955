//! The thin shell around the pure parts: holds what is known, and carries differences to the kernel.
//!
//! Two lanes, because the redirect of a migration must not wait for anything slow:
//! - [`Core`], behind one lock, is the ledger, the records and the known routes. It is held for a file's rename and a few
//!   route messages.
//! - [`Slow`], behind another, serialises taps and filters. Whoever needs both takes `Slow` first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};

use futures_util::future::join_all;
use tokio::sync::Mutex;

use crate::api::{Port, PortStatus, Status};
use crate::config::{Ingress, NetdConfig};
use crate::error::Error;
use crate::filter;
use crate::kernel::{Kernel, Link, all_or_several};
use crate::ledger::Ledger;
use crate::plan::{Filters, Known, RouteKey, Target};
use crate::reconcile::{Action, Owner, Routes};
use crate::store::Store;
use crate::view::NetView;

/// Machines whose routes are settled before others get their turn at the lock.
const BATCH: usize = 32;

/// One host's netd.
#[derive(Debug)]
pub struct Shell {
    pub(crate) config: NetdConfig,
    pub(crate) kernel: Kernel,
    pub(crate) core: Mutex<Core>,
    pub(crate) slow: Mutex<Slow>,
    pub(crate) wireguard_public_key: Option<String>,
    // What failed last, by machine (or "" for the host): tried again every second.
    troubles: PlainMutex<BTreeMap<String, String>>,
}

/// What the fast lane works on.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) ledger: Ledger,
    pub(crate) store: Store,
    pub(crate) view: Arc<NetView>,
    pub(crate) routes: Routes,
    pub(crate) proxies: BTreeMap<String, BTreeSet<Ipv6Addr>>,
}

/// What the slow lane works on.
#[derive(Debug, Default)]
pub(crate) struct Slow {
    /// What the filters hold; none when that is not known and all must be loaded.
    pub(crate) filters: Option<Filters>,
    /// The peers of the WireGuard device.
    pub(crate) peers: crate::kernel::wireguard::Peers,
}

impl Shell {
    pub(crate) fn new(
        config: NetdConfig,
        kernel: Kernel,
        core: Core,
        slow: Slow,
        wireguard_public_key: Option<String>,
    ) -> Self {
        Self {
            config,
            kernel,
            core: Mutex::new(core),
            slow: Mutex::new(slow),
            wireguard_public_key,
            troubles: PlainMutex::default(),
        }
    }

    pub(crate) fn known<'a>(&'a self, core: &'a Core) -> Known<'a> {
        Known { config: &self.config, view: &core.view }
    }

    /// Makes the kernel's routes of one machine what the plan wants.
    pub(crate) async fn settle(&self, core: &mut Core, machine: &str) -> Result<(), Error> {
        let known = self.known(core);
        let entry = core.ledger.get(machine);
        let desired = known.machine_routes(machine, entry);
        let proxies = known.proxies(machine, entry);
        let routes = self.settle_routes(core, &Owner::Machine(machine.into()), &desired).await;
        let proxies = self.settle_proxies(core, machine, proxies).await;
        let result = all_or_several([routes, proxies].into_iter().filter_map(Result::err).collect());
        self.note(machine, &result);
        result
    }

    /// Makes the host's own routes what the plan wants.
    pub(crate) async fn settle_host(&self, core: &mut Core) -> Result<(), Error> {
        let desired = self.known(core).host_routes();
        let result = self.settle_routes(core, &Owner::Host, &desired).await;
        self.note("", &result);
        result
    }

    async fn settle_routes(
        &self,
        core: &mut Core,
        owner: &Owner,
        desired: &BTreeMap<RouteKey, Target>,
    ) -> Result<(), Error> {
        core.routes.claim(owner, desired);
        let actions = core.routes.diff(owner, desired);
        self.carry_out(core, owner, actions).await
    }

    /// Sends all actions at once, then waits for the kernel's answers.
    async fn carry_out(&self, core: &mut Core, owner: &Owner, mut actions: Vec<Action>) -> Result<(), Error> {
        // The public address first: it is the one that somebody waits for.
        actions.sort_by_key(|action| match action {
            Action::Put(key, _) | Action::Drop(key) => key.prefix.is_ipv4(),
        });
        let sent = actions.iter().map(|action| async move {
            match action {
                Action::Put(key, target) => {
                    self.kernel.put_route(key, target, &self.config.overlay_interface).await
                }
                Action::Drop(key) => self.kernel.drop_route(key).await,
            }
        });
        let answers = join_all(sent).await;
        let mut failures = Vec::new();
        for (action, answer) in actions.into_iter().zip(answers) {
            match answer {
                Ok(()) => core.routes.done(owner, action),
                Err(error) => failures.push(error),
            }
        }
        all_or_several(failures)
    }

    async fn settle_proxies(
        &self,
        core: &mut Core,
        machine: &str,
        desired: BTreeSet<Ipv6Addr>,
    ) -> Result<(), Error> {
        let held = core.proxies.get(machine).cloned().unwrap_or_default();
        if held == desired {
            return Ok(());
        }
        let Some(link) = self.ingress_link().await? else { return Ok(()) };
        for address in desired.difference(&held) {
            self.kernel.add_proxy(&link, *address).await?;
        }
        for address in held.difference(&desired) {
            self.kernel.delete_proxy(&link, *address).await?;
        }
        if desired.is_empty() {
            core.proxies.remove(machine);
        } else {
            core.proxies.insert(machine.to_owned(), desired);
        }
        Ok(())
    }

    /// The interface on the shared L2, where there is one.
    pub(crate) async fn ingress_link(&self) -> Result<Option<Link>, Error> {
        let Ingress::Ndp { interface } = &self.config.ingress else { return Ok(None) };
        let link = self.kernel.find_link(interface).await?;
        link.map(Some).ok_or_else(|| {
            Error::Config(format!("the ingress interface {interface} does not exist on this host"))
        })
    }

    /// Makes the filters hold what the plan wants; loads everything anew when a batch is refused.
    pub(crate) async fn settle_filters(&self, slow: &mut Slow) -> Result<(), Error> {
        let wanted = {
            let core = self.core.lock().await;
            self.known(&core).filters(&core.ledger)
        };
        if let Some(held) = &slow.filters {
            let Some(batch) = filter::delta(held, &wanted) else { return Ok(()) };
            match filter::load(&batch).await {
                Ok(()) => {
                    slow.filters = Some(wanted);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "a batch of filter changes was refused; loading all filters anew")
                }
            }
        }
        slow.filters = None;
        filter::load(&filter::ruleset(&self.config, &wanted)).await?;
        slow.filters = Some(wanted);
        Ok(())
    }

    /// Follows a new view of the fleet.
    pub(crate) async fn follow(&self, view: Arc<NetView>) {
        let (first, machines) = {
            let mut core = self.core.lock().await;
            let old = std::mem::replace(&mut core.view, Arc::clone(&view));
            let caught_up = core.ledger.follow(&view);
            for machine in &caught_up {
                let entry = core.ledger.get(machine).cloned().unwrap_or_default();
                if let Err(error) = core.store.save(machine, &entry) {
                    tracing::warn!(%machine, %error, "an entry that the records caught up with stays on disk");
                }
            }
            let first = old.revision == 0 && view.revision > 0;
            let all = first || old.hosts != view.hosts;
            (first, if all { everyone(&core) } else { changed(&old, &view, caught_up) })
        };
        self.settle_all(machines).await;
        let mut core = self.core.lock().await;
        self.log("follow the fleet's records", self.settle_host(&mut core).await);
        if first {
            self.drop_leftovers(&mut core).await;
        }
        drop(core);
        let mut slow = self.slow.lock().await;
        self.log("follow the fleet's records", self.settle_filters(&mut slow).await);
        self.log("follow the fleet's records", self.settle_peers(&mut slow, &view).await);
    }

    /// Settles many machines, giving way to requests between batches.
    pub(crate) async fn settle_all(&self, machines: BTreeSet<String>) {
        let machines: Vec<String> = machines.into_iter().collect();
        for batch in machines.chunks(BATCH) {
            let mut core = self.core.lock().await;
            for machine in batch {
                self.log("settle routes", self.settle(&mut core, machine).await);
            }
        }
    }

    pub(crate) async fn drop_leftovers(&self, core: &mut Core) {
        let leftovers = core.routes.leftovers();
        if !leftovers.is_empty() {
            tracing::info!(count = leftovers.len(), "removing routes that belong to nobody");
            self.log("remove leftover routes", self.carry_out(core, &Owner::Unclaimed, leftovers).await);
        }
    }

    /// Tries again what failed.
    pub(crate) async fn retry(&self) {
        let machines: BTreeSet<String> =
            self.troubles.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        if machines.contains("") {
            let mut core = self.core.lock().await;
            self.log("try again", self.settle_host(&mut core).await);
        }
        self.settle_all(machines.into_iter().filter(|machine| !machine.is_empty()).collect()).await;
        let mut slow = self.slow.lock().await;
        if slow.filters.is_none() {
            self.log("try again", self.settle_filters(&mut slow).await);
        }
        // Says nothing to the kernel while the peers are as they should be.
        let view = Arc::clone(&self.core.lock().await.view);
        self.log("try again", self.settle_peers(&mut slow, &view).await);
    }

    /// Reads back what the kernel holds and repairs what somebody else changed.
    pub(crate) async fn audit(&self) {
        let slow = self.slow.lock().await;
        self.settle_taps(false).await;
        drop(slow);
        let machines = {
            let mut core = self.core.lock().await;
            match self.kernel.routes(&self.config.overlay_interface).await {
                Ok(found) => core.routes.found(found),
                Err(error) => return self.log("audit the routes", Err(error)),
            }
            everyone(&core)
        };
        self.settle_all(machines).await;
        let mut core = self.core.lock().await;
        self.log("audit the routes", self.settle_host(&mut core).await);
        if core.view.revision > 0 {
            self.drop_leftovers(&mut core).await;
        }
    }

    pub(crate) async fn status(&self) -> Status {
        let core = self.core.lock().await;
        let ports = core.ledger.iter().filter_map(|(machine, entry)| {
            let local = entry.port.as_ref()?;
            Some((machine.clone(), PortStatus { port: local.port.clone(), phase: local.phase }))
        });
        let redirects = core.ledger.iter().filter_map(|(machine, entry)| {
            let redirect = entry.redirect.as_ref()?;
            Some((machine.clone(), (redirect.epoch, redirect.to_host.clone())))
        });
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            host_id: self.config.host_id.clone(),
            revision: core.view.revision,
            ports: ports.collect(),
            redirects: redirects.collect(),
            routes: core
                .routes
                .iter()
                .map(|(key, target)| (key.prefix.to_string(), target.to_string()))
                .collect(),
            wireguard_public_key: self.wireguard_public_key.clone(),
            troubles: troubles.iter().map(|(machine, error)| format!("{machine}: {error}")).collect(),
        }
    }

    fn note(&self, machine: &str, result: &Result<(), Error>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => troubles.remove(machine),
            Err(error) => troubles.insert(machine.to_owned(), error.to_string()),
        };
    }

    pub(crate) fn log(&self, doing: &str, result: Result<(), Error>) {
        if let Err(error) = result {
            tracing::warn!(%error, "{doing}: it is tried again");
        }
    }
}

/// The port of a machine, where it has one.
pub(crate) fn port_of(core: &Core, machine: &str) -> Option<Port> {
    core.ledger.get(machine)?.port.as_ref().map(|local| local.port.clone())
}

fn everyone(core: &Core) -> BTreeSet<String> {
    let owners = core.routes.owners().filter_map(|owner| match owner {
        Owner::Machine(machine) => Some(machine.to_string()),
        Owner::Host | Owner::Unclaimed => None,
    });
    let told = core.ledger.iter().map(|(machine, _)| machine.clone());
    owners.chain(told).chain(core.view.machines.keys().cloned()).collect()
}

fn changed(old: &NetView, new: &NetView, also: Vec<String>) -> BTreeSet<String> {
    let gone = old.machines.keys().filter(|machine| !new.machines.contains_key(*machine));
    let other = new.machines.iter().filter(|(machine, record)| old.machines.get(*machine) != Some(*record));
    gone.chain(other.map(|(machine, _)| machine)).cloned().chain(also).collect()
}
