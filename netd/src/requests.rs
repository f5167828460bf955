//! What each request does, in which order, and what is undone when a step fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Instance, Phase, Port, Reply, Request};
use crate::config::{Ingress, Role};
use crate::error::Error;
use crate::kernel::{LinkSettings, announce, sysctl, tap};
use crate::ledger::{Change, Entry, Verdict};
use crate::shell::{Core, Shell, port_of};

/// When the announcements after the first go out: the first may meet a neighbour that is not listening yet.
const ANNOUNCE_AGAIN: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];

/// How long `remove` waits for a monitor that was killed to let go of its tap.
const RELEASE: Duration = Duration::from_secs(1);

impl Shell {
    /// Follows one request.
    pub(crate) async fn handle(self: &Arc<Self>, request: Request) -> Reply {
        let result = match request {
            Request::Status => return Reply::Status(Box::new(self.status().await)),
            Request::Prepare(port) => self.prepare(port).await,
            Request::Remove(at) => self.remove(at).await,
            Request::Activate(at) => self.phase(at, Phase::Active).await,
            Request::Suppress(at) => self.phase(at, Phase::Suppressed).await,
            Request::Announce(at) => self.announce(at).await,
            Request::Redirect { machine, epoch, to_host } => {
                self.redirect(Change::Redirect { machine: machine.clone(), epoch, to_host }, &machine).await
            }
        };
        match result {
            Ok(()) => Reply::Done,
            Err(why) => Reply::Refused(why),
        }
    }

    /// The intention is kept first, then tap, then filters; the route stays where it was.
    async fn prepare(&self, port: Port) -> Result<(), String> {
        if self.config.role == Role::Entry {
            return Err(format!("prepare {}: this host is an entry and runs no machines", port.machine_id));
        }
        let mut slow = self.slow.lock().await;
        let machine = port.machine_id.clone();
        let before = {
            let mut core = self.core.lock().await;
            let before = core.ledger.get(&machine).cloned().unwrap_or_default();
            let verdict = self.decide(&core, &Change::Prepare(Box::new(port.clone())))?;
            self.record(&mut core, &machine, verdict)?;
            before
        };
        let made = match self.make_tap(&port).await {
            Ok(()) => self.settle_filters(&mut slow).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            return Err(format!(
                "prepare {machine}: {error}{}",
                self.unprepare(&mut slow, &machine, before, &port).await
            ));
        }
        let stale = before.port.filter(|local| local.port.tap != port.tap).map(|local| local.port.tap);
        if let Some(stale) = stale {
            self.log("remove the tap of an older epoch", remove_tap(&stale).await);
        }
        let mut core = self.core.lock().await;
        self.settle(&mut core, &machine)
            .await
            .map_err(|error| format!("prepare {machine}: {error}; it is tried again"))
    }

    /// Goes back to what was before a `prepare` that failed; answers what could not be undone.
    async fn unprepare(
        &self,
        slow: &mut crate::shell::Slow,
        machine: &str,
        before: Entry,
        port: &Port,
    ) -> String {
        let kept = before.port.as_ref().is_some_and(|local| local.port.tap == port.tap);
        let mut left = Vec::new();
        {
            let mut core = self.core.lock().await;
            left.extend(self.put_back(&mut core, machine, before).err());
        }
        if !kept {
            left.extend(remove_tap(&port.tap).await.err().map(|e| e.to_string()));
        }
        left.extend(self.settle_filters(slow).await.err().map(|e| e.to_string()));
        if left.is_empty() { String::new() } else { format!("; and undoing it: {}", left.join("; ")) }
    }

    /// The tap with its addresses; what is there already is left as it is.
    pub(crate) async fn make_tap(&self, port: &Port) -> Result<(), Error> {
        tap::create(&port.tap)?;
        sysctl::quiet(&port.tap)?;
        let link = self.kernel.link(&port.tap).await?;
        let settings = LinkSettings { mtu: Some(port.mtu), mac: Some(GATEWAY_MAC), queue: Some(tap::QUEUE) };
        self.kernel.set_up(&link, settings).await?;
        self.kernel.add_address(&link, GATEWAY_V6.into(), 64).await?;
        self.kernel.add_neighbour(&link, port.ipv6.into(), port.mac).await?;
        if let Some(private6) = port.private6 {
            self.kernel.add_neighbour(&link, private6.into(), port.mac).await?;
        }
        if let Some(ipv4) = port.ipv4 {
            self.kernel.add_address(&link, GATEWAY_V4.into(), 32).await?;
            self.kernel.add_neighbour(&link, ipv4.into(), port.mac).await?;
        }
        Ok(())
    }

    async fn phase(&self, at: Instance, phase: Phase) -> Result<(), String> {
        if phase == Phase::Active {
            let tap = port_of(&*self.core.lock().await, &at.machine).map(|port| port.tap);
            if let Some(tap) = tap {
                let ready = self.kernel.wait_until_it_sends(&tap).await;
                ready.map_err(|error| format!("activate {}: {error}", at.machine))?;
            }
        }
        let mut core = self.core.lock().await;
        let machine = at.machine.clone();
        let before = core.ledger.get(&machine).cloned().unwrap_or_default();
        let verdict = self.decide(&core, &Change::Phase(at, phase))?;
        self.record(&mut core, &machine, verdict)?;
        let Err(error) = self.settle(&mut core, &machine).await else { return Ok(()) };
        if phase == Phase::Suppressed {
            return Err(format!("suppress {machine}: {error}; it is tried again every second"));
        }
        // The caller is told that the machine cannot be reached here, so nothing may make it so later.
        let undone = self.put_back(&mut core, &machine, before);
        let _ = self.settle(&mut core, &machine).await;
        Err(format!(
            "activate {machine}: {error}{}",
            undone.err().map(|e| format!("; and undoing it: {e}")).unwrap_or_default()
        ))
    }

    /// In a blackout: one rename, one route message an address.
    async fn redirect(&self, change: Change, machine: &str) -> Result<(), String> {
        let begun = Instant::now();
        let mut core = self.core.lock().await;
        let locked = begun.elapsed();
        let verdict = self.decide(&core, &change)?;
        self.record(&mut core, machine, verdict)?;
        let kept = begun.elapsed();
        // The hand-over is a fact whatever the kernel says here: no going back, only trying again.
        let settled = self.settle(&mut core, machine).await;
        tracing::debug!(machine, ?locked, ?kept, routed = ?begun.elapsed(), "redirected");
        settled.map_err(|error| format!("redirect {machine}: {error}; it is tried again every second"))
    }

    async fn announce(self: &Arc<Self>, at: Instance) -> Result<(), String> {
        self.phase(at.clone(), Phase::Announced).await?;
        if !matches!(self.config.ingress, Ingress::Ndp { .. }) {
            return Ok(());
        }
        self.advertise(&at.machine).await.map_err(|error| format!("announce {}: {error}", at.machine))?;
        let shell = Arc::clone(self);
        tokio::spawn(async move {
            for pause in ANNOUNCE_AGAIN {
                tokio::time::sleep(pause).await;
                shell.log("announce again", shell.advertise(&at.machine).await);
            }
        });
        Ok(())
    }

    async fn advertise(&self, machine: &str) -> Result<(), Error> {
        let announced = {
            let core = self.core.lock().await;
            let local = core.ledger.get(machine).and_then(|entry| entry.port.as_ref());
            local.filter(|local| local.phase == Phase::Announced).map(|local| local.port.ipv6)
        };
        match (announced, self.ingress_link().await?) {
            (Some(address), Some(link)) => announce::announce(&link, address),
            _ => Ok(()),
        }
    }

    /// Routes first, so that packets already go elsewhere when the tap vanishes.
    async fn remove(&self, at: Instance) -> Result<(), String> {
        let mut slow = self.slow.lock().await;
        let machine = at.machine.clone();
        let tap = {
            let core = self.core.lock().await;
            self.decide(&core, &Change::Remove(at.clone()))?;
            port_of(&core, &machine).map(|port| port.tap)
        };
        let Some(tap) = tap else { return Ok(()) };
        released(&tap).await.map_err(|error| format!("remove {machine}: {error}"))?;
        {
            let mut core = self.core.lock().await;
            // Decided anew: the first lock was given back while the tap was waited for.
            let verdict = self.decide(&core, &Change::Remove(at))?;
            self.record(&mut core, &machine, verdict)?;
            self.log("settle routes", self.settle(&mut core, &machine).await);
        }
        let tap = remove_tap(&tap).await;
        let filters = self.settle_filters(&mut slow).await;
        crate::kernel::all_or_several([tap, filters].into_iter().filter_map(Result::err).collect()).map_err(
            |error| {
                format!(
                    "remove {machine}: its routes are gone, but {error}; it is tried again within a minute"
                )
            },
        )
    }

    fn decide(&self, core: &Core, change: &Change) -> Result<Verdict, String> {
        core.ledger.check(change, self.known(core)).map_err(|refusal| refusal.to_string())
    }

    fn record(&self, core: &mut Core, machine: &str, verdict: Verdict) -> Result<(), String> {
        match verdict {
            Verdict::Already => Ok(()),
            Verdict::Becomes(entry) => self.put_back(core, machine, *entry),
        }
    }

    fn put_back(&self, core: &mut Core, machine: &str, entry: Entry) -> Result<(), String> {
        core.store
            .save(machine, &entry)
            .map_err(|error| format!("{machine}: {error}; nothing was changed"))?;
        core.ledger.set(machine, entry);
        Ok(())
    }
}

/// On a thread that may block: the kernel waits for all readers of a device before it lets it go.
pub(crate) async fn remove_tap(name: &str) -> Result<(), Error> {
    let name = name.to_owned();
    let removed = tokio::task::spawn_blocking(move || tap::remove(&name)).await;
    removed.map_err(|error| Error::Config(format!("the thread that removes a tap ended early: {error}")))?
}

/// Waits until no process holds the tap.
async fn released(name: &str) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + RELEASE;
    loop {
        match tap::released(name) {
            Err(Error::TapHeld { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}
