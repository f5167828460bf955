//! The internal API: `mashines_fleet::host_api` over HTTP. Control alone is listened to.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use mashines_fleet::host_api::{
    HostState, Incoming, IncomingReady, LocalMachine, LocalMigration, Outgoing, PutVolume, Resolve,
    RunMachine, StopMachine,
};
use mashines_fleet::id::{Epoch, MachineId, MigrationId, VolumeId};
use mashines_fleet::rpc::Peer;
use mashines_guest::protocol::{DEFAULT_TIMEOUT_MS, Exec, ExecResult, MAX_TIMEOUT_MS};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{HostError, Result};
use crate::host::Host;

/// The longest body: an exec request with its stdin.
pub const MAX_BODY: usize = 2 << 20;

type Shared = State<Arc<Host>>;
type Answer<T> = Result<Json<T>>;

/// The routes.
pub fn router(host: Arc<Host>) -> Router {
    Router::new()
        .route("/v1/state", get(state))
        .route("/v1/machines/{id}", put(run).delete(remove))
        .route("/v1/machines/{id}/stop", post(stop))
        .route("/v1/machines/{id}/console", get(console))
        .route("/v1/machines/{id}/exec", post(exec))
        .route("/v1/volumes/{id}", put(put_volume).delete(remove_volume))
        .route("/v1/migrations/{id}/incoming", put(incoming))
        .route("/v1/migrations/{id}/outgoing", put(outgoing))
        .route("/v1/migrations/{id}", get(migration))
        .route("/v1/migrations/{id}/cancel", post(cancel))
        .route("/v1/migrations/{id}/resolve", post(resolve))
        .route("/v1/migrations/{id}/finish", post(finish))
        .layer(middleware::from_fn(only_control))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(host)
}

/// A host's certificate proves membership, not authority: hosts do not command each other.
async fn only_control(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Peer>().and_then(|peer| peer.name.as_ref());
    if caller.is_some_and(|name| name.is_control()) {
        return next.run(request).await;
    }
    let error =
        json!({"error": "only control may call a host: this is not its certificate", "code": "invalid"});
    (http::StatusCode::FORBIDDEN, Json(error)).into_response()
}

async fn state(State(host): Shared) -> Json<HostState> {
    Json(host.state())
}

async fn run(
    State(host): Shared,
    Path(id): Path<MachineId>,
    Json(request): Json<RunMachine>,
) -> Answer<LocalMachine> {
    if request.machine.id != id {
        return Err(HostError::invalid(format!(
            "the path names machine {id}, the body {}",
            request.machine.id
        )));
    }
    detached(async move { host.run(request).await }).await
}

#[derive(Debug, Deserialize)]
struct AtEpoch {
    epoch: Epoch,
}

async fn remove(State(host): Shared, Path(id): Path<MachineId>, Query(at): Query<AtEpoch>) -> Answer<Value> {
    detached(async move { host.remove(&id, at.epoch).await.map(|()| json!({})) }).await
}

async fn stop(
    State(host): Shared,
    Path(id): Path<MachineId>,
    Json(request): Json<StopMachine>,
) -> Answer<LocalMachine> {
    detached(async move { host.stop(&id, request).await }).await
}

async fn console(State(host): Shared, Path(id): Path<MachineId>) -> Answer<Value> {
    let text = host.machine(&id)?.console().await?;
    Ok(Json(json!({"text": text})))
}

async fn exec(
    State(host): Shared,
    Path(id): Path<MachineId>,
    Json(request): Json<Exec>,
) -> Answer<ExecResult> {
    let timeout = request.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS).min(MAX_TIMEOUT_MS);
    let result = host.machine(&id)?.agent().exec(request, Duration::from_millis(timeout)).await?;
    Ok(Json(result))
}

async fn put_volume(
    State(host): Shared,
    Path(id): Path<VolumeId>,
    Json(request): Json<PutVolume>,
) -> Answer<Value> {
    detached(async move { host.put_volume(&id, &request).map(|()| json!({})) }).await
}

async fn remove_volume(State(host): Shared, Path(id): Path<VolumeId>) -> Answer<Value> {
    detached(async move { host.remove_volume(&id).map(|()| json!({})) }).await
}

async fn incoming(
    State(host): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<Incoming>,
) -> Answer<IncomingReady> {
    detached(async move { host.incoming(&id, request).await }).await
}

async fn outgoing(
    State(host): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<Outgoing>,
) -> Answer<LocalMigration> {
    detached(async move { host.outgoing(&id, request).await }).await
}

async fn migration(State(host): Shared, Path(id): Path<MigrationId>) -> Answer<LocalMigration> {
    detached(async move { host.migration(&id).await }).await
}

async fn cancel(State(host): Shared, Path(id): Path<MigrationId>) -> Answer<LocalMigration> {
    detached(async move { host.cancel(&id).await }).await
}

async fn resolve(
    State(host): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<Resolve>,
) -> Answer<LocalMigration> {
    detached(async move { host.resolve(&id, request.run).await }).await
}

async fn finish(State(host): Shared, Path(id): Path<MigrationId>) -> Answer<Value> {
    detached(async move { host.finish(&id).await.map(|()| json!({})) }).await
}

/// Runs to its end even when the caller hangs up: half a start would be left behind.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(done) => done.map(Json),
        Err(e) => Err(HostError::internal(format!("the call was not carried out to its end: {e}"))),
    }
}
