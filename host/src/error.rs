//! What a call to this host can fail with: a kind for programs, a sentence for people.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use mashines_fleet::host_api::ErrorCode;

/// Why a call was not done. Unless the text says otherwise, nothing changed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    /// The kind.
    pub code: ErrorCode,
    /// What was tried, on which object, what came back, what to do.
    pub message: String,
}

/// What most functions here answer.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

impl HostError {
    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Invalid, message: message.into() }
    }

    /// No such thing here.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::NotFound, message: message.into() }
    }

    /// It contradicts what is here: an older epoch, a machine that runs in another way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Conflict, message: message.into() }
    }

    /// It does not fit.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::NoRoom, message: message.into() }
    }

    /// This host's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::Internal, message: message.into() }
    }

    /// The same error with what was left undone after it, so that a cleanup's own failures are not lost.
    pub fn and_left_behind(mut self, left: &[String]) -> Self {
        if !left.is_empty() {
            self.message = format!("{}; and the cleanup left: {}", self.message, left.join("; "));
        }
        self
    }

    fn status(&self) -> StatusCode {
        match self.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Names what was tried when an operation of the system fails.
pub trait Context<T> {
    /// Turns the error into this host's fault, with `doing` in front.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| HostError::internal(format!("{}: {e}", doing())))
    }
}

impl IntoResponse for HostError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message, "code": self.code });
        (self.status(), Json(body)).into_response()
    }
}
