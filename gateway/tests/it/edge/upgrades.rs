//! WebSocket, gRPC and long downloads through the edge, and that they outlive a move of the machine.

use std::convert::Infallible;
use std::time::Duration;

use crate::common::clients::{python, succeed};
use crate::common::edge::{EdgeStage, serve};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

/// A machine that answers each message with itself.
async fn echo() -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
                let (mut write, mut read) = socket.split();
                while let Some(Ok(message)) = read.next().await {
                    if message.is_text() || message.is_binary() {
                        let _gone = write.send(message).await;
                    }
                }
            });
        }
    });
    port
}

/// The machine is at another host, with another epoch.
async fn moved(stage: &EdgeStage, slug: &str, port: u16, epoch: u64) {
    stage
        .machine_with(slug, port, |machine| {
            machine["place"] = json!({"host": format!("host{epoch}"), "epoch": epoch});
            machine["updated_at"] = json!(epoch);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_goes_on_over_a_move_and_carries_large_messages() {
    let stage = EdgeStage::new().await;
    let port = echo().await;
    moved(&stage, "ws", port, 1).await;
    let stream = stage.tls("ws.mashine.dev", &[b"http/1.1"]).await;
    let (mut socket, _) = tokio_tungstenite::client_async("wss://ws.mashine.dev/chat", stream).await.unwrap();
    let mut say = async |message: Message| {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    };
    say(Message::text("before")).await;
    moved(&stage, "ws", port, 2).await;
    say(Message::text("after")).await;
    say(Message::binary(crate::common::clients::noise(5_000_000))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_websocket_client_talks_through() {
    let stage = EdgeStage::new().await;
    stage.machine("ws", echo().await).await;
    let arguments = [stage.https.to_string(), stage.path("ca.pem").display().to_string()];
    let output = succeed(python("websockets", "with_websockets.py", &arguments).await, b"").await;
    assert_eq!(output.text(), "passed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http_2_is_one_of_http_1_at_the_machine() {
    let stage = EdgeStage::new().await;
    stage.machine("ws", echo().await).await;
    let stream = stage.tls("ws.mashine.dev", &[b"h2"]).await;
    let (mut client, mut connection) =
        h2::client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
    // The settings must have come before RFC 8441 may be used.
    while !client.is_extended_connect_protocol_enabled() {
        tokio::select! {
            ended = &mut connection => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => (),
        }
    }
    tokio::spawn(connection);
    let mut request =
        Request::connect("https://ws.mashine.dev/chat").version(Version::HTTP_2).body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
    let (response, mut send) = client.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let mut body = response.into_body();
    // A text frame, masked with zeros (RFC 6455 §5.2), and the machine's, which is not masked.
    send.send_data(Bytes::from_static(b"\x81\x85\0\0\0\0hello"), false).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 7 {
        heard.extend_from_slice(&body.data().await.unwrap().unwrap());
    }
    assert_eq!(heard, b"\x81\x05hello");
}

/// A machine that speaks HTTP/2 without TLS as gRPC's servers do: each message back, then the status in trailers.
async fn grpc() -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert!(
            request.headers().get("host").is_none()
                && request.uri().authority().unwrap() == "grpc.mashine.dev"
        );
        let frames =
            request.into_body().into_data_stream().map(|bytes| Ok::<_, hyper::Error>(Frame::data(bytes?)));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let end = futures_util::stream::once(async { Ok(Frame::trailers(trailers)) });
        let response = Response::builder().header("content-type", "application/grpc");
        Ok::<_, Infallible>(response.body(StreamBody::new(frames.chain(end))).unwrap())
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

fn speaks_h2(machine: &mut serde_json::Value) {
    machine["config"]["services"][0]["ports"][0]["http_options"] = json!({"h2_backend": true});
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_stream_go_both_ways_and_the_status_comes_in_trailers() {
    let stage = EdgeStage::new().await;
    stage.machine_with("grpc", grpc().await, speaks_h2).await;
    let stream = stage.tls("grpc.mashine.dev", &[b"h2"]).await;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, StreamBody<_>>(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let (tell, told) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let messages = futures_util::stream::unfold(told, |mut told| async {
        told.recv().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), told))
    });
    let request = Request::post("https://grpc.mashine.dev/echo.Echo/Chat").header("te", "trailers");
    let request =
        request.header("content-type", "application/grpc").body(StreamBody::new(Box::pin(messages))).unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    // Each answer before the next message: neither side is collected.
    for message in ["one", "two", "three"] {
        tell.send(Bytes::from(message)).unwrap();
        let frame = response.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(tell);
    let trailers = response.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_grpc_talks_to_itself_through() {
    let stage = EdgeStage::new().await;
    let port = crate::common::free_port();
    stage.machine_with("grpc", port, speaks_h2).await;
    let arguments = [port.to_string(), stage.https.to_string(), stage.path("ca.pem").display().to_string()];
    let output = succeed(python("grpc", "with_grpc.py", &arguments).await, b"").await;
    assert_eq!(output.text(), "passed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_download_goes_on_over_moves() {
    let stage = EdgeStage::new().await;
    let pieces = || async {
        let pieces = futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            (n < 50).then(|| (Ok::<_, Infallible>(Bytes::from(vec![n; 10_000])), n + 1))
        });
        Body::from_stream(pieces)
    };
    let port = serve(Router::new().route("/long", get(pieces))).await;
    moved(&stage, "web", port, 1).await;
    let download = tokio::spawn(succeed(stage.curl(&["https://web.mashine.dev/long"]), b""));
    for epoch in 2..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        moved(&stage, "web", port, epoch).await;
    }
    let all: Vec<u8> = (0..50).flat_map(|n| vec![n; 10_000]).collect();
    assert!(download.await.unwrap().out == all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_machine_has_closed_meanwhile_costs_no_request() {
    let stage = EdgeStage::new().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A server that promises to keep the connection, and closes it a moment after its answer.
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answered = tokio::sync::Notify::new();
                // It takes the whole request first: curl 7.88 holds an answer that comes while it still sends for an error of its stream.
                let service = service_fn(|request: Request<Incoming>| async {
                    request.into_body().collect().await?;
                    answered.notify_one();
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from("web"))))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let moment = async {
                    answered.notified().await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                };
                tokio::select! {
                    _ended = connection => (),
                    () = moment => (),
                }
            });
        }
    });
    stage.machine("web", port).await;
    // Long after the cut: a POST that was sent at its very moment cannot be told from one that the machine has acted on.
    for _ in 0..5 {
        for arguments in [&[][..], &["-d", "x=y"]] {
            let request = [arguments, &["https://web.mashine.dev/"]].concat();
            assert_eq!(succeed(stage.curl(&request), b"").await.text(), "web");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
}
