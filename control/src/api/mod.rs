//! The REST API: the public one for people, the internal one for members, on one listener.
//!
//! Each file is one kind of object. Handlers read a request, check it, call what does the work, and show the outcome; none
//! decides anything about a machine's life itself.

mod account;
mod answer;
mod apps;
mod auth;
mod certificates;
mod create;
mod dns;
mod hosts;
mod inspect;
mod internal;
mod invites;
mod issuance;
mod issuers;
mod keys;
mod launch;
mod leases;
mod machines;
mod members;
mod metadata;
mod migrations;
mod power;
mod render;
mod request;
mod services;
mod suggest;
mod volumes;
mod zones;

use std::time::Duration;

pub use inspect::host_of;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::{HeaderName, HeaderValue, StatusCode};
use tower_http::timeout::TimeoutLayer;

use crate::control::Control;
use crate::failure::{Failure, Kind};

/// Longer than the longest `wait`, and than a host's boot.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Everything that control serves.
pub fn router(control: Control) -> Router {
    let quick = public()
        .merge(internal::router())
        .merge(issuance::router())
        .merge(issuers::router())
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, TIMEOUT));
    quick
        // A command in a guest takes as long as it takes; its own time-out ends it.
        .route("/v1/apps/{app}/machines/{machine}/exec", post(inspect::exec))
        .fallback(|| async { Failure::not_found("there is no such path: the API is below /v1") })
        .method_not_allowed_fallback(|| async { StatusCode::METHOD_NOT_ALLOWED })
        .layer(middleware::from_fn(dress))
        .with_state(control)
}

fn public() -> Router<Control> {
    Router::new()
        .merge(of_machines())
        .merge(certificates::router())
        .merge(of_the_account())
        .merge(of_the_fleet())
}

fn of_machines() -> Router<Control> {
    let machine = Router::new()
        .route("/", get(machines::show).post(machines::update).delete(machines::destroy))
        .route("/start", post(power::start))
        .route("/stop", post(power::stop))
        .route("/restart", post(power::restart))
        .route("/wait", get(inspect::wait))
        .route("/events", get(inspect::events))
        .route("/logs", get(inspect::logs))
        .route("/metadata", get(metadata::all).put(metadata::replace).patch(metadata::merge))
        .route("/metadata/{key}", get(metadata::one).post(metadata::set).delete(metadata::unset))
        .route("/shares", get(members::shares).post(members::share))
        .route("/shares/{account}", delete(members::unshare))
        .route("/dns/records", get(dns::list).post(dns::add).delete(dns::remove))
        .route("/dns/update-key", post(dns::make_key).delete(dns::revoke_key))
        .route("/lease", get(leases::show).post(leases::take).delete(leases::release))
        .route("/migrate", post(migrations::migrate));
    Router::new()
        .route("/v1/apps/{app}/machines", get(machines::list).post(create::create))
        .nest("/v1/apps/{app}/machines/{machine}", machine)
        .route("/v1/machines", get(machines::flat))
        .route("/v1/machines/{machine}", get(machines::flat_one))
        .route("/v1/orgs/{account}/machines", get(machines::of_org))
        .route("/v1/migrations", get(migrations::list))
        .route("/v1/migrations/{id}", get(migrations::show))
        .route("/v1/migrations/{id}/cancel", post(migrations::cancel))
}

fn of_the_account() -> Router<Control> {
    Router::new()
        .route("/v1/account", get(account::show))
        .route("/v1/whoami", get(account::whoami))
        .route("/v1/usage", get(account::usage))
        .route("/v1/account/keys", get(keys::keys).post(keys::add_key))
        .route("/v1/account/keys/{id}", delete(keys::remove_key))
        .route("/v1/account/cas", get(keys::cas).post(keys::add_ca))
        .route("/v1/account/cas/{id}", delete(keys::remove_ca))
        .route("/v1/account/tokens", get(keys::tokens))
        .route("/v1/account/tokens/revoke", post(keys::revoke))
        .route("/v1/account/tokens/{id}", delete(keys::remove_token))
        .route("/v1/account/members", get(members::list).post(members::set))
        .route("/v1/account/members/{account}", delete(members::remove))
        .route("/v1/account/invites", get(invites::list).post(invites::create))
        .route("/v1/account/invites/{id}", delete(invites::remove))
        .route("/v1/invites/accept", post(invites::accept))
        .route("/v1/tokens/current", get(account::token))
        .route("/v1/apps", get(apps::list).post(apps::create))
        .route("/v1/apps/{app}", get(apps::show).delete(apps::destroy))
        .route("/v1/volumes", get(volumes::flat))
        .route("/v1/apps/{app}/volumes", get(volumes::list).post(volumes::create))
        .route("/v1/apps/{app}/volumes/{volume}", get(volumes::show).delete(volumes::destroy))
        .route("/v1/apps/{app}/volumes/{volume}/extend", put(volumes::extend))
}

fn of_the_fleet() -> Router<Control> {
    Router::new()
        .route("/v1/fleet/sign-up", get(account::policy).post(account::set_policy))
        .route("/v1/fleet/zones", get(zones::list))
        .route("/v1/fleet/zones/{zone}/rollover", post(zones::rollover))
        .route("/v1/fleet/zones/{zone}/ds-seen", post(zones::ds_seen))
        .route("/v1/platform/regions", get(hosts::regions))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{host}", get(hosts::show))
        .route("/v1/hosts/{host}/cordon", post(hosts::cordon))
        .route("/v1/hosts/{host}/uncordon", post(hosts::uncordon))
        .route("/v1/hosts/{host}/drain", get(hosts::drained).post(hosts::drain))
}

/// Gives each answer its id, and each bare error a body.
async fn dress(request: Request, next: Next) -> Response {
    let id = ulid::Ulid::generate().to_string();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let mut response = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => {
            let allowed = response.headers().get(http::header::ALLOW).cloned();
            let failure = Failure::invalid(format!("{path} does not take {method}"));
            let mut response = failure.into_response();
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            if let Some(allowed) = allowed {
                response.headers_mut().insert(http::header::ALLOW, allowed);
            }
            response
        }
        StatusCode::REQUEST_TIMEOUT if !response.headers().contains_key(http::header::CONTENT_TYPE) => {
            Failure::new(Kind::Timeout, format!("{method} {path} took longer than {TIMEOUT:?}"))
                .into_response()
        }
        _ => response,
    };
    tracing::info!(%method, %path, status = response.status().as_u16(), %id, "request");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static("fly-request-id"), value);
    }
    response
}
