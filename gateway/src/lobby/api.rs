//! The CLI's way to the API from here: the entry's certificate, and whom it asks for.

use bytes::Bytes;
use mashines_cli::client::{Answer, CallError, Request, Transport};
use mashines_fleet::rpc::RpcError;

use crate::control::{Call, Caller, Control};

/// Calls on behalf of one account.
pub struct OnBehalf {
    control: Control,
    caller: Caller,
}

impl OnBehalf {
    /// Calls `control` for `caller`.
    pub fn new(control: Control, caller: Caller) -> Self {
        Self { control, caller }
    }

    async fn ask(&self, request: Request<'_>) -> Result<serde_json::Value, CallError> {
        let body = request.body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let act_for = request.account.map(str::to_owned);
        let call = Call {
            method: request.method,
            path: request.path.to_owned(),
            body,
            timeout: request.timeout,
            act_for,
        };
        let answer = self.control.on_behalf(&self.caller, call).await.map_err(call_error)?;
        if answer.body().is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_slice(answer.body()).map_err(|error| {
            CallError::Unreachable(format!("the API's answer to {} is no JSON: {error}", request.path))
        })
    }
}

impl Transport for OnBehalf {
    fn acts_for_others(&self) -> bool {
        true
    }

    fn call<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        Box::pin(self.ask(request))
    }
}

fn call_error(error: RpcError) -> CallError {
    match error {
        RpcError::Refused { status, code, message, .. } => {
            CallError::Refused { status: status.as_u16(), code: code.unwrap_or_default(), message }
        }
        other => CallError::Unreachable(other.to_string()),
    }
}
