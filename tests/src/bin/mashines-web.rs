//! What a machine serves while it is fetched through the fleet's web door: pages, a long download, a WebSocket, server-sent events
//! and a gRPC stream, over HTTP/1.1 and HTTP/2 without TLS; and a page for browsers whose script opens all that browsers can.
//!
//! `mashines-web PORT`

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Version};
use http_body::Frame;
use http_body_util::StreamBody;

/// Between two ticks of a stream, and two pieces of a download.
const TICK: Duration = Duration::from_millis(100);

/// The bytes of one piece of a download, unless the visitor wants less.
const PIECE: usize = 64 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let port = std::env::args().nth(1).context("usage: mashines-web PORT")?.parse::<u16>()?;
    let app = Router::new()
        .route("/", get(page))
        .route("/browser", get(|| async { Html(include_str!("../../clients/browser.html")) }))
        .route("/bytes/{pieces}", get(|Path(pieces)| async move { bytes(pieces, PIECE) }))
        .route("/bytes/{pieces}/{size}", get(|Path((pieces, size))| async move { bytes(pieces, size) }))
        .route("/events", get(events))
        .route("/socket", any(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
        .route("/echo.Echo/Count", post(count));
    let listener = tokio::net::TcpListener::bind(("::", port)).await?;
    Ok(axum::serve(listener, app).await?)
}

/// What the machine was told of its visitor.
async fn page(version: Version, headers: HeaderMap) -> String {
    let told = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let fields = ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
        .map(|name| format!("{name}: {}\n", told(name)));
    format!("{version:?}\n{}", fields.concat())
}

/// Pieces of known bytes, one a tick.
fn bytes(pieces: usize, size: usize) -> Response {
    let piece: Bytes = (0..size.min(PIECE)).map(|n| u8::try_from(n % 251).unwrap_or_default()).collect();
    Body::from_stream(ticks().take(pieces).map(move |_| Ok::<_, Infallible>(piece.clone()))).into_response()
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(ticks().map(|number| Ok(Event::default().data(number.to_string()))))
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// `rpc Count(Request) returns (stream Reply)`: decimal numbers in place of protobuf, since what is told apart here is the framing (gRPC over
/// HTTP/2, "Length-Prefixed-Message" and trailers). The request's first digits say how many.
async fn count(body: Bytes) -> Response {
    let digits: String = body.iter().skip(5).map(|byte| char::from(*byte)).collect();
    let wanted: u64 = digits.parse().unwrap_or(1);
    let messages = ticks()
        .take(usize::try_from(wanted).unwrap_or(1))
        .map(|number| Frame::data(message(&number.to_string())));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = messages.chain(stream::once(async { Frame::trailers(trailers) }));
    let body = Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)));
    ([("content-type", "application/grpc")], body).into_response()
}

fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap_or_default().to_be_bytes();
    [&[0], length.as_slice(), text.as_bytes()].concat().into()
}

/// 1, 2, 3, …: one a tick.
fn ticks() -> impl Stream<Item = u64> {
    stream::unfold((tokio::time::interval(TICK), 0), |(mut interval, number)| async move {
        interval.tick().await;
        Some((number + 1, (interval, number + 1)))
    })
}
