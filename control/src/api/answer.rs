//! How outcomes become HTTP.

use axum::Json;
use axum::response::{IntoResponse, Response};
use mashines_fleet::api::{Done, ErrorBody};

use crate::failure::{Failure, Kind};

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.kind == Kind::Internal {
            tracing::error!(failure = %self, "a request failed, and it is our fault");
        }
        let body = ErrorBody { error: self.message, status: Some(self.kind.word().to_owned()) };
        (self.kind.status(), Json(body)).into_response()
    }
}

/// What most handlers answer.
pub type Answer<T> = Result<Json<T>, Failure>;

/// It was done, or is being done.
pub fn done() -> Json<Done> {
    Json(Done { ok: true })
}
