//! Certificates: ordered, proved, renewed. A role of entries.
//!
//! ```text
//! replica ──next──▶ step, a certificate ──lease (control)──▶ order ──▶ issuer (RFC 8555)
//! (View)   pure, plan.rs                    │                 │ challenge: a record, which dns and the edges of all entries show
//!                                           └── chain, sealed key, next renewal; or what went wrong ──▶ control ──▶ all replicas
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`plan`] | what is to be done about a certificate: pure |
//! | [`worker`] | one step, under the lease |
//! | [`order`], [`ready`] | one order; do all servers show its challenge? |
//! | [`window`] | when it is renewed (RFC 9773) |
//! | [`account`], [`rollover`], [`http`] | our accounts at issuers, a new key for one, and the way there |
//! | [`fault`] | what went wrong: whose fault, what to do, when again |
//!
//! Invariants:
//! - One entry works on a certificate at a time, by a lease in the records; whoever dies loses it by time, and another begins anew.
//! - Nobody's limits are broken: orders and failures are counted in the records, before the issuer is called.
//! - A chain that serves stays until the next one is whole: chain and key are replaced in one transaction.
//! - Private keys leave this process sealed, and are in no log.

pub mod account;
pub mod clock;
pub mod config;
pub mod control;
pub mod fault;
pub mod http;
pub mod order;
pub mod plan;
pub mod ready;
pub mod rollover;
pub mod window;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mashines_fleet::daemon::{Common, RoleFuture};
use mashines_fleet::id::{DomainName, HostId, IssuerName};
use mashines_fleet::record::Certificate;
use mashines_fleet::view::View;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use crate::account::Doors;
use crate::clock::Clock;
pub use crate::config::Config;
use crate::control::Control;
use crate::plan::{Policy, Step, next, urgency};
use crate::worker::{Surroundings, work};

/// Makes a call to an issuer again when it did not take the nonce: it may refuse any, and the client itself tries three times only.
#[macro_export]
#[doc(hidden)]
macro_rules! past_nonces {
    ($call:expr) => {{
        let mut left = 12_u32;
        loop {
            match $call.await {
                Err(error) if left > 0 && $crate::fault::is_bad_nonce(&error) => left -= 1,
                outcome => break outcome,
            }
        }
    }};
}

/// Certificates worked on at the same time by one entry.
const PARALLEL: usize = 4;

/// A look at everything even when nothing was heard: the time passes, and a clock may be set.
const TICK: Duration = Duration::from_secs(1);

/// From one try to change an account's key to the next.
const ROLL_AGAIN: Duration = Duration::from_secs(30);

/// After control could not be asked, or said that another is at work.
const PAUSE: Duration = Duration::from_secs(5);

/// The role: goes on until the daemon ends.
///
/// # Errors
/// The configuration cannot work, or names a file that cannot be used.
pub fn run(config: Config, common: Common) -> RoleFuture<anyhow::Result<()>> {
    run_with(config, common, Clock::system())
}

/// The same by another clock.
///
/// # Errors
/// As [`run`].
pub fn run_with(config: Config, common: Common, clock: Clock) -> RoleFuture<anyhow::Result<()>> {
    Box::pin(async move {
        config.check()?;
        let me = common
            .identity
            .host()
            .context("certificates are had by entries: this is no entry's certificate")?;
        let around = Surroundings {
            views: common.view.clone(),
            secrets: common.secret.clone(),
            control: Control::new(&common.identity, &config.control).context("the entry's certificate")?,
            clock,
            doors: Doors::open(&config.issuers, config.call_timeout())?,
            ports: config.ports,
            order_timeout: config.order_timeout(),
        };
        tracing::info!(issuers = ?config.issuers.iter().map(|issuer| issuer.name.as_str()).collect::<Vec<_>>(), "certificates are had");
        let role = Role { around: Arc::new(around), me, failures_before_next: config.failures_before_next };
        tokio::select! {
            () = common.stopped() => Ok(()),
            () = role.serve() => Ok(()),
        }
    })
}

#[derive(Clone)]
struct Role {
    around: Arc<Surroundings>,
    me: HostId,
    failures_before_next: u32,
}

/// What goes on, and what rests.
#[derive(Default)]
struct Desk {
    /// Ends with whether control heard of the outcome.
    tasks: JoinSet<bool>,
    busy: BTreeMap<task::Id, DomainName>,
    paused: BTreeMap<DomainName, Instant>,
    platform_asked: Option<Instant>,
    /// Accounts whose key is being changed, and not tried before.
    rolling: BTreeMap<IssuerName, Instant>,
}

impl Role {
    async fn serve(self) {
        let mut views = self.around.views.clone();
        let mut desk = Desk::default();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            self.begin(&view, &mut desk);
            tokio::select! {
                changed = views.changed() => if changed.is_err() {
                    // The replica's end is the daemon's end.
                    std::future::pending().await
                },
                Some(ended) = desk.tasks.join_next_with_id() => desk.end(ended),
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Begins what is to be done and is not under way.
    fn begin(&self, view: &View, desk: &mut Desk) {
        desk.paused.retain(|_, until| Instant::now() < *until);
        if desk.platform_asked.is_none_or(|at| at.elapsed() > PAUSE)
            && let Some(names) = missing_platform(view)
        {
            desk.platform_asked = Some(Instant::now());
            let around = Arc::clone(&self.around);
            desk.tasks.spawn(async move {
                if let Err(error) = around.control.want(names).await {
                    tracing::warn!(%error, "the platform's certificate cannot be asked for; tried again");
                }
                true
            });
        }
        if self.around.secrets.borrow().is_none() {
            return;
        }
        self.roll_keys(view, desk);
        for name in self.plan(view) {
            if desk.busy.len() >= PARALLEL {
                return;
            }
            if desk.busy.values().any(|busy| *busy == name) || desk.paused.contains_key(&name) {
                continue;
            }
            let (role, mine) = (self.clone(), name.clone());
            let begun = desk.tasks.spawn(async move {
                let outcome =
                    work(&role.around, &mine, |record| role.next(record, &role.around.view())).await;
                if let Err(error) = &outcome {
                    tracing::info!(name = %mine, %error, "left for now");
                }
                outcome.is_ok()
            });
            desk.busy.insert(begun.id(), name);
        }
    }

    /// Goes on with the changes of accounts' keys that administrators asked for.
    fn roll_keys(&self, view: &View, desk: &mut Desk) {
        desk.rolling.retain(|_, until| Instant::now() < *until);
        for name in &self.around.doors.names {
            let rolls = view.acme_accounts.get(name).is_some_and(|account| account.rolling().is_some());
            let Some(door) =
                self.around.doors.get(name).filter(|_| rolls && !desk.rolling.contains_key(name))
            else {
                continue;
            };
            // Longer than its calls may take: it is not begun twice.
            desk.rolling.insert(name.clone(), Instant::now() + ROLL_AGAIN);
            let (around, door) = (Arc::clone(&self.around), Arc::clone(door));
            desk.tasks.spawn(async move {
                let Ok(secret) = around.secret() else { return true };
                let view = around.view();
                let rolled = door.roll(&view, &around.control, &secret, &around.clock);
                match tokio::time::timeout(ROLL_AGAIN, rolled).await {
                    Ok(Ok(())) => (),
                    Ok(Err(fault)) => {
                        tracing::warn!(issuer = %door.issuer.name, %fault, "the account's key is not changed");
                    }
                    Err(_late) => tracing::warn!(issuer = %door.issuer.name, "the change of the account's key takes too long"),
                }
                true
            });
        }
    }

    fn next(&self, certificate: &Certificate, view: &View) -> Step {
        let issuers = &self.around.doors.names;
        let policy = Policy { issuers, failures_before_next: self.failures_before_next };
        next(certificate, view, policy, &self.me, self.around.clock.now())
    }

    /// What is to be done now, the most urgent first.
    fn plan(&self, view: &View) -> Vec<DomainName> {
        let due = |certificate: &&Arc<Certificate>| match self.next(certificate, view) {
            Step::Nothing | Step::Until(_) => false,
            Step::AskWindow | Step::Order(_) => true,
        };
        let mut due: Vec<_> = view.certificates.values().filter(due).collect();
        due.sort_by_cached_key(|certificate| (urgency(certificate), certificate.id.clone()));
        due.into_iter().map(|certificate| certificate.id.clone()).collect()
    }
}

impl Desk {
    fn end(&mut self, ended: Result<(task::Id, bool), task::JoinError>) {
        let (id, told) = ended.unwrap_or_else(|error| {
            tracing::error!(%error, "work on a certificate broke off");
            (error.id(), false)
        });
        if let Some(name) = self.busy.remove(&id).filter(|_| !told) {
            self.paused.insert(name, Instant::now() + PAUSE);
        }
    }
}

/// The platform's names, while there is no record of their certificate.
fn missing_platform(view: &View) -> Option<Vec<DomainName>> {
    let domain = &view.config.as_ref()?.domain;
    let names: Vec<DomainName> = vec![format!("*.{domain}").parse().ok()?, domain.parse().ok()?];
    names.first().is_some_and(|first| !view.certificates.contains_key(first)).then_some(names)
}
