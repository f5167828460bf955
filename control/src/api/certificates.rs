//! Names and their certificates: added, brought, looked at, shown, removed. The paths are the Fly Machines API's.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use mashines_fleet::api::{self, AddCertificate, Certificates, Done, ImportCertificate};
use mashines_fleet::chain::Chain;
use mashines_fleet::id::{AppName, DomainName};
use mashines_fleet::issuance::is_keyed_here;
use mashines_fleet::key::Key;
use mashines_fleet::record::{Certificate, CertificateSource, Machine, MachineState, Problem, Role};
use mashines_fleet::sealed::Sealed;
use mashines_fleet::view::View;

use super::answer::{Answer, done};
use super::auth::Caller;
use super::request::Payload;
use super::suggest::did_you_mean;
use super::{apps, machines};
use crate::certificates::names::{Named, named, normal};
use crate::certificates::{Added, Claim, MOST_NAMES, add, in_machine, keeper};
use crate::control::Control;
use crate::failure::{Failure, Result};
use crate::records::{Private, retrying};
use crate::time::now;

mod shown;

use shown::shown;

/// A person who asks for another try gets one this long after the last.
const TRY_AGAIN_MS: u64 = 60_000;

pub fn router() -> Router<Control> {
    let of_app = Router::new()
        .route("/", get(list))
        .route("/acme", post(create))
        .route("/custom", post(import))
        .route("/{hostname}", get(show).delete(remove))
        .route("/{hostname}/check", post(check));
    Router::new().nest("/v1/apps/{app}/certificates", of_app).route("/v1/certificates", get(flat))
}

/// A name as a caller sees it: what the account has of it, or claims.
enum Mine {
    Has(Arc<Certificate>),
    Claims(DomainName, Claim),
}

impl Mine {
    fn name(&self) -> &DomainName {
        match self {
            Self::Has(certificate) => &certificate.id,
            Self::Claims(name, _) => name,
        }
    }

    fn app(&self, view: &View) -> Option<AppName> {
        let machine = match self {
            Self::Has(certificate) => certificate.machine.clone(),
            Self::Claims(_, claim) => Some(claim.machine.clone()),
        };
        view.machines.get(&machine?).map(|machine| machine.app.clone())
    }
}

/// The account's names.
async fn mine(control: &Control, caller: &Caller) -> Result<Vec<Mine>> {
    let account = &caller.account.id;
    let view = control.view();
    let has = view.certificates.values().filter(|certificate| certificate.account.as_ref() == Some(account));
    let mut all: Vec<Mine> = has.map(|certificate| Mine::Has(Arc::clone(certificate))).collect();
    let claims = control.records.private_below(&format!("domain-claim/{account}/")).await?;
    all.extend(claims.into_iter().filter_map(|(name, claim)| Some(Mine::Claims(name.parse().ok()?, claim))));
    all.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(all)
}

fn listed(view: &View, all: &[Mine]) -> Certificates {
    let certificates: Vec<_> = all.iter().map(|mine| shown(view, mine, now())).collect();
    Certificates { total_count: certificates.len(), certificates, next_cursor: None }
}

async fn flat(State(control): State<Control>, caller: Caller) -> Answer<Certificates> {
    caller.must(Role::Viewer, "see the certificates")?;
    let mut all = mine(&control, &caller).await?;
    let view = control.view();
    if caller.sees_fleet() {
        let platform = view.certificates.values().filter(|certificate| certificate.account.is_none());
        all.splice(0..0, platform.map(|certificate| Mine::Has(Arc::clone(certificate))));
    }
    Ok(Json(listed(&view, &all)))
}

async fn list(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
) -> Answer<Certificates> {
    caller.must(Role::Viewer, "see the certificates")?;
    let app = apps::of(&control, &caller, &app).await?;
    let view = control.view();
    let mut all = mine(&control, &caller).await?;
    all.retain(|mine| mine.app(&view).as_ref() == Some(&app));
    Ok(Json(listed(&view, &all)))
}

/// The name of a path, which the account has.
async fn find(control: &Control, caller: &Caller, (app, hostname): &(String, String)) -> Result<Mine> {
    let name = normal(hostname)?;
    let app = apps::of(control, caller, app).await?;
    let view = control.view();
    let all = mine(control, caller).await?;
    let at = all.iter().position(|mine| *mine.name() == name && mine.app(&view).as_ref() == Some(&app));
    match at {
        Some(at) => all.into_iter().nth(at).ok_or_else(|| Failure::internal("a list that shrinks")),
        None => {
            let hint = did_you_mean(name.as_str(), all.iter().map(|mine| mine.name().as_str()));
            Err(Failure::not_found(format!(
                "account {} has no name {name} in app {app}{hint}",
                caller.account.id
            )))
        }
    }
}

async fn show(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<api::Certificate> {
    caller.must(Role::Viewer, "see the certificates")?;
    let found = find(&control, &caller, &path).await?;
    Ok(Json(shown(&control.view(), &found, now())))
}

/// The machine that is to serve a name: the one that was named, else the app's only one.
async fn machine_for(
    control: &Control,
    caller: &Caller,
    app: &str,
    name: Option<&str>,
) -> Result<Arc<Machine>> {
    let app = apps::of(control, caller, app).await?;
    let view = control.view();
    if let Some(name) = name {
        let machine = machines::find(&view, caller, Some(app.as_str()), name)?;
        if machine.account != caller.account.id {
            return Err(Failure::invalid(format!(
                "machine {} is shared with account {}: names for it are added by its own account, {}",
                machine.slug, caller.account.id, machine.account
            )));
        }
        if machine.state == MachineState::Destroyed {
            return Err(Failure::conflict(format!("machine {} is destroyed", machine.slug)));
        }
        return Ok(machine);
    }
    let live = view.machines.values().filter(|machine| {
        machine.account == caller.account.id && machine.app == app && machine.state != MachineState::Destroyed
    });
    match live.collect::<Vec<_>>().as_slice() {
        [only] => Ok(Arc::clone(only)),
        [] => Err(Failure::invalid(format!(
            "app {app} has no machine that could serve the name: make one first"
        ))),
        several => Err(Failure::invalid(format!(
            "app {app} has {} machines: say which serves the name, in `machine`",
            several.len()
        ))),
    }
}

/// What is to become of a name, once everything about the request has been looked at.
struct Wish {
    name: DomainName,
    custom: bool,
    machine: Arc<Machine>,
}

async fn wish(
    control: &Control,
    caller: &Caller,
    app: &str,
    (hostname, machine): (&str, Option<&str>),
) -> Result<Wish> {
    caller.must(Role::Operator, "add names")?;
    let of = named(&control.view(), normal(hostname)?)?;
    let name = of.name().clone();
    let machine = match (&of, machine) {
        (Named::Machines(_, slug), None) => machine_for(control, caller, app, Some(slug.as_str())).await?,
        (Named::Machines(..) | Named::Custom(_), machine) => {
            machine_for(control, caller, app, machine).await?
        }
    };
    let custom = match &of {
        Named::Custom(_) => true,
        Named::Machines(_, slug) if *slug == machine.slug => false,
        Named::Machines(_, slug) => {
            return Err(Failure::invalid(format!(
                "{name} is the name of machine {slug}, not of {}",
                machine.slug
            )));
        }
    };
    let known = mine(control, caller).await?;
    if known.len() >= MOST_NAMES && !known.iter().any(|mine| *mine.name() == name) {
        return Err(Failure::conflict(format!(
            "account {} has {MOST_NAMES} names with certificates, which is the most: `mashines certs rm` makes room",
            caller.account.id
        )));
    }
    Ok(Wish { name, custom, machine })
}

async fn create(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
    Payload(body): Payload<AddCertificate>,
) -> Result<(StatusCode, Json<api::Certificate>)> {
    let wish = wish(&control, &caller, &app, (&body.hostname, body.machine.as_deref())).await?;
    if wish.custom && wish.name.base() != wish.name {
        return Err(Failure::invalid(format!(
            "{} is proved to an issuer by DNS alone, and its zone is yours: bring a certificate with `mashines certs import`",
            wish.name
        )));
    }
    let source = match body.key_in_machine {
        true => CertificateSource::Machine,
        false => CertificateSource::Acme,
    };
    written(&control, &caller, &wish, source, None).await
}

/// A certificate that its owner brought, and its key.
struct Brought {
    chain: Chain,
    pem: String,
    sealed: Sealed,
}

impl Brought {
    /// Puts it into the record of its name.
    fn into_record(&self, record: Certificate) -> Certificate {
        Certificate {
            chain_pem: Some(self.pem.clone()),
            key: Some(self.sealed.clone()),
            issuer: Some(self.chain.issuer.clone()).filter(|issuer| !issuer.is_empty()),
            not_before: Some(self.chain.not_before),
            not_after: Some(self.chain.not_after),
            updated_at: now(),
            ..record
        }
    }
}

/// Writes a wish, looks at the domain at once, and shows what became of it.
async fn written(
    control: &Control,
    caller: &Caller,
    wish: &Wish,
    source: CertificateSource,
    brought: Option<&Brought>,
) -> Result<(StatusCode, Json<api::Certificate>)> {
    let owner = (&caller.account.id, &wish.machine.id);
    let added = retrying(|| async {
        let mut edit = control.records.edit();
        let added = add(&mut edit, &wish.name, owner, source, wish.custom).await?;
        let added = match (added, brought) {
            (Added::Has(record), Some(brought)) => {
                let record = brought.into_record(record);
                edit.put(&record)?;
                Added::Has(record)
            }
            (Added::Claims(_), Some(_)) => {
                return Err(Failure::conflict(format!(
                    "{0} is another account's: take it over first, with `mashines certs add {0}` and its proof",
                    wish.name
                )));
            }
            (added, None) => added,
        };
        edit.commit().await?;
        Ok(added)
    })
    .await?;
    caller.audit(&format!("added name {} for machine {}", wish.name, wish.machine.slug));
    if wish.custom
        && let Err(failure) = control.keeper.check(control, &wish.name).await
    {
        tracing::warn!(name = %wish.name, %failure, "a domain cannot be looked at");
    }
    let view = control.view();
    let mine = match (added, view.certificates.get(&wish.name)) {
        (_, Some(now)) if now.account.as_ref() == Some(&caller.account.id) => Mine::Has(Arc::clone(now)),
        (Added::Has(certificate), _) => Mine::Has(Arc::new(certificate)),
        (Added::Claims(claim), _) => Mine::Claims(wish.name.clone(), claim),
    };
    Ok((StatusCode::CREATED, Json(shown(&view, &mine, now()))))
}

/// Takes a certificate that the owner has from elsewhere.
async fn import(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
    Payload(body): Payload<ImportCertificate>,
) -> Result<(StatusCode, Json<api::Certificate>)> {
    let wish = wish(&control, &caller, &app, (&body.hostname, body.machine.as_deref())).await?;
    let bad = |error: &dyn std::fmt::Display| {
        Failure::invalid(format!("the certificate for {} is refused: {error}", wish.name))
    };
    let chain = Chain::parse(&body.fullchain).map_err(|error| bad(&error))?;
    chain.serves(std::slice::from_ref(&wish.name), now()).map_err(|error| bad(&error))?;
    let key = body.private_key.0.as_bytes();
    chain.with_key(key).map_err(|error| bad(&error))?;
    let sealed = control.secret.seal(&Key::Certificate(wish.name.clone()), key);
    let sealed = sealed.map_err(|error| Failure::internal(error.to_string()))?;
    let brought = Brought { chain, pem: body.fullchain, sealed };
    written(&control, &caller, &wish, CertificateSource::Imported, Some(&brought)).await
}

/// Looks at the domain now, and lets entries try again now if nothing forbids it.
async fn check(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<api::Certificate> {
    caller.must(Role::Operator, "check names")?;
    let found = find(&control, &caller, &path).await?;
    let name = found.name().clone();
    control.keeper.check(&control, &name).await?;
    if let Mine::Has(before) = &found {
        let again = |problem: &Problem| now() >= problem.at.saturating_add(TRY_AGAIN_MS);
        if before.next_try_at.is_some() && before.problem.as_ref().is_some_and(again) {
            let key = Key::Certificate(name.clone());
            let update = control.records.update(&key, |record: &mut Certificate| {
                let waits = record.next_try_at.is_some_and(|at| at > now());
                record.next_try_at = None;
                Ok(waits)
            });
            update.await?;
        }
        if !is_keyed_here(before.source) && before.chain_pem.is_some() {
            in_machine::deliver(&control, before).await?;
        }
    }
    let found = find(&control, &caller, &path).await?;
    Ok(Json(shown(&control.view(), &found, now())))
}

async fn remove(
    State(control): State<Control>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Answer<Done> {
    caller.must(Role::Operator, "remove names")?;
    let found = find(&control, &caller, &path).await?;
    let name = found.name().clone();
    match &found {
        Mine::Has(_) => {
            keeper::remove(&control, &name, |certificate, _| {
                let mine = certificate.account.as_ref() == Some(&caller.account.id);
                mine.then_some(())
                    .ok_or_else(|| Failure::conflict(format!("{name} is another account's by now")))
            })
            .await?;
        }
        Mine::Claims(..) => {
            retrying(|| async {
                let mut edit = control.records.edit();
                edit.delete_private(Private::DomainClaim(&caller.account.id, &name));
                edit.commit().await
            })
            .await?;
        }
    }
    caller.audit(&format!("removed name {name}"));
    Ok(done())
}
