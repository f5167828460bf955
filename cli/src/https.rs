//! The API over HTTPS, by the fleet's own RPC client: a person's token here, an entry's certificate in the lobby.
//!
//! TLS trusts the fleet's CA and nothing else, and expects control's own name whatever the URL says: the API may be reached by
//! address, through a tunnel or by any name, and no other member of the fleet can pose as it.

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use mashines_fleet::api::ACT_FOR_HEADER;
use mashines_fleet::pki::{self, PeerName, PkiError};
use mashines_fleet::rpc::{self, RpcError};

use crate::client::{Answer, CallError, Client, Request, Transport};
use crate::error::{CliError, Exit};
use crate::settings::{Settings, Trust};

/// The lobby gives its own: `rpc::Client::to_control(&entry_identity, url)?.with_header(ACCOUNT_HEADER, account)`.
impl Transport for rpc::Client {
    fn call<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        Box::pin(async move {
            let body = match &request.body {
                Some(body) => serde_json::to_vec(body).map_err(|e| CallError::Unreachable(e.to_string()))?,
                None => Vec::new(),
            };
            let client = self.with_timeout(request.timeout);
            let account = request.account.map(HeaderValue::from_str).transpose();
            let account =
                account.map_err(|_| CallError::Unreachable("an account's name is no header".to_owned()))?;
            let headers: Vec<(HeaderName, HeaderValue)> = account
                .map(|account| (HeaderName::from_static(ACT_FOR_HEADER), account))
                .into_iter()
                .collect();
            let answer = client.request(request.method, request.path, &headers, Bytes::from(body)).await;
            let answer = answer.map_err(call_error)?.into_body();
            if answer.is_empty() {
                return Ok(serde_json::Value::Null);
            }
            serde_json::from_slice(&answer).map_err(|error| {
                CallError::Unreachable(format!(
                    "{}{} answered with no JSON: {error}",
                    self.base(),
                    request.path
                ))
            })
        })
    }

    fn acts_for_others(&self) -> bool {
        true
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

/// The client of a person's settings.
pub fn client(settings: &Settings) -> Result<Client, CliError> {
    let url = checked_url(&settings.api)?;
    let cannot = |error: PkiError| {
        CliError::new(Exit::Denied, format!("cannot set up TLS to {url}: {error}"))
            .next("mashines login --api URL --token TOKEN --ca FILE")
    };
    let tls = match settings.trust()? {
        Trust::Ca(pem) => pki::anonymous_client_config(&pem).map_err(cannot)?,
        Trust::Fingerprint(sha256) => pki::pinned_client_config(&sha256).map_err(cannot)?,
    };
    let name = PeerName::control().server_name().map_err(cannot)?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", settings.token)).map_err(|_| {
        CliError::new(Exit::Denied, "the token holds characters that no token has")
            .next("mashines login --api URL --token TOKEN --ca FILE")
    })?;
    bearer.set_sensitive(true);
    Ok(Client::new(rpc::Client::new(tls, url, name).with_header(AUTHORIZATION, bearer)))
}

/// An API URL that a request can be made of.
fn checked_url(url: &str) -> Result<&str, CliError> {
    let wrong = |why: &str| {
        CliError::usage(format!("{url:?} is no API URL: {why}")).next("give it as https://HOST:PORT")
    };
    let parsed: http::Uri = url.parse().map_err(|_| wrong("it does not parse"))?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("https"), Some(_)) if parsed.path() == "/" && parsed.query().is_none() => {
            Ok(url.trim_end_matches('/'))
        }
        (Some("https"), Some(_)) => Err(wrong("it has a path")),
        (Some("https"), None) | (None, _) => Err(wrong("it does not begin with https://HOST")),
        (Some(_), _) => Err(wrong("the token goes over https only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_https_urls_are_taken() {
        assert_eq!(checked_url("https://[::1]:8443/").unwrap(), "https://[::1]:8443");
        for bad in ["", "http://h", "h:8443", "https://h/v1", "https://", "https://h?x"] {
            assert!(checked_url(bad).is_err(), "{bad:?}");
        }
    }
}
