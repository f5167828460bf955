//! How HTTP becomes requests: bodies with a cap, and errors that name the place.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Kind};

/// The longest body of the public API, bytes.
pub const PUBLIC: usize = 1 << 20;
/// The longest report of a member, bytes.
pub const REPORT: usize = 16 << 20;

/// The most of a body that is too long which is read for nothing, bytes.
const MOST_DISCARDED: usize = 16 << 20;

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

/// Reads a body. Of one that is too long the rest is read and thrown away, up to a point: a client that is still
/// sending would otherwise find its connection reset before it could read the answer.
async fn read(body: Body, limit: usize) -> Result<Bytes, Failure> {
    let mut stream = body.into_data_stream();
    let mut kept = BytesMut::new();
    let mut length = 0_usize;
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| Failure::invalid(format!("the body could not be read: {error}")))?;
        length = length.saturating_add(chunk.len());
        if length <= limit {
            kept.extend_from_slice(&chunk);
        } else if length > limit.saturating_add(MOST_DISCARDED) {
            break;
        } else {
            kept.clear();
        }
    }
    if length > limit {
        return Err(Failure::new(Kind::TooLarge, format!("the body is longer than {limit} bytes")));
    }
    Ok(kept.freeze())
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
