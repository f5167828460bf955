//! HTTP through the edge, by curl: HTTP/1.1 and HTTP/2, what the machine is told, streaming, redirects, pages.

use std::time::Duration;

use crate::common::clients::{noise, succeed};
use crate::common::edge::{EdgeStage, serve};
use crate::common::{finish, free_port, put};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::StreamExt as _;
use serde_json::json;

/// Says what it heard: method, target, version, headers.
async fn heard(request: Request) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    lines.sort_unstable();
    lines.into_iter().for_each(|line| text.push_str(&line));
    text
}

async fn count(request: Request) -> String {
    let mut sum = 0;
    let mut stream = request.into_body().into_data_stream();
    while let Some(Ok(bytes)) = stream.next().await {
        sum += bytes.len();
    }
    sum.to_string()
}

/// Three events, one each 300 ms.
async fn events() -> Response {
    let events = futures_util::stream::unfold(0, |n| async move {
        if n == 3 {
            return None;
        }
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("data: {n}\n\n"))), n + 1))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

fn app() -> Router {
    Router::new()
        .route("/heard", any(heard))
        .route("/count", post(count).put(count))
        .route("/events", get(events))
        .route("/big", get(|| async { noise(20_000_000) }))
        .fallback(|| async { "web" })
        .layer(axum::extract::DefaultBodyLimit::disable())
}

async fn stage() -> EdgeStage {
    let stage = EdgeStage::new().await;
    stage.machine("web", serve(app()).await).await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_reach_the_machine_and_it_is_told_who_comes() {
    let stage = stage().await;
    for (option, shown) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let arguments = [
            option,
            "-w",
            "%{http_version} %{ssl_verify_result}",
            "-H",
            "X-Forwarded-For: 203.0.113.9",
            "-H",
            "Forwarded: for=x",
            "-H",
            "Connection: x-secret",
            "-H",
            "X-Secret: 1",
            "-H",
            "X_Real_IP: 203.0.113.9",
            "-b",
            "a=1",
            "https://web.mashine.dev/heard?q=1",
        ];
        let text = succeed(stage.curl(&arguments), b"").await.text();
        assert!(
            text.starts_with("GET /heard?q=1 HTTP/1.1\n") && text.ends_with(&format!("{shown} 0")),
            "{text}"
        );
        for line in [
            "host: web.mashine.dev\n",
            "x-forwarded-for: 127.0.0.1\n",
            "x-forwarded-proto: https\n",
            "x-forwarded-port: 443\n",
            "x-forwarded-host: web.mashine.dev\n",
            "x-real-ip: 127.0.0.1\n",
            "cookie: a=1\n",
        ] {
            assert!(text.contains(line), "{line} {text}");
        }
        assert!(!text.contains("203.0.113.9") && !text.contains("forwarded: for"), "{text}");
        if option == "--http1.1" {
            assert!(!text.contains("x-secret"), "what Connection lists stays behind: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_go_through_unchanged_and_uncollected() {
    let stage = stage().await;
    let data = noise(20_000_000);
    std::fs::write(stage.path("data"), &data).unwrap();
    let file = format!("@{}", stage.path("data").display());
    for option in ["--http1.1", "--http2"] {
        let down = succeed(stage.curl(&[option, "https://web.mashine.dev/big"]), b"").await;
        assert!(down.out == data, "{option}");
        for more in [&["-H", "Expect: 100-continue"][..], &["-H", "Transfer-Encoding: chunked"]] {
            if option == "--http2" && more[1].starts_with("Transfer") {
                continue;
            }
            let arguments =
                [&[option, "--data-binary", &file, "https://web.mashine.dev/count"][..], more].concat();
            assert_eq!(succeed(stage.curl(&arguments), b"").await.text(), "20000000", "{arguments:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_happen() {
    let stage = stage().await;
    for option in ["--http1.1", "--http2"] {
        let arguments =
            [option, "-N", "-w", "%{time_starttransfer} %{time_total}", "https://web.mashine.dev/events"];
        let text = succeed(stage.curl(&arguments), b"").await.text();
        let (events, times) = text.rsplit_once("\n\n").unwrap();
        assert_eq!(events, "data: 0\n\ndata: 1\n\ndata: 2");
        let (first, last) = times.split_once(' ').unwrap();
        let between = last.parse::<f64>().unwrap() - first.parse::<f64>().unwrap();
        assert!(between > 0.5, "the first came with the last: {times}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn port_80_leads_to_443_but_for_issuers_and_machines_that_want_it() {
    let stage = stage().await;
    stage.machine_with("safe", free_port(), |machine| machine["config"]["services"] = json!([])).await;
    let output = succeed(stage.curl(&["-i", "http://safe.mashine.dev/a?b=c"]), b"").await.text();
    assert!(
        output.starts_with("HTTP/1.1 308") && output.contains("location: https://safe.mashine.dev/a?b=c\r\n"),
        "{output}"
    );
    let plain = succeed(stage.curl(&["http://web.mashine.dev/heard"]), b"").await.text();
    assert!(
        plain.contains("x-forwarded-proto: http\n") && plain.contains("x-forwarded-port: 80\n"),
        "{plain}"
    );
    let far = u64::MAX;
    stage.publish(vec![put(
        "challenges/01J00000000000000000000001",
        json!({"name": "safe.mashine.dev", "show": {"type": "http01", "token": "tok", "authorization": "tok.key"}, "expires_at": far}),
    )]).await;
    let at = "http://safe.mashine.dev/.well-known/acme-challenge/";
    assert_eq!(succeed(stage.curl(&[&format!("{at}tok")]), b"").await.text(), "tok.key");
    let other =
        succeed(stage.curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("{at}other")]), b"").await;
    assert_eq!(other.text(), "308", "the machine may have an ACME client of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_say_whose_fault_it_is_in_the_form_that_is_asked_for() {
    let stage = stage().await;
    stage
        .machine_with("off", 80, |machine| {
            machine["state"] = json!("stopped");
            machine["desired"] = json!("stopped");
        })
        .await;
    stage.machine("deaf", free_port()).await;
    let ask = |accept: &'static str, url: &'static str| {
        let accept = format!("Accept: {accept}");
        let command = stage.curl(&["-w", "%{http_code}", "-H", &accept, url]);
        async move { succeed(command, b"").await.text() }
    };
    let off = ask("application/json", "https://off.mashine.dev/").await;
    assert!(
        off.ends_with("503") && off.contains("\"fault\":\"machine\"") && off.contains("mashines start off"),
        "{off}"
    );
    let deaf = ask("text/html", "https://deaf.mashine.dev/").await;
    assert!(
        deaf.ends_with("502")
            && deaf.contains("<h1>502 Bad Gateway</h1>")
            && deaf.contains("nothing listens on its port"),
        "{deaf}"
    );
    let nobody = ask("*/*", "http://nobody.mashine.dev/").await;
    assert!(nobody.ends_with("404") && nobody.contains("The request is at fault"), "{nobody}");
    let front = finish(
        stage.curl(&["-w", "%{http_code}", "-H", "Host: off.mashine.dev", "https://web.mashine.dev/"]),
        b"",
    )
    .await;
    assert!(front.text().ends_with("421"), "a name inside of another's connection: {front:?}");
    let mixed = stage.curl(&["-w", "%{http_code}", "http://web.mashine.dev:8443/"]);
    let mixed = succeed(mixed, b"").await.text();
    assert!(mixed.ends_with("400") && mixed.contains("https:// in place of http://"), "{mixed}");
}
