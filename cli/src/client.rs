//! The REST API, as commands use it: typed JSON calls over whatever [`Transport`] the session has.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use mashines_fleet::api;
use mashines_fleet::id::AccountId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{CliError, Exit};
use crate::suggest;

/// How long a call may take that is answered from the store.
const SOON: Duration = Duration::from_secs(30);

/// The answer to one call: the JSON of a 2xx (`null` for an empty body), or why not.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<serde_json::Value, CallError>> + Send + 'a>>;

/// One request to the API, one answer. Brings its own proof of who asks: a bearer token, or an entry's certificate and the
/// account's header.
pub trait Transport: Send + Sync {
    /// Makes the call.
    fn call<'a>(&'a self, request: Request<'a>) -> Answer<'a>;

    /// Whether it passes [`Request::account`] on. One that does not would do to the person's own account what is meant for another.
    fn acts_for_others(&self) -> bool {
        false
    }
}

/// One call.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// The path: begins with `/`, holds the query.
    pub path: &'a str,
    /// The account it is for, when that is not the one that asks: goes into [`api::ACT_FOR_HEADER`].
    pub account: Option<&'a str>,
    /// The JSON body.
    pub body: Option<serde_json::Value>,
    /// How long the answer may take.
    pub timeout: Duration,
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
    account: Option<String>,
}

impl Client {
    /// A client over `transport`.
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self { transport: Arc::new(transport), account: None }
    }

    /// The same, for another account that the person acts for.
    pub fn for_account(&self, account: &str) -> Result<Self, CliError> {
        let id: AccountId = account.parse().map_err(|why: mashines_fleet::id::BadId| {
            CliError::usage(why.to_string()).next("mashines whoami")
        })?;
        if !self.transport.acts_for_others() {
            return Err(CliError::usage(
                "this gateway does not act for other accounts: `--account` is of no use here",
            )
            .next("use the mashines command on your own machine"));
        }
        Ok(Self { transport: Arc::clone(&self.transport), account: Some(id.to_string()) })
    }

    /// GET. `what` is the attempt in words, for the error: "list the machines".
    pub async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, CliError> {
        self.call(what, Method::GET, path, None, SOON).await
    }

    /// POST.
    pub async fn post<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.post_within(what, path, body, SOON).await
    }

    /// POST whose answer may take `timeout`.
    pub async fn post_within<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, CliError> {
        let body = serde_json::to_value(body)
            .map_err(|e| CliError::failed(format!("cannot {what}: cannot encode the request: {e}")))?;
        self.call(what, Method::POST, path, Some(body), timeout).await
    }

    /// DELETE whose answer is what is left.
    pub async fn delete_for<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, CliError> {
        self.call(what, Method::DELETE, path, None, SOON).await
    }

    /// DELETE; the answer's body is of no interest.
    pub async fn delete(&self, what: &str, path: &str) -> Result<(), CliError> {
        self.call::<serde_json::Value>(what, Method::DELETE, path, None, SOON).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
        timeout: Duration,
    ) -> Result<T, CliError> {
        let request = Request { method, path, account: self.account.as_deref(), body, timeout };
        let value = self.transport.call(request).await.map_err(|e| e.into_cli(what))?;
        serde_json::from_value(value).map_err(|e| {
            CliError::failed(format!("cannot {what}: the API's answer to {path} is not understood: {e}"))
                .next("compare `mashines --version` with the version of the fleet")
        })
    }

    /// The account that asks.
    pub async fn account(&self) -> Result<api::Account, CliError> {
        self.get("read the account", "/v1/account").await
    }

    /// Who asks, for whom, and as what.
    pub async fn whoami(&self) -> Result<api::WhoAmI, CliError> {
        self.get("ask who you are", "/v1/whoami").await
    }

    /// The account's machines, and those that are shared with it.
    pub async fn machines(&self) -> Result<Vec<api::Machine>, CliError> {
        self.get("list the machines", "/v1/machines").await
    }

    /// A machine by name or id; for an unknown one, the error names the nearest.
    pub async fn machine(&self, name: &str) -> Result<api::Machine, CliError> {
        let path = format!("/v1/machines/{}", segment(name)?);
        match self.get(&format!("find machine `{name}`"), &path).await {
            Err(error) if error.exit == Exit::NotFound => {
                let known = self.machines().await?;
                Err(unknown("machine", name, known.iter().map(|m| m.slug.as_str()), "mashines ls"))
            }
            answer => answer,
        }
    }

    /// A machine as it is now.
    pub async fn look(&self, machine: &api::Machine) -> Result<api::Machine, CliError> {
        let path = format!("/v1/machines/{}", machine.id);
        self.get(&format!("look at machine `{}`", machine.slug), &path).await
    }

    /// A volume by name or id; a name that several apps use is ambiguous.
    pub async fn volume(&self, name: &str) -> Result<api::Volume, CliError> {
        let mut known: Vec<api::Volume> = self.get("list the volumes", "/v1/volumes").await?;
        let fits = |v: &api::Volume| v.id.as_str() == name || v.name == name;
        match known.iter().filter(|v| fits(v)).count() {
            0 => Err(unknown("volume", name, known.iter().map(|v| v.name.as_str()), "mashines volumes ls")),
            1 => {
                known.retain(fits);
                known.pop().ok_or_else(|| {
                    CliError::failed(format!("volume `{name}` went away while it was looked for"))
                })
            }
            many => Err(CliError::usage(format!("{many} volumes are named `{name}`, in different apps"))
                .next("give its id, from: mashines volumes ls")),
        }
    }

    /// The hosts; administrators only.
    pub async fn hosts(&self) -> Result<Vec<api::Host>, CliError> {
        self.get("list the hosts", "/v1/hosts").await
    }

    /// A host by id; for an unknown one, the error names the nearest.
    pub async fn host(&self, name: &str) -> Result<api::Host, CliError> {
        let known = self.hosts().await?;
        match known.iter().find(|h| h.id.as_str() == name) {
            Some(host) => Ok(host.clone()),
            None => Err(unknown("host", name, known.iter().map(|h| h.id.as_str()), "mashines hosts")),
        }
    }
}

/// The path of a machine and what follows: `/v1/apps/default/machines/0123…/stop`.
pub fn machine_path(machine: &api::Machine, rest: &str) -> String {
    format!("/v1/apps/{}/machines/{}{rest}", machine.app, machine.id)
}

/// The error for a name that does not exist, with the nearest that does.
pub fn unknown<'a>(kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>, list: &str) -> CliError {
    match suggest::nearest(name, known) {
        Some(near) => {
            CliError::new(Exit::NotFound, format!("no {kind} `{name}`; did you mean `{near}`?")).next(list)
        }
        None => CliError::new(Exit::NotFound, format!("no {kind} `{name}`")).next(list),
    }
}

/// A name, id or fingerprint as one path segment. Names never hold what would need escaping, so anything else is a typing error.
pub fn segment(name: &str) -> Result<&str, CliError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= 80 && name.chars().all(usable) {
        Ok(name)
    } else {
        Err(CliError::usage(format!("{name:?} cannot be a name: names are of letters, digits and hyphens"))
            .next("mashines ls"))
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
