//! One piece of work on one certificate, under its lease: an order, or a question for the window.

use std::sync::Arc;
use std::time::Duration;

use mashines_fleet::chain::Chain;
use mashines_fleet::entry_api::{Failed, Issued, Window};
use mashines_fleet::id::DomainName;
use mashines_fleet::issuance::LEASE;
use mashines_fleet::key::Key;
use mashines_fleet::record::Certificate;
use mashines_fleet::rpc::RpcError;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use tokio::sync::watch;

use crate::account::{Door, Doors};
use crate::clock::Clock;
use crate::config::Ports;
use crate::control::Control;
use crate::fault::Fault;
use crate::order::{Shown, order};
use crate::plan::{Step, try_again};
use crate::window::{self, Answer};

/// What all work is given.
pub struct Surroundings {
    /// The fleet.
    pub views: watch::Receiver<Arc<View>>,
    /// What opens and seals secrets.
    pub secrets: watch::Receiver<Option<EntrySecret>>,
    /// Control.
    pub control: Control,
    /// The time.
    pub clock: Clock,
    /// The issuers.
    pub doors: Doors,
    /// Where it is looked whether a challenge is shown.
    pub ports: Ports,
    /// How long an order may take.
    pub order_timeout: Duration,
}

impl Surroundings {
    /// The fleet, now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }

    /// The secret.
    ///
    /// # Errors
    /// Control has not told it yet.
    pub fn secret(&self) -> Result<EntrySecret, Fault> {
        let none = || Fault::Ours("control has not told this entry the entries' secret yet".to_owned());
        self.secrets.borrow().clone().ok_or_else(none)
    }

    /// Control did not do what it was asked.
    pub fn ours(&self, error: &RpcError) -> Fault {
        match error.status() {
            Some(http::StatusCode::TOO_MANY_REQUESTS) => {
                Fault::Ours(format!("our own limit: {}", error.message()))
            }
            _ => Fault::Ours(format!("control: {}", error.message())),
        }
    }
}

/// Does what is to be done about a certificate, under the lease. It is decided anew by the record as it is then: the replica that led
/// here may lag behind, and what was done a moment ago is not to be done twice.
///
/// # Errors
/// Control cannot be asked, or another has the lease: nothing was done.
pub async fn work(
    around: &Surroundings,
    name: &DomainName,
    decide: impl FnOnce(&Certificate) -> Step,
) -> Result<(), RpcError> {
    let certificate = &around.control.lease(name).await?.certificate;
    let shown = Shown::default();
    let done = async {
        match decide(certificate) {
            Step::Nothing | Step::Until(_) => around.control.release(name).await,
            Step::Order(n) => match around.doors.at(n) {
                Some(door) => ordered(around, certificate, door, &shown).await,
                None => around.control.release(name).await,
            },
            Step::AskWindow => {
                let issuer = certificate.issuer.as_ref().and_then(|issuer| issuer.parse().ok());
                let door = issuer.and_then(|issuer| around.doors.get(&issuer));
                asked(around, certificate, door.map(AsRef::as_ref)).await
            }
        }
    };
    let outcome = tokio::select! {
        outcome = done => outcome,
        lost = keep(around, name) => Err(lost),
    };
    for id in shown.lock().await.drain(..) {
        if let Err(error) = around.control.hide(&id).await {
            // It goes by time.
            tracing::debug!(%name, %error, "a challenge stays for now");
        }
    }
    outcome
}

/// Keeps the lease; returns when it is lost.
async fn keep(around: &Surroundings, name: &DomainName) -> RpcError {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LEASE / 4).await;
        match around.control.lease(name).await {
            Ok(_) => last = tokio::time::Instant::now(),
            // While control is away nobody else can take it either, but by its end it is over for us too.
            Err(error) if error.is_unanswered() && last.elapsed() < LEASE * 3 / 4 => {}
            Err(error) => return error,
        }
    }
}

async fn ordered(
    around: &Surroundings,
    certificate: &Certificate,
    door: &Arc<Door>,
    shown: &Shown,
) -> Result<(), RpcError> {
    let issuer = &door.issuer.name;
    tracing::info!(name = %certificate.id, %issuer, "ordering a certificate");
    let timeout = around.order_timeout;
    let late = || Err(Fault::Unreachable(format!("the order was not done within {timeout:?}")));
    let outcome = tokio::time::timeout(timeout, order(certificate, door, around, shown)).await;
    let got = match outcome.unwrap_or_else(|_| late()) {
        Ok(got) => got,
        Err(fault) => return failed(around, certificate, door, &fault).await,
    };
    let answer = window::ask(&got.chain, door, around).await;
    let (renew_at, ask_window_at) =
        window::first_plan(&got.chain, answer, around.clock.now(), rand::random());
    let sealed = match &got.key_pem {
        None => Ok(None),
        Some(key) => around.secret().and_then(|secret| {
            let sealed = secret.seal(&Key::Certificate(certificate.id.clone()), key.as_bytes());
            sealed.map(Some).map_err(|error| Fault::Ours(error.to_string()))
        }),
    };
    let key = match sealed {
        Ok(key) => key,
        Err(fault) => return failed(around, certificate, door, &fault).await,
    };
    let body = Issued { issuer: issuer.clone(), chain_pem: got.chain_pem, key, renew_at, ask_window_at };
    around.control.issued(&certificate.id, &body).await
}

async fn failed(
    around: &Surroundings,
    certificate: &Certificate,
    door: &Door,
    fault: &Fault,
) -> Result<(), RpcError> {
    let now = around.clock.now();
    let body = Failed {
        issuer: door.issuer.name.clone(),
        what: format!("{}: {fault}", door.issuer.name),
        hint: fault.hint(),
        next_try_at: try_again(certificate, fault, now, rand::random()),
        invalid: fault.invalid(),
        limited: fault.limited(),
    };
    around.control.failed(&certificate.id, &body).await
}

/// Asks for the window; a certificate of an issuer that is no longer configured has none.
async fn asked(
    around: &Surroundings,
    certificate: &Certificate,
    door: Option<&Door>,
) -> Result<(), RpcError> {
    let never = u64::MAX;
    let chain = certificate.chain_pem.as_deref().and_then(|pem| Chain::parse(pem).ok());
    let answer = match (&chain, door) {
        (Some(chain), Some(door)) => window::ask(chain, door, around).await,
        (None, _) | (_, None) => Answer::None,
    };
    let body = match answer {
        Answer::None => Window { renew_at: None, ask_window_at: never },
        Answer::Silent { ask_again } => Window { renew_at: None, ask_window_at: ask_again },
        Answer::Window { start, end, ask_again } => Window {
            renew_at: Some(window::moment((start, end), certificate.renew_at, rand::random())),
            ask_window_at: ask_again,
        },
    };
    around.control.window(&certificate.id, &body).await
}
