//! Why something asked of control was not done: a kind for programs, whose fault it is, and a sentence for people.

use http::StatusCode;
use mashines_fleet::rpc::RpcError;
use mashines_fleet::store::StoreError;

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong.
    Invalid,
    /// The body is longer than is taken.
    TooLarge,
    /// No or a wrong token.
    Unauthorized,
    /// The token may not do this.
    Forbidden,
    /// No such thing.
    NotFound,
    /// It contradicts what is there.
    Conflict,
    /// A change was overtaken by another: read again and decide anew. Seen by people only after many tries.
    Race,
    /// No host has the room.
    NoRoom,
    /// Too often: later it may be done.
    TooMany,
    /// The time was over.
    Timeout,
    /// A host that is needed does not answer.
    Unavailable,
    /// Ours.
    Internal,
}

impl Kind {
    /// The word in the `status` field of an error's body.
    pub fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::TooLarge => "too-large",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::Conflict | Self::Race => "conflict",
            Self::NoRoom => "no-room",
            Self::TooMany => "too-many",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status. No room is 412, as Fly's clients know it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict | Self::Race => StatusCode::CONFLICT,
            Self::NoRoom => StatusCode::PRECONDITION_FAILED,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why something was not done. Unless the message says otherwise, nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub kind: Kind,
    /// What was tried, on which object, what came back, what to do.
    pub message: String,
}

/// What most functions here answer.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// No such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// It contradicts what is there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// Ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Overtaken: try again.
    pub fn is_race(&self) -> bool {
        self.kind == Kind::Race
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Conflict { .. } => Kind::Race,
            _ => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::internal(format!("a record of the store is damaged: {error}"))
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let kind = match (error.status(), error.is_unanswered()) {
            (Some(StatusCode::BAD_REQUEST), _) => Kind::Invalid,
            (Some(StatusCode::NOT_FOUND), _) => Kind::NotFound,
            (Some(StatusCode::CONFLICT), _) => Kind::Conflict,
            (Some(StatusCode::INSUFFICIENT_STORAGE), _) => Kind::NoRoom,
            (Some(_), _) => Kind::Internal,
            (None, true) => Kind::Unavailable,
            (None, false) => Kind::Internal,
        };
        Self::new(kind, error.message())
    }
}
