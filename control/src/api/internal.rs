//! What members of the fleet call: joining, reports, the change stream, SSH certificates; what entries say of newcomers
//! and of health checks.

use std::net::Ipv4Addr;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use mashines_fleet::api::DEFAULT_APP;
use mashines_fleet::entry_api::{CHECKS, CheckReport, MOST_CHECKS};
use mashines_fleet::host_api::{ENTRY_SECRET, EntrySecretAnswer, Report};
use mashines_fleet::id::{HostId, MachineId};
use mashines_fleet::join::{JoinAnswer, JoinRequest, JoinToken};
use mashines_fleet::key::Key;
use mashines_fleet::pki::PeerName;
use mashines_fleet::record::{Host, HostRole, MachineState};
use mashines_fleet::rpc::Empty;
use mashines_fleet::stream::{self, Position};
use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::auth::{Caller, Entry, Follower, Member};
use super::request::{OptionalPayload, Payload, REPORT};
use super::{account, dns, invites};
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::found::{JoinRecord, make_join_token};
use crate::records::{Private, retrying};
use crate::time::now;

/// A report that says nothing new is written down this often, milliseconds, so that replicas see who lives.
const SEEN_EVERY_MS: u64 = 30_000;

pub fn router() -> Router<Control> {
    Router::new()
        .route(mashines_fleet::join::PATH, post(join))
        .route(stream::PATH, get(changes))
        .route("/internal/v1/hosts/{host}/report", post(report))
        .route(CHECKS, post(checks))
        .route("/internal/v1/ssh/certificates", post(certify))
        .route("/internal/v1/ssh/host-certificates", post(certify_host))
        .route(ENTRY_SECRET, get(entry_secret))
        .route(mashines_fleet::dns_update::PATH, post(dns::update))
        .route("/internal/v1/sign-up", post(account::sign_up))
        .route("/internal/v1/invites/accept", post(invites::accept_for))
        .route("/internal/v1/tokens/join", post(token))
}

#[derive(Deserialize)]
struct From {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    store: String,
}

/// One JSON line a change, without end.
async fn changes(State(control): State<Control>, _: Follower, Query(query): Query<From>) -> Response {
    let position = Position { store: query.store, revision: query.from };
    let lines = stream::lines(control.records.store(), position).map(|line| {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        Ok::<Bytes, serde_json::Error>(text.into())
    });
    ([(http::header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn report(
    State(control): State<Control>,
    Member(member): Member,
    Path(host): Path<String>,
    Payload(body): Payload<Report, REPORT>,
) -> Answer<Empty> {
    if host != member.as_str() || body.host.id != member {
        let text = format!("{member} reports for itself only, not for {host:?}");
        return Err(Failure::new(Kind::Forbidden, text));
    }
    let of_host = body.state.is_some();
    control.hosts.report(&member, body.state);
    let current = control.view().hosts.get(&member).cloned();
    if current.is_some_and(|known| is_news(&known, &body.host, of_host).is_none()) {
        return Ok(Json(Empty {}));
    }
    retrying(|| async {
        let mut edit = control.records.edit();
        let known: Option<Host> = edit.get(&Key::Host(member.clone())).await?;
        let next = match &known {
            None => Some(Host { cordoned: false, seen_at: now(), ..body.host.clone() }),
            Some(known) => is_news(known, &body.host, of_host),
        };
        let Some(next) = next else { return Ok(()) };
        edit.put(&next)?;
        edit.commit().await
    })
    .await?;
    Ok(Json(Empty {}))
}

/// The record that a report leads to, when it is worth a write. A box that is host and entry reports for each role, so each report has
/// the say about its own half only.
fn is_news(known: &Host, told: &Host, of_host: bool) -> Option<Host> {
    let mut next = Host { cordoned: known.cordoned, seen_at: known.seen_at, ..told.clone() };
    let other_half = |role: HostRole| known.roles.contains(&role) && !told.roles.contains(&role);
    if other_half(HostRole::Entry) {
        next.public_ipv4.clone_from(&known.public_ipv4);
        next.public_ipv6.clone_from(&known.public_ipv6);
    }
    if other_half(HostRole::Host) && !of_host {
        let Host { api, capacity, images, underlay, wireguard_port, wireguard_key, mesh, .. } = known.clone();
        next = Host { api, capacity, images, underlay, wireguard_port, wireguard_key, mesh, ..next };
    }
    next.roles = [HostRole::Host, HostRole::Entry]
        .into_iter()
        .filter(|role| known.roles.contains(role) || told.roles.contains(role))
        .collect();
    let now = now();
    let stale = now.saturating_sub(known.seen_at) >= SEEN_EVERY_MS;
    let same =
        Host { roles: next.roles.clone(), ..known.clone() } == next && next.roles.len() == known.roles.len();
    (!same || stale).then_some(Host { seen_at: now, ..next })
}

/// What an entry's health checks find. Nothing of it is written down.
async fn checks(
    State(control): State<Control>,
    Entry(entry): Entry,
    Payload(body): Payload<CheckReport, REPORT>,
) -> Answer<Empty> {
    let count = body.checks.len();
    if count > MOST_CHECKS {
        return Err(Failure::invalid(format!("{count} checks in one report: {MOST_CHECKS} are the most")));
    }
    let view = control.view();
    let known = |machine: &MachineId| view.machines.contains_key(machine);
    control.checks.report(&entry, body, (Instant::now(), now()), known);
    Ok(Json(Empty {}))
}

/// What opens the secrets among the facts.
async fn entry_secret(State(control): State<Control>, Entry(_): Entry) -> Answer<EntrySecretAnswer> {
    Ok(Json(EntrySecretAnswer { secret: control.secret.to_hex() }))
}

#[derive(Deserialize)]
struct CertificateRequest {
    public_key: String,
}

#[derive(Serialize)]
struct CertificateAnswer {
    certificate: String,
}

async fn certify(
    State(control): State<Control>,
    Entry(entry): Entry,
    Payload(body): Payload<CertificateRequest>,
) -> Answer<CertificateAnswer> {
    let certificate = control.ssh_ca.certify(&body.public_key, &format!("gateway {entry}"))?;
    Ok(Json(CertificateAnswer { certificate }))
}

#[derive(Deserialize)]
struct HostCertificateRequest {
    public_key: String,
    /// For who connects to this address, which entries share among accounts' machines.
    #[serde(default)]
    address: Option<Ipv4Addr>,
}

/// OpenSSH reads no certificate with more names (`SSHKEY_CERT_MAX_PRINCIPALS`).
const MOST_NAMES: usize = 256;

/// An entry is the fleet's gateway, by the fleet's name and by its own. At a shared address it also answers for the machines there.
async fn certify_host(
    State(control): State<Control>,
    Entry(entry): Entry,
    Payload(body): Payload<HostCertificateRequest>,
) -> Answer<CertificateAnswer> {
    let view = control.view();
    let domain = view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default();
    let record = control.host(&entry)?;
    let mut names = vec![domain.clone(), format!("{entry}.{domain}")];
    names.extend(record.public_ipv4.iter().map(ToString::to_string));
    names.extend(record.public_ipv6.iter().map(ToString::to_string));
    if let Some(address) = body.address.filter(|address| record.public_ipv4.contains(address)) {
        let there = view.machines.values().filter(|machine| machine.net.entry_ipv4 == Some(address));
        let alive = there.filter(|machine| machine.state != MachineState::Destroyed);
        names.extend(alive.map(|machine| format!("{}.{domain}", machine.slug)));
        names.truncate(MOST_NAMES);
    }
    let certificate = control.ssh_ca.certify_host(&body.public_key, &format!("gateway {entry}"), &names)?;
    Ok(Json(CertificateAnswer { certificate }))
}

#[derive(Default, Deserialize)]
struct TokenRequest {
    #[serde(default)]
    host: Option<String>,
}

#[derive(Serialize)]
struct TokenAnswer {
    token: String,
}

async fn token(
    State(control): State<Control>,
    caller: Caller,
    OptionalPayload(body): OptionalPayload<TokenRequest>,
) -> Answer<TokenAnswer> {
    caller.must_be_admin("let hosts join")?;
    let host = body.host.map(|host| host_id(&host)).transpose()?;
    Ok(Json(TokenAnswer { token: make_join_token(&control.records, host).await? }))
}

fn host_id(text: &str) -> Result<HostId> {
    let id: HostId =
        text.parse().map_err(|error: mashines_fleet::id::BadId| Failure::invalid(error.to_string()))?;
    if id.as_str() == DEFAULT_APP || id.as_str() == "control" {
        return Err(Failure::invalid(format!("{id} is no name for a host")));
    }
    Ok(id)
}

/// The token is used up in the same transaction that looks at it; the certificate is made before, so a bad request costs no token.
async fn join(State(control): State<Control>, Payload(body): Payload<JoinRequest>) -> Answer<JoinAnswer> {
    let token: JoinToken = body
        .token
        .parse()
        .map_err(|error: mashines_fleet::join::BadJoinToken| Failure::invalid(error.to_string()))?;
    let host = host_id(&body.host_id)?;
    let signed = control.ca.sign(&body.csr, &PeerName::host(&host));
    let certificate = signed.map_err(|error| Failure::invalid(error.to_string()))?;
    let hash = token.hash();
    let (key, host) = (Private::Join(&hash), &host);
    retrying(|| async {
        let mut edit = control.records.edit();
        let record: Option<JoinRecord> = edit.private(key).await?;
        let no = |why: &str| {
            Failure::new(
                Kind::Unauthorized,
                format!("the join token {why}: make a new one with `mashinesd token join`"),
            )
        };
        let record = record.ok_or_else(|| no("is unknown or was used already"))?;
        if record.expires_at < now() {
            return Err(no("has expired"));
        }
        if let Some(only) = record.host.filter(|only| only != host) {
            return Err(no(&format!("is for {only}, not for {host}")));
        }
        edit.delete_private(key);
        edit.commit().await
    })
    .await?;
    tracing::info!(%host, "joined the fleet");
    Ok(Json(JoinAnswer { ca: control.ca.certificate_pem().to_owned(), certificate }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;

    #[test]
    fn a_report_without_news_is_not_written_and_control_keeps_its_say() {
        let mut known = host("hosta");
        known.seen_at = now();
        known.cordoned = true;
        assert_eq!(is_news(&known, &host("hosta"), true), None);
        let mut more = host("hosta");
        more.capacity.vcpus += 1;
        let next = is_news(&known, &more, true).unwrap();
        assert!(next.cordoned && next.capacity.vcpus == 9);
    }

    #[test]
    fn the_reports_of_the_two_roles_of_a_box_do_not_overwrite_each_other() {
        let mut known = host("box1");
        known.seen_at = now();
        let mut entry = host("box1");
        entry.roles = vec![HostRole::Entry];
        entry.images.clear();
        entry.capacity.vcpus = 0;
        entry.public_ipv4 = vec!["192.0.2.1".parse().unwrap()];
        let both = is_news(&known, &entry, false).unwrap();
        assert_eq!(both.roles, [HostRole::Host, HostRole::Entry]);
        assert_eq!((both.capacity.vcpus, both.images.len(), both.public_ipv4.len()), (8, 1, 1));
        assert_eq!(is_news(&both, &host("box1"), true), None, "the host's own report is no news now");
        assert_eq!(is_news(&both, &entry, false), None);
    }
}
