//! What entries do about certificates: leases, orders, challenges, outcomes. Each call is one transaction that looks at the lease.

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use mashines_fleet::chain::Chain;
use mashines_fleet::entry_api::{
    ACME_ACCOUNTS, CERTIFICATES, CHALLENGES, Failed, Issued, Lease, Order, Platform, PutAccount,
    ShowChallenge, Shown, SigningRequest, Window,
};
use mashines_fleet::id::{BadId, ChallengeId, DomainName, HostId, IssuerName};
use mashines_fleet::issuance::{CHALLENGE_LIFE, NotEntitled, entitled, is_keyed_here};
use mashines_fleet::key::Key;
use mashines_fleet::record::{AcmeAccount, Certificate, CertificateSource, Challenge, Problem, Show, UnixMs};
use mashines_fleet::rpc::Empty;

use super::answer::Answer;
use super::auth::Entry;
use super::request::Payload;
use crate::certificates::{in_machine, platform};
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::records::retrying;
use crate::time::{ms, now, rfc3339};

/// Challenges of one certificate at a time.
const MOST_CHALLENGES: usize = 16;

/// The longest that a failure may put off the next attempt, milliseconds: an entry whose clock is ahead must not stop renewals.
const LONGEST_PAUSE_MS: u64 = 8 * 24 * 3_600_000;

/// The longest text of a failure, characters.
const LONGEST_TEXT: usize = 1000;

pub fn router() -> Router<Control> {
    let one = Router::new()
        .route("/lease", post(lease).delete(release))
        .route("/order", post(order))
        .route("/request", post(request))
        .route("/issued", post(issued))
        .route("/failed", post(failed))
        .route("/window", post(window));
    Router::new()
        .route(CERTIFICATES, post(want))
        .nest(&format!("{CERTIFICATES}/{{name}}"), one)
        .route(CHALLENGES, post(show))
        .route(&format!("{CHALLENGES}/{{id}}"), delete(hide))
        .route(&format!("{ACME_ACCOUNTS}/{{issuer}}"), get(account).put(put_account))
}

pub fn parsed<T: std::str::FromStr<Err = BadId>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: BadId| Failure::invalid(error.to_string()))
}

/// The longest that is kept of an entry's words.
pub fn text(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

fn key(name: &str) -> Result<Key> {
    Ok(Key::Certificate(parsed(name)?))
}

/// Refuses whoever has not the lease: it lapsed, and another may be at work.
fn must_hold(certificate: &Certificate, entry: &HostId, now: UnixMs) -> Result<()> {
    if certificate.is_held(entry, now) {
        return Ok(());
    }
    let text = format!("{entry} does not hold the lease on certificate {} (any more)", certificate.id);
    Err(Failure::conflict(text))
}

fn must_be_entitled(control: &Control, certificate: &Certificate) -> Result<()> {
    let why = match entitled(certificate, &control.view()) {
        Ok(()) => return Ok(()),
        Err(NotEntitled::NoMachine) => "its machine is gone",
        Err(NotEntitled::NoProof) => "its owner has not proved the name",
        Err(NotEntitled::Anothers) => "the name is another account's now",
    };
    Err(Failure::conflict(format!("nothing is ordered for {}: {why}", certificate.id)))
}

/// The record of the platform's own certificate is made with the first entry that has an issuer.
async fn want(State(control): State<Control>, _: Entry, Payload(body): Payload<Platform>) -> Answer<Empty> {
    let names = platform(&control.view()).ok_or_else(|| Failure::conflict("the fleet has no domain yet"))?;
    if body.names != names {
        return Err(Failure::invalid("the platform's names are *.APEX and APEX"));
    }
    retrying(|| async {
        let mut edit = control.records.edit();
        let Some(first) = names.first() else { return Ok(()) };
        let known: Option<Certificate> = edit.get(&Key::Certificate(first.clone())).await?;
        if known.is_none() {
            let certificate = crate::certificates::wanted(names.clone(), None, CertificateSource::Acme)?;
            edit.put(&certificate)?;
            edit.commit().await?;
        }
        Ok(())
    })
    .await?;
    Ok(Json(Empty {}))
}

async fn lease(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
) -> Answer<Lease> {
    let key = key(&name)?;
    let update = control.records.update(&key, |certificate: &mut Certificate| {
        must_be_entitled(&control, certificate)?;
        certificate.take(&entry, now()).map_err(|held| Failure::conflict(format!("{name}: {held}")))?;
        Ok(true)
    });
    let certificate = update.await?;
    let until = certificate.lease.as_ref().map(|lease| lease.until).unwrap_or_default();
    Ok(Json(Lease { until, certificate }))
}

async fn release(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
) -> Answer<Empty> {
    let key = key(&name)?;
    let update = control.records.update(&key, |certificate: &mut Certificate| {
        let mine = certificate.lease.as_ref().is_some_and(|lease| lease.holder == entry);
        if mine {
            certificate.lease = None;
        }
        Ok(mine)
    });
    update.await?;
    Ok(Json(Empty {}))
}

/// Counts an order against the issuer's limits, and refuses one that would go over them.
async fn order(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
    Payload(body): Payload<Order>,
) -> Answer<Empty> {
    let key = key(&name)?;
    retrying(|| async {
        let mut edit = control.records.edit();
        let certificate: Certificate = edit.require(&key).await?;
        must_hold(&certificate, &entry, now())?;
        must_be_entitled(&control, &certificate)?;
        let mut account: AcmeAccount = edit.require(&Key::AcmeAccount(body.issuer.clone())).await?;
        account.admit(&certificate, now()).map_err(|full| {
            let text = format!("{full} at {}: again at {}", body.issuer, rfc3339(full.until()));
            Failure::new(Kind::TooMany, text)
        })?;
        account.note_order(now());
        edit.put(&account)?;
        edit.commit().await
    })
    .await?;
    Ok(Json(Empty {}))
}

/// Asks the machine for a certificate request.
async fn request(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
) -> Answer<SigningRequest> {
    let certificate: Certificate = control.records.edit().require(&key(&name)?).await?;
    must_hold(&certificate, &entry, now())?;
    if is_keyed_here(certificate.source) {
        return Err(Failure::conflict(format!("the key of {name} is the platform's, not the machine's")));
    }
    Ok(Json(SigningRequest { csr_pem: in_machine::request(&control, &certificate).await? }))
}

/// Takes a new chain. The one before stays in force until this commits.
async fn issued(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
    Payload(body): Payload<Issued>,
) -> Answer<Empty> {
    let key = key(&name)?;
    let bad = |error: &dyn std::fmt::Display| Failure::invalid(format!("certificate {name}: {error}"));
    let chain = Chain::parse(&body.chain_pem).map_err(|error| bad(&error))?;
    if let Some(sealed) = &body.key {
        let opened = control.secret.open(&key, sealed).map_err(|error| bad(&error))?;
        chain.with_key(&opened).map_err(|error| bad(&error))?;
    }
    let update = control.records.update(&key, |certificate: &mut Certificate| {
        must_hold(certificate, &entry, now())?;
        must_be_entitled(&control, certificate)?;
        chain.serves(&certificate.names, now()).map_err(|error| bad(&error))?;
        if body.key.is_some() != is_keyed_here(certificate.source) {
            return Err(bad(&"who holds its key has changed meanwhile"));
        }
        certificate.chain_pem = Some(body.chain_pem.clone());
        certificate.key.clone_from(&body.key);
        certificate.issuer = Some(body.issuer.to_string());
        (certificate.not_before, certificate.not_after) = (Some(chain.not_before), Some(chain.not_after));
        (certificate.renew_at, certificate.ask_window_at) = (Some(body.renew_at), body.ask_window_at);
        (certificate.failures, certificate.next_try_at, certificate.problem) = (0, None, None);
        certificate.lease = None;
        certificate.updated_at = now();
        Ok(true)
    });
    let certificate = update.await?;
    tracing::info!(%name, issuer = %body.issuer, until = %rfc3339(chain.not_after), "certificate issued");
    if !is_keyed_here(certificate.source)
        && let Err(failure) = in_machine::deliver(&control, &certificate).await
    {
        // It is issued all the same; the entry has done its part.
        let hint = format!("look into the machine, then `mashines certs check {name}`");
        let problem =
            Problem { what: format!("the chain is not in the machine: {failure}"), hint, at: now() };
        let update = control.records.update(&key, |certificate: &mut Certificate| {
            certificate.problem = Some(problem.clone());
            Ok(true)
        });
        update.await?;
    }
    Ok(Json(Empty {}))
}

async fn failed(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
    Payload(body): Payload<Failed>,
) -> Answer<Empty> {
    let key = key(&name)?;
    retrying(|| async {
        let mut edit = control.records.edit();
        let mut certificate: Certificate = edit.require(&key).await?;
        must_hold(&certificate, &entry, now())?;
        let latest = now().saturating_add(LONGEST_PAUSE_MS);
        certificate.failures = certificate.failures.saturating_add(1);
        certificate.next_try_at = Some(body.next_try_at.min(latest));
        certificate.problem = Some(Problem { what: text(&body.what), hint: text(&body.hint), at: now() });
        certificate.lease = None;
        let account: Option<AcmeAccount> = edit.get(&Key::AcmeAccount(body.issuer.clone())).await?;
        let limited = body.limited.map(|limited| (limited.until.min(latest), limited.all));
        match account {
            Some(mut account) if !body.invalid.is_empty() || limited.is_some() => {
                let of = |name: &&DomainName| certificate.names.iter().any(|mine| mine.base() == name.base());
                body.invalid.iter().filter(of).for_each(|name| account.note_failure(name, now()));
                if let Some((until, all)) = limited {
                    account.note_pause((!all).then_some(&certificate.id), until, now());
                }
                edit.put(&account)?;
            }
            Some(_) => {}
            // Not even an account could be made there: the certificate's own pause is all that can be noted.
            None => certificate.next_try_at = certificate.next_try_at.max(limited.map(|(until, _)| until)),
        }
        edit.put(&certificate)?;
        edit.commit().await
    })
    .await?;
    tracing::warn!(%name, issuer = %body.issuer, what = %text(&body.what), "no certificate");
    Ok(Json(Empty {}))
}

async fn window(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(name): Path<String>,
    Payload(body): Payload<Window>,
) -> Answer<Empty> {
    let key = key(&name)?;
    let update = control.records.update(&key, |certificate: &mut Certificate| {
        must_hold(certificate, &entry, now())?;
        certificate.renew_at = body.renew_at.or(certificate.renew_at);
        certificate.ask_window_at = Some(body.ask_window_at);
        certificate.lease = None;
        Ok(true)
    });
    update.await?;
    Ok(Json(Empty {}))
}

async fn show(
    State(control): State<Control>,
    Entry(entry): Entry,
    Payload(body): Payload<ShowChallenge>,
) -> Answer<Shown> {
    let fits = match &body.show {
        Show::Dns01 { value } => is_token(value),
        Show::Http01 { token, authorization } => {
            is_token(token) && authorization.split_once('.').is_some_and(|(a, b)| a == token && is_token(b))
        }
        Show::TlsAlpn01 { digest } => digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()),
    };
    if !fits {
        return Err(Failure::invalid(
            "the challenge is none of RFC 8555: its token or value has other characters",
        ));
    }
    let id = ChallengeId::generate();
    retrying(|| async {
        let mut edit = control.records.edit();
        let certificate: Certificate = edit.require(&Key::Certificate(body.certificate.clone())).await?;
        must_hold(&certificate, &entry, now())?;
        must_be_entitled(&control, &certificate)?;
        if !certificate.names.iter().any(|name| name.base() == body.name) {
            return Err(Failure::invalid(format!(
                "{} is no name of certificate {}",
                body.name, certificate.id
            )));
        }
        let shown = control.view().challenges.values().filter(|shown| shown.name == body.name).count();
        if shown >= MOST_CHALLENGES {
            return Err(Failure::new(
                Kind::TooMany,
                format!("{MOST_CHALLENGES} challenges of {} are shown already: they go by time", body.name),
            ));
        }
        let expires_at = now().saturating_add(ms(CHALLENGE_LIFE));
        edit.put_challenge(&id, &Challenge { name: body.name.clone(), show: body.show.clone(), expires_at })?;
        edit.commit().await
    })
    .await?;
    Ok(Json(Shown { id }))
}

/// What issuers give out: base64url without padding.
fn is_token(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

async fn hide(State(control): State<Control>, _: Entry, Path(id): Path<String>) -> Answer<Empty> {
    let mut edit = control.records.edit();
    edit.delete(&Key::Challenge(parsed(&id)?));
    edit.commit().await?;
    Ok(Json(Empty {}))
}

/// From the records themselves: whoever asks has a replica that may lag behind.
async fn account(
    State(control): State<Control>,
    Entry(_): Entry,
    Path(issuer): Path<String>,
) -> Answer<Option<AcmeAccount>> {
    let mut edit = control.records.edit();
    Ok(Json(edit.get(&Key::AcmeAccount(parsed(&issuer)?)).await?))
}

async fn put_account(
    State(control): State<Control>,
    Entry(entry): Entry,
    Path(issuer): Path<String>,
    Payload(body): Payload<PutAccount>,
) -> Answer<AcmeAccount> {
    let id: IssuerName = parsed(&issuer)?;
    let key = Key::AcmeAccount(id.clone());
    control.secret.open(&key, &body.credentials).map_err(|error| Failure::invalid(error.to_string()))?;
    let account = retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<AcmeAccount> = edit.get(&key).await?;
        if known.as_ref().map(|known| &known.credentials) != body.replaces.as_ref() {
            return known.ok_or_else(|| Failure::conflict(format!("there is no account at {id} to replace")));
        }
        let same = known.filter(|known| known.directory == body.directory);
        let fresh = || AcmeAccount {
            id: id.clone(),
            directory: body.directory.clone(),
            credentials: body.credentials.clone(),
            orders: Vec::new(),
            failures: Default::default(),
            paused_until: None,
            paused: Default::default(),
            rollover: None,
            key_since: None,
            created_at: now(),
        };
        // Another account of ours at the same issuer does not give new limits. What was to be done about the key of the last one is over.
        let account = same.map_or_else(fresh, |known| AcmeAccount {
            credentials: body.credentials.clone(),
            rollover: None,
            key_since: Some(now()),
            ..known
        });
        edit.put(&account)?;
        edit.commit().await?;
        tracing::info!(%entry, issuer = %id, "the platform has an account at the issuer");
        Ok(account)
    })
    .await?;
    Ok(Json(account))
}
