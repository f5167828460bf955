//! Requests that two readers of one stream might read differently, byte by byte over a socket: each is refused, and nothing of it or
//! after it reaches a machine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::edge::{EdgeStage, serve};
use axum::Router;
use axum::extract::Request;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

type Heard = Arc<Mutex<Vec<String>>>;

/// A machine that remembers what it heard.
async fn stage() -> (EdgeStage, Heard) {
    let heard = Heard::default();
    let note = Arc::clone(&heard);
    let app = Router::new().fallback(move |request: Request| {
        let note = Arc::clone(&note);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let mut body = Vec::new();
            let mut stream = request.into_body().into_data_stream();
            while let Some(Ok(bytes)) = stream.next().await {
                body.extend_from_slice(&bytes);
            }
            note.lock().unwrap().push(format!("{line} {}", String::from_utf8_lossy(&body)));
            "heard"
        }
    });
    let stage = EdgeStage::new().await;
    stage.machine("web", serve(app).await).await;
    (stage, heard)
}

/// What comes back until the edge closes, or has nothing more to say for a moment.
async fn told(stage: &EdgeStage, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(stage.http).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    let closed = timeout(Duration::from_secs(2), stream.read_to_end(&mut text)).await.is_ok();
    (String::from_utf8_lossy(&text).into_owned(), closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_the_connection_ends() {
    let (stage, heard) = stage().await;
    let host = "Host: web.mashine.dev\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web.mashine.dev\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = [
        format!("POST /a HTTP/1.1\r\n{host}Content-Length: 4\r\n{chunked}\r\n0\r\n\r\n"),
        format!("POST /b HTTP/1.1\r\n{host}{chunked}Content-Length: 4\r\n\r\n0\r\n\r\n"),
        format!("POST /c HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 60\r\n\r\n"),
        format!("POST /d HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
        format!("POST /e HTTP/1.1\r\n{host}Content-Length: +0\r\n\r\n"),
        format!("POST /f HTTP/1.1\r\n{host}Content-Length: 0,0\r\n\r\n"),
        format!("POST /g HTTP/1.1\r\n{host}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("POST /h HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("POST /i HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /j HTTP/1.1\r\n{host}Transfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /k HTTP/1.1\r\n{host}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /l HTTP/1.1\r\n{host}X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /m HTTP/1.1\r\n{host}X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /n HTTP/1.0\r\n{host}{chunked}\r\n0\r\n\r\n"),
        format!("GET /o HTTP/1.1\n{}\n", host.replace("\r\n", "\n")),
        format!("GET /p HTTP/1.1\r\n{host}Host: other.mashine.dev\r\n\r\n"),
        format!("GET http://other.mashine.dev/q HTTP/1.1\r\n{host}\r\n"),
        format!("GET /r HTTP/1.1 \r\n{host}\r\n"),
        format!("GET /s\tHTTP/1.1\r\n{host}\r\n"),
        format!("GET  /t HTTP/1.1\r\n{host}\r\n"),
        format!("GET /u\0 HTTP/1.1\r\n{host}\r\n"),
        format!("GET /v HTTP/1.1\r\n{host}X\0: y\r\n\r\n"),
        format!("GET /w HTTP/9.9\r\n{host}\r\n"),
        format!("CONNECT web.mashine.dev:443 HTTP/1.1\r\n{host}\r\n"),
        "GET /x HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET /y HTTP/1.1\r\nHost: a@web.mashine.dev\r\n{}", "\r\n"),
        format!("\x01GET /z HTTP/1.1\r\n{host}\r\n"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{host}\r\n"),
    ];
    for case in cases {
        let (text, closed) = told(&stage, format!("{case}{smuggled}").as_bytes()).await;
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("HTTP/1.1 400") || first.starts_with("HTTP/1.0 400"), "{case:?}: {text}");
        assert!(closed && text.matches("HTTP/1.").count() == 1, "{case:?}: one answer, and the end: {text}");
    }
    assert_eq!(*heard.lock().unwrap(), Vec::<String>::new(), "nothing of it reached the machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_malformed_end_the_connection() {
    let (stage, heard) = stage().await;
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5;\nx\r\nhello\r\n0\r\n\r\n",
        "\r\n",
    ] {
        let head = "POST /chunks HTTP/1.1\r\nHost: web.mashine.dev\r\nTransfer-Encoding: chunked\r\n\r\n";
        let next = "GET /smuggled HTTP/1.1\r\nHost: web.mashine.dev\r\n\r\n";
        let (text, closed) = told(&stage, format!("{head}{body}{next}").as_bytes()).await;
        assert!(closed && !text.contains(" 200 "), "{body:?}: {text}");
    }
    assert!(heard.lock().unwrap().iter().all(|line| !line.contains("smuggled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_follow_each_other_are_answered_in_order_and_a_bad_one_ends_them() {
    let (stage, heard) = stage().await;
    let one = "POST /one HTTP/1.1\r\nHost: web.mashine.dev\r\nContent-Length: 3\r\n\r\nabc";
    let two = "POST /two HTTP/1.1\r\nHost: web.mashine.dev\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\n\r\n";
    let bad = "GET /bad HTTP/1.1\r\nHost: web.mashine.dev\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";
    let (text, closed) = told(&stage, format!("{one}{two}\r\n{one}{bad}{two}").as_bytes()).await;
    let answers: Vec<&str> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(answers, ["200", "200", "200", "400"], "{text}");
    assert!(closed);
    assert_eq!(*heard.lock().unwrap(), ["POST /one abc", "POST /two def", "POST /one abc"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_granted_is_the_connections_last_request() {
    let (stage, heard) = stage().await;
    for protocol in ["h2c", "websocket"] {
        let upgrade = format!(
            "GET /up HTTP/1.1\r\nHost: web.mashine.dev\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        );
        let next = "GET /smuggled HTTP/1.1\nHost: web.mashine.dev\n\n";
        let (text, closed) = told(&stage, format!("{upgrade}{next}").as_bytes()).await;
        assert!(closed && text.matches("HTTP/1.1").count() == 1, "{protocol}: {text}");
        assert!(text.contains("connection: close"), "{protocol}: {text}");
    }
    assert_eq!(*heard.lock().unwrap(), ["GET /up ", "GET /up "]);
}
