//! Those who mean harm, and those who merely are many: slow senders, thousands of idle connections, heads and bodies without end, floods of
//! HTTP/2. Whoever else comes is served meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::clients::{succeed, tool};
use crate::common::edge::{EdgeStage, serve};
use crate::common::finish;
use axum::Router;
use axum::routing::{get, post};
use mashines_gateway::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

fn app() -> Router {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        "slow"
    };
    Router::new()
        .route("/", get(|| async { "web" }))
        .route("/slow", get(slow))
        .route("/body", post(|body: axum::body::Bytes| async move { body.len().to_string() }))
        .layer(axum::extract::DefaultBodyLimit::disable())
}

async fn stage(change: impl FnOnce(&mut Config)) -> EdgeStage {
    let stage = EdgeStage::with(change).await;
    stage.machine("web", serve(app()).await).await;
    stage
}

/// Another client is served, and at once.
async fn is_unharmed(stage: &EdgeStage) {
    let begun = Instant::now();
    let output = succeed(stage.curl(&["https://web.mashine.dev/"]), b"").await;
    assert_eq!(output.text(), "web");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// What comes until the other side closes; none when it does not within that time.
async fn end_of(stream: &mut TcpStream, most: Duration) -> Option<String> {
    let mut text = Vec::new();
    let ended = timeout(most, stream.read_to_end(&mut text)).await;
    ended.ok().map(|_| String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_are_cut_off_and_others_are_served() {
    let stage = stage(|config| {
        config.edge.keep_alive_s = 3;
        config.edge.handshake_s = 3;
    })
    .await;
    // Each sends a byte now and then, of a head and of a handshake, and never ends.
    let mut slow = Vec::new();
    for n in 0..200 {
        let (at, first): (_, &[u8]) = if n % 2 == 0 {
            (stage.http, b"GET / HTTP/1.1\r\nHost: web.mashine.dev\r\n")
        } else {
            (stage.https, b"\x16\x03\x01\x02\x00")
        };
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(first).await.unwrap();
        slow.push(tokio::spawn(async move {
            let begun = Instant::now();
            let (mut read, mut write) = stream.into_split();
            let dripping = tokio::spawn(async move {
                while write.write_all(b"X").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
            let mut rest = Vec::new();
            let _reset = read.read_to_end(&mut rest).await;
            dripping.abort();
            begun.elapsed()
        }));
    }
    is_unharmed(&stage).await;
    for each in slow {
        let lasted =
            timeout(Duration::from_secs(20), each).await.expect("a slow sender is never cut off").unwrap();
        assert!(lasted < Duration::from_secs(10), "{lasted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_connections_leave_others_unharmed() {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let stage = stage(|_| ()).await;
    let connector = tokio_rustls::TlsConnector::from(stage.client_config(&[b"http/1.1"]));
    let mut idle = Vec::new();
    let mut failed = 0;
    for _ in 0..100 {
        let some = (0..50).map(|_| {
            let connector = connector.clone();
            let at = stage.https;
            async move {
                let stream = TcpStream::connect(at).await?;
                let name = rustls::pki_types::ServerName::try_from("web.mashine.dev").unwrap();
                connector.connect(name, stream).await
            }
        });
        for stream in futures_util::future::join_all(some).await {
            match stream {
                Ok(stream) => idle.push(stream),
                Err(_) => failed += 1,
            }
        }
    }
    assert_eq!((idle.len(), failed), (5000, 0));
    for _ in 0..5 {
        is_unharmed(&stage).await;
    }
    // They are still there, and each of them is served when it asks.
    for stream in idle.iter_mut().step_by(500) {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: web.mashine.dev\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_are_refused_with_431() {
    let stage = stage(|_| ()).await;
    let long = format!("X-Long: {}", "a".repeat(100_000));
    for option in ["--http1.1", "--http2"] {
        let output =
            finish(stage.curl(&[option, "-w", "%{http_code}", "-H", &long, "https://web.mashine.dev/"]), b"")
                .await;
        // Over HTTP/2 it may also be the stream that is refused.
        assert!(
            output.text().ends_with("431") || (option == "--http2" && output.code != Some(0)),
            "{option}: {output:?}"
        );
    }
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let mut stream = TcpStream::connect(stage.http).await.unwrap();
    stream
        .write_all(format!("GET / HTTP/1.1\r\nHost: web.mashine.dev\r\n{many}\r\n").as_bytes())
        .await
        .unwrap();
    let answer = end_of(&mut stream, Duration::from_secs(10)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut stream = TcpStream::connect(stage.http).await.unwrap();
    stream.write_all(b"GET /").await.unwrap();
    let flood = tokio::time::timeout(Duration::from_secs(10), async {
        while stream.write_all(&[b'a'; 10_000]).await.is_ok() {}
    });
    flood.await.expect("a head without an end is taken for ever");
    is_unharmed(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_or_pause_for_too_long_are_refused() {
    let stage = stage(|_| ()).await;
    stage
        .machine_with("small", serve(app()).await, |machine| {
            for port in [0, 1] {
                machine["config"]["services"][0]["ports"][port]["http_options"] =
                    json!({"max_body_bytes": 1000, "idle_timeout": "1s"});
            }
        })
        .await;
    std::fs::write(stage.path("large"), vec![b'x'; 2_000_000]).unwrap();
    let file = format!("@{}", stage.path("large").display());
    for more in [&[][..], &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"]] {
        let arguments =
            ["--http1.1", "-w", "%{http_code}", "--data-binary", &file, "https://small.mashine.dev/body"];
        let output = finish(stage.curl(&[&arguments[..], more].concat()), b"").await;
        assert!(output.text().ends_with("413"), "{arguments:?}: {output:?}");
    }
    // An answer before the end of the request, then RST_STREAM with NO_ERROR (RFC 9113 §8.1): Debian 12's curl takes that for a fault.
    let mut nghttp = tool("nghttp", "nghttp2-client");
    nghttp.args(["-nv", "-H", ":authority: small.mashine.dev", "-d", &file[1..]]);
    nghttp.arg(format!("https://localhost:{}/body", stage.https.port()));
    let early = succeed(nghttp, b"").await.text();
    assert!(early.contains(":status: 413") && early.contains("NO_ERROR"), "{early}");
    for option in ["--http1.1", "--http2"] {
        let fine = succeed(stage.curl(&[option, "-d", "abc", "https://small.mashine.dev/body"]), b"").await;
        assert_eq!(fine.text(), "3");
    }
    let mut stream = TcpStream::connect(stage.http).await.unwrap();
    stream
        .write_all(b"POST /body HTTP/1.1\r\nHost: small.mashine.dev\r\nContent-Length: 100\r\n\r\nabc")
        .await
        .unwrap();
    let answer = end_of(&mut stream, Duration::from_secs(10)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_its_limits_and_says_when_to_come_again() {
    let stage = stage(|_| ()).await;
    stage
        .machine_with("busy", serve(app()).await, |machine| {
            machine["config"]["services"][0]["concurrency"] =
                json!({"type": "requests", "soft_limit": 2, "hard_limit": 4});
        })
        .await;
    let stage = Arc::new(stage);
    let asks = (0..8).map(|_| {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            let command = stage.curl(&["-i", "https://busy.mashine.dev/slow"]);
            succeed(command, b"").await.text()
        })
    });
    let answers = futures_util::future::join_all(asks.collect::<Vec<_>>()).await;
    let answers: Vec<String> = answers.into_iter().map(Result::unwrap).collect();
    let served = answers.iter().filter(|answer| answer.ends_with("slow")).count();
    let refused: Vec<&String> = answers.iter().filter(|answer| !answer.ends_with("slow")).collect();
    assert!(served >= 4 && !refused.is_empty(), "{answers:?}");
    for answer in refused {
        let fine = answer.contains(" 503") && answer.contains("retry-after: 1") && answer.contains("is busy");
        assert!(fine, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_its_share_of_connections() {
    let stage = stage(|config| config.edge.limits.per_source = 5).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(stage.tls("web.mashine.dev", &[]).await);
    }
    let refused = finish(stage.curl(&["https://web.mashine.dev/"]), b"").await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    drop(held);
    for _ in 0..100 {
        if finish(stage.curl(&["https://web.mashine.dev/"]), b"").await.code == Some(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("places are not given back");
}

/// HTTP/2 frames by hand (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// `GET https://web.mashine.dev/slow` in HPACK (RFC 7541): indexed method and scheme, literal path and authority.
fn get_slow() -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, 5];
    block.extend_from_slice(b"/slow");
    block.extend_from_slice(&[0x01, 15]);
    block.extend_from_slice(b"web.mashine.dev");
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http_2_end_their_own_connection_and_no_other() {
    let stage = stage(|_| ()).await;
    // Requests that are reset at once (CVE-2023-44487).
    let mut stream = stage.tls("web.mashine.dev", &[b"h2"]).await;
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for n in 0..5000u32 {
        bytes.extend(frame(HEADERS, 0x5, 2 * n + 1, &get_slow()));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let _cut = stream.write_all(&bytes).await;
    assert!(is_cut(&mut stream).await, "rapid reset");
    // A head in pieces without an end (CVE-2024-27316).
    let mut stream = stage.tls("web.mashine.dev", &[b"h2"]).await;
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0x1, 1, &get_slow())].concat();
    for _ in 0..20_000 {
        bytes.extend(frame(
            CONTINUATION,
            0,
            1,
            b"\x00\x01a\x40aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ));
    }
    let _cut = stream.write_all(&bytes).await;
    assert!(is_cut(&mut stream).await, "endless CONTINUATION");
    is_unharmed(&stage).await;
}

async fn is_cut(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.is_ok()
}
