//! Control, as other daemons call it: the first of its addresses that can be reached.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Client, RpcError};
use crate::pki::{Identity, PkiError};

/// Clients of control's addresses, in the order of preference. Cheap to clone; clones share the connections.
#[derive(Clone, Default)]
pub struct Control {
    clients: Vec<Client>,
}

/// What a call does when it is made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twice {
    /// The same as once: the next address is asked whenever one did not do it.
    Same,
    /// More: the next address is asked only while the request surely reached nobody.
    More,
}

impl Control {
    /// Clients of `urls` that show `identity`.
    ///
    /// # Errors
    /// The identity's key does not fit.
    pub fn new(identity: &Identity, urls: &[String]) -> Result<Self, PkiError> {
        let clients = urls.iter().map(|url| Client::to_control(identity, url)).collect::<Result<_, _>>()?;
        Ok(Self { clients })
    }

    /// Whether there is any address to ask.
    pub fn is_known(&self) -> bool {
        !self.clients.is_empty()
    }

    /// The same connections with another time-out for whole calls to each address.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { clients: self.clients.iter().map(|client| client.with_timeout(timeout)).collect() }
    }

    /// GET. Another address is asked when one does not answer or refuses; the last error otherwise.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, RpcError> {
        self.typed(Method::GET, path, Bytes::new(), Twice::Same).await
    }

    /// A POST that may come twice: asks further as [`Control::get`].
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn ask<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, RpcError> {
        let body = encode(&Method::POST, path, body)?;
        self.typed(Method::POST, path, body, Twice::Same).await
    }

    /// A call that is made once: another address is asked only while the request surely reached nobody.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn tell<B: Serialize + Sync, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<A, RpcError> {
        let body = encode(&method, path, body)?;
        self.typed(method, path, body, Twice::More).await
    }

    /// As [`Control::tell`], with a body that is already JSON (or empty), and further headers; the answer as it came.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Response<Bytes>, RpcError> {
        self.first(&method, path, headers, body, Twice::More).await
    }

    async fn typed<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        twice: Twice,
    ) -> Result<A, RpcError> {
        let answer = self.first(&method, path, &[], body, twice).await?.into_body();
        let answer = if answer.is_empty() { Bytes::from_static(b"{}") } else { answer };
        serde_json::from_slice(&answer).map_err(|error| RpcError::Garbled {
            method,
            url: path.to_owned(),
            why: error.to_string(),
        })
    }

    async fn first(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        twice: Twice,
    ) -> Result<Response<Bytes>, RpcError> {
        let none = "the configuration names no address of control: set `control` in the section of this role";
        let mut last = unsent(method, path, none.to_owned());
        for client in &self.clients {
            match client.request(method.clone(), path, headers, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if twice == Twice::Same => last = error,
                Err(error @ RpcError::Unanswered { sent: false, .. }) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

fn encode<B: Serialize>(method: &Method, path: &str, body: &B) -> Result<Bytes, RpcError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| unsent(method, path, error.to_string()))
}

fn unsent(method: &Method, path: &str, why: String) -> RpcError {
    RpcError::Unanswered { method: method.clone(), url: path.to_owned(), why, sent: false }
}
