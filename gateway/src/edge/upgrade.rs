//! Requests that become another protocol: WebSocket and whatever else HTTP/1 upgrades to, and WebSocket over HTTP/2 (RFC 8441).
//!
//! Each has a connection of its own to the machine. Once the machine agrees, bytes go both ways, for as long as both ends want: over
//! moves, and without a limit of time.

use aws_lc_rs::rand;
use base64::Engine as _;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Method, Response, StatusCode, request};
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::time::timeout;
use tracing::debug;

use super::body::{Answer, Upload};
use super::page::Page;
use super::places::Place;
use super::proxy::{self, Found};
use super::{Edge, headers, upstream};

/// What is held of each direction.
const BUFFER: usize = 16 * 1024;

/// What a client wants.
pub(super) struct Wanted {
    /// The value of `Upgrade`.
    protocol: HeaderValue,
    /// The client's side, when both agree.
    client: OnUpgrade,
    /// It came over HTTP/2.
    extended: bool,
}

/// Whether a request wants to become another protocol. From then on it is a `GET` as HTTP/1 has it.
pub(super) fn wanted(parts: &mut request::Parts) -> Option<Wanted> {
    let extended = parts.extensions.remove::<Protocol>();
    let client = parts.extensions.remove::<OnUpgrade>()?;
    match extended {
        Some(protocol) => {
            parts.method = Method::GET;
            let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
            Some(Wanted { protocol, client, extended: true })
        }
        None => {
            let protocol = headers::upgrade(&parts.headers)?;
            Some(Wanted { protocol, client, extended: false })
        }
    }
}

impl Edge {
    /// Asks the machine, and joins both sides when it agrees.
    pub(super) async fn upgraded(
        &self,
        found: &Found,
        mut parts: request::Parts,
        upload: Upload,
        wanted: Wanted,
        place: Place,
    ) -> Result<Response<Answer>, Page> {
        let Wanted { protocol, client, extended } = wanted;
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        if extended {
            parts.headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
            parts.headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        }
        // The body of an extended CONNECT is the protocol itself.
        let upload = if extended { Upload::none() } else { upload };
        let mut request = proxy::onward(parts, upload);
        *request.version_mut() = http::Version::HTTP_11;
        let stream = self.reach(&found.site, &found.service).await?;
        let begun = upstream::begin_upgradable(stream).await;
        let mut sender = begun.map_err(|error| proxy::broken(found, &error))?;
        let answer = timeout(proxy::ANSWER, sender.send_request(request)).await;
        let answer = answer.map_err(|_late| proxy::late(found))?;
        let mut answer = answer.map_err(|error| proxy::broken(found, &error))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = answer.into_parts();
            return Ok(proxy::back(parts, Answer::machines(body, None, place)));
        }
        let machine = hyper::upgrade::on(&mut answer);
        let ending = self.ending.clone();
        let slug = found.site.machine.slug.clone();
        self.bridges.spawn(async move {
            let _place = place;
            let joined = async {
                let (client, machine) = (client.await?, machine.await?);
                join(client, machine).await.map_err(anyhow::Error::from)
            };
            tokio::select! {
                ended = joined => debug!(machine = %slug, ?ended, "edge: upgraded connection ended"),
                () = ending.cancelled() => debug!(machine = %slug, "edge: upgraded connection cut: the edge ends"),
            }
        });
        let (mut parts, _empty) = answer.into_parts();
        let protocol = parts.headers.get(UPGRADE).cloned();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.extensions.clear();
        if extended {
            parts.status = StatusCode::OK;
            parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(UPGRADE, protocol);
            }
        }
        parts.version = http::Version::HTTP_11;
        Ok(Response::from_parts(parts, Answer::own(bytes::Bytes::new())))
    }
}

async fn join(client: Upgraded, machine: Upgraded) -> std::io::Result<(u64, u64)> {
    let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
    copy_bidirectional_with_sizes(&mut client, &mut machine, BUFFER, BUFFER).await
}

/// RFC 6455 §4.1: 16 random bytes. HTTP/2 has none, and a server of HTTP/1 wants one.
fn websocket_key() -> HeaderValue {
    let mut key = [0; 16];
    let _filled = rand::fill(&mut key);
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    HeaderValue::from_str(&key).unwrap_or_else(|_| HeaderValue::from_static(""))
}
