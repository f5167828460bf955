//! Health checks: what the owner of a service wants to see before anybody is sent there.
//!
//! Each check of each running machine has a task that tries it at its interval; the table holds what was seen last. A service is unhealthy
//! when a check of it failed twice in a row, after the machine's grace period; it is healthy again with the first success, and whenever
//! nobody looks (a machine that stands still, or was just started). [`super::checks`] tells control.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{Method, Request};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mashines_fleet::api::CheckStatus;
use mashines_fleet::id::MachineId;
use mashines_fleet::record::services::{CheckKind, Interval, ServiceCheck};
use mashines_fleet::record::{MachineState, UnixMs};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::{debug, info};

use super::body::Upload;
use super::proxy;
use super::sites::Sites;

const INTERVAL: Interval = Interval::seconds(15);
const TIMEOUT: Interval = Interval::seconds(2);
const GRACE: Interval = Interval::seconds(10);

/// Failures in a row that make a service unhealthy: one may be a packet lost in a move.
const FAILURES: u32 = 2;

/// One check: the machine, the service's port, its number there.
pub type Which = (MachineId, u16, usize);

/// What was seen of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Failures in a row.
    pub failures: u32,
    /// What the last look found, for people.
    pub found: String,
    /// Since when it comes to what it does.
    pub since: UnixMs,
}

impl Seen {
    /// What it comes to.
    pub fn status(&self) -> CheckStatus {
        match self.failures {
            0 => CheckStatus::Passing,
            failures if failures < FAILURES => CheckStatus::Warning,
            _ => CheckStatus::Critical,
        }
    }
}

/// What was seen of all checks.
#[derive(Debug, Default)]
pub struct Health {
    seen: Mutex<HashMap<Which, Seen>>,
    /// A check comes to something else than before.
    pub changed: Notify,
}

impl Health {
    /// Why a service is unhealthy; none when it is not.
    pub fn complaint(&self, machine: &MachineId, port: u16, checks: usize) -> Option<String> {
        if checks == 0 {
            return None;
        }
        let seen = self.lock();
        let bad = (0..checks).filter_map(|number| seen.get(&(machine.clone(), port, number)));
        bad.filter(|seen| seen.status() == CheckStatus::Critical).map(|seen| seen.found.clone()).next()
    }

    /// Takes note of a look at `now`.
    pub fn note(&self, which: &Which, looked: Result<String, String>, now: UnixMs) {
        let mut table = self.lock();
        let before = table.get(which);
        let (failures, found) = match looked {
            Ok(found) => (0, found),
            Err(found) => (before.map_or(0, |seen| seen.failures).saturating_add(1), found),
        };
        let mut seen = Seen { failures, found, since: now };
        let was = before.map(Seen::status);
        if let Some(before) = before.filter(|before| before.status() == seen.status()) {
            seen.since = before.since;
        } else {
            self.changed.notify_one();
        }
        let is_bad = |status| status == Some(CheckStatus::Critical);
        if is_bad(was) != is_bad(Some(seen.status())) {
            info!(machine = %which.0, port = which.1, failures, found = %seen.found, "edge: health");
        }
        table.insert(which.clone(), seen);
    }

    fn forget(&self, which: &Which) {
        self.lock().remove(which);
    }

    /// All that was seen.
    pub fn all(&self) -> HashMap<Which, Seen> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Which, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A check as it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looking {
    address: SocketAddr,
    check: ServiceCheck,
    host: String,
    /// Changes with each start: a machine that was started anew has its grace again.
    instance: (String, u64),
}

/// The checks that are to be done: those of running machines.
pub fn wanted(sites: &Sites) -> BTreeMap<Which, Looking> {
    let running = sites.all().filter(|site| site.machine.state == MachineState::Started);
    let each = running.flat_map(|site| {
        site.services().iter().flat_map(move |service| {
            service.checks.iter().enumerate().map(move |(number, check)| {
                let machine = &site.machine;
                let port = check.port.unwrap_or(service.internal_port);
                let looking = Looking {
                    address: SocketAddr::new(machine.net.ipv6.into(), port),
                    check: check.clone(),
                    host: format!("{}.{}", machine.slug, sites.apex()),
                    // A move raises the epoch too, which costs a grace period and nothing else.
                    instance: (
                        machine.instance_id.clone(),
                        machine.place.as_ref().map_or(0, |place| place.epoch.0),
                    ),
                };
                ((machine.id.clone(), service.internal_port, number), looking)
            })
        })
    });
    each.collect()
}

/// Does the checks; runs until the edge ends.
pub async fn follow(health: Arc<Health>, mut sites: watch::Receiver<Arc<Sites>>) {
    let mut running: BTreeMap<Which, (Looking, Task)> = BTreeMap::new();
    loop {
        let wanted = wanted(&sites.borrow_and_update());
        running.retain(|which, (looking, _)| {
            let same = wanted.get(which) == Some(looking);
            if !same {
                health.forget(which);
            }
            same
        });
        for (which, looking) in wanted {
            running.entry(which).or_insert_with_key(|which| {
                let task = tokio::spawn(watch_over(Arc::clone(&health), which.clone(), looking.clone()));
                (looking, Task(task))
            });
        }
        if sites.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A task that ends when dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch_over(health: Arc<Health>, which: Which, looking: Looking) {
    let each = looking.check.interval.unwrap_or(INTERVAL).duration();
    let patience = looking.check.timeout.unwrap_or(TIMEOUT).duration();
    let grace = Instant::now() + looking.check.grace_period.unwrap_or(GRACE).duration();
    let mut ticks = interval_at(Instant::now(), each.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let found = timeout(patience, look(&looking)).await;
        let found = found.unwrap_or_else(|_late| Err(format!("no answer within {patience:?}")));
        debug!(machine = %which.0, port = which.1, ?found, "edge: health check");
        if found.is_ok() || Instant::now() >= grace {
            health.note(&which, found, proxy::now());
        }
    }
}

async fn look(looking: &Looking) -> Result<String, String> {
    let stream = TcpStream::connect(looking.address).await;
    let stream = stream.map_err(|error| format!("connecting to port {}: {error}", looking.address.port()))?;
    match looking.check.kind {
        CheckKind::Tcp => Ok("accepted".to_owned()),
        CheckKind::Http => ask(stream, looking).await,
    }
}

async fn ask(stream: TcpStream, looking: &Looking) -> Result<String, String> {
    let path = looking.check.path.as_deref().unwrap_or("/");
    let method = looking.check.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let told = |error: &dyn std::fmt::Display| format!("{method} {path}: {error}");
    let method = Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?;
    let request = Request::builder().method(&method).uri(path);
    let request = request.header(HOST, &looking.host).header(USER_AGENT, "mashines-health-check");
    let request = request.body(Upload::none()).map_err(|error| told(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer,
        ended = connection => return Err(told(&ended.err().map_or_else(|| "closed".to_owned(), |e| e.to_string()))),
    };
    let status = answer.map_err(|error| told(&error))?.status();
    let found = format!("{method} {path}: {status}");
    if status.is_success() || status.is_redirection() { Ok(found) } else { Err(found) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::directory::tests::{machine, view};

    #[test]
    fn one_failure_is_forgiven_and_one_success_heals() {
        let (health, which) = (Health::default(), (MachineId::random(), 80, 0));
        let complaint = || health.complaint(&which.0, 80, 1);
        assert_eq!(complaint(), None, "nothing is known");
        health.note(&which, Err("503".into()), 1);
        assert_eq!(complaint(), None);
        assert_eq!((health.all()[&which].status(), health.all()[&which].since), (CheckStatus::Warning, 1));
        health.note(&which, Err("504".into()), 2);
        health.note(&which, Err("504".into()), 3);
        assert_eq!((health.all()[&which].status(), health.all()[&which].since), (CheckStatus::Critical, 2));
        assert_eq!(complaint().as_deref(), Some("504"));
        assert_eq!(health.complaint(&which.0, 81, 1), None, "another service");
        health.note(&which, Ok("200".into()), 4);
        assert_eq!(complaint(), None);
    }

    #[test]
    fn running_machines_are_looked_at_and_others_are_not() {
        let mut web = machine("web", "ann");
        web.config.services = serde_json::from_value(json!([{
            "internal_port": 8080, "ports": [{"port": 443, "handlers": ["tls", "http"]}],
            "checks": [{"type": "http", "path": "/up"}, {"type": "tcp", "port": 9000}],
        }]))
        .unwrap();
        let mut off = web.clone();
        off.id = MachineId::random();
        off.slug = "off".parse().unwrap();
        off.state = MachineState::Stopped;
        let sites = Sites::project(&view(&[web.clone(), off]), &Sites::default());
        let ports: Vec<_> = wanted(&sites)
            .into_iter()
            .map(|(which, l)| (which.0, which.1, which.2, l.address.port()))
            .collect();
        assert_eq!(ports, [(web.id.clone(), 8080, 0, 8080), (web.id, 8080, 1, 9000)]);
    }
}
