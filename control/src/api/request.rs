//! How HTTP becomes requests: bodies with a cap, and errors that name the place.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Kind};

/// The longest body of the public API, bytes.
pub const PUBLIC: usize = 1 << 20;
/// The longest report of a member, bytes.
pub const REPORT: usize = 16 << 20;

/// A JSON body of at most `LIMIT` bytes.
pub struct Payload<T, const LIMIT: usize = PUBLIC>(pub T);

/// The same, where an empty body means the default.
pub struct OptionalPayload<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Payload<T, LIMIT> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request.into_body(), LIMIT).await?;
        if bytes.is_empty() {
            return Err(Failure::invalid("the body is empty: a JSON object is expected"));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalPayload<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request.into_body(), PUBLIC).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

async fn read(body: Body, limit: usize) -> Result<bytes::Bytes, Failure> {
    to_bytes(body, limit).await.map_err(|error| {
        let text = error.to_string();
        if text.contains("length limit") {
            return Failure::new(Kind::TooLarge, format!("the body is longer than {limit} bytes"));
        }
        Failure::invalid(format!("the body could not be read: {text}"))
    })
}

/// `serde_json` tells line and column of what it did not like.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let kind = if error.is_data() { "does not fit" } else { "is no valid JSON" };
        Failure::invalid(format!("the body {kind}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use mashines_fleet::api::CreateMachine;

    use super::*;

    #[test]
    fn malformed_json_is_told_with_its_place() {
        let error = parse::<CreateMachine>(b"{\n  \"config\": {,}\n}").unwrap_err();
        assert!(
            error.message.contains("no valid JSON") && error.message.contains("line 2 column 14"),
            "{error}"
        );
        let error = parse::<CreateMachine>(b"{\"config\": 7}").unwrap_err();
        assert!(error.message.contains("does not fit"), "{error}");
    }

    #[test]
    fn unknown_keys_are_tolerated() {
        assert!(parse::<CreateMachine>(br#"{"config": {"image": "x", "dns": {}}, "lease_ttl": 3}"#).is_ok());
    }
}
