//! The REST API, as commands use it: typed JSON calls over whatever [`Transport`] the session has.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{CliError, Exit};

/// The answer to one call: the JSON of a 2xx (`null` for an empty body), or why not.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<serde_json::Value, CallError>> + Send + 'a>>;

/// One request to the API, one answer. Brings its own proof of who asks: a bearer token, or an entry's certificate and the
/// account's header.
pub trait Transport: Send + Sync {
    /// Calls `path` (it begins with `/` and holds the query).
    fn call<'a>(&'a self, method: Method, path: &'a str, body: Option<serde_json::Value>) -> Answer<'a>;
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The API answered, and the answer is no.
    Refused {
        /// HTTP status.
        status: u16,
        /// The API's word for it, `not-found` and the like; empty when it gave none.
        code: String,
        /// The API's sentence.
        message: String,
    },
    /// No answer: connection, TLS, time. The text says which URL and what came back.
    Unreachable(String),
}

/// The API of one fleet for one account. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

impl Client {
    /// A client over `transport`.
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self { transport: Arc::new(transport) }
    }

    /// Calls and decodes. `what` is the attempt in words, for the error: "list the machines".
    pub async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<T, CliError> {
        let value = self.transport.call(method, path, body).await.map_err(|e| e.into_cli(what))?;
        serde_json::from_value(value).map_err(|e| {
            CliError::failed(format!("cannot {what}: the API's answer to {path} is not understood: {e}"))
                .next("compare `mashines --version` with the version of the fleet")
        })
    }

    /// GET.
    pub async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, CliError> {
        self.call(what, Method::GET, path, None).await
    }

    /// POST.
    pub async fn post<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        let body = serde_json::to_value(body)
            .map_err(|e| CliError::failed(format!("cannot {what}: cannot encode the request: {e}")))?;
        self.call(what, Method::POST, path, Some(body)).await
    }

    /// DELETE; the answer's body is of no interest.
    pub async fn delete(&self, what: &str, path: &str) -> Result<(), CliError> {
        self.call::<serde_json::Value>(what, Method::DELETE, path, None).await.map(drop)
    }
}

impl CallError {
    /// The error of the command that tried `what`.
    fn into_cli(self, what: &str) -> CliError {
        match self {
            Self::Unreachable(why) => {
                CliError::new(Exit::Unreachable, format!("cannot {what}: {why}")).next("mashines doctor")
            }
            Self::Refused { status, message, .. } => {
                let exit = match status {
                    400 | 422 => Exit::Usage,
                    401 | 403 => Exit::Denied,
                    404 | 410 => Exit::NotFound,
                    408 => Exit::TimedOut,
                    _ => Exit::Failed,
                };
                let error = CliError::new(exit, format!("cannot {what}: {message}"));
                match status {
                    401 => error.next("mashines login --api URL --token TOKEN"),
                    _ => error,
                }
            }
        }
    }
}
