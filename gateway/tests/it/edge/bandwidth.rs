//! What passes the edge is an account's bandwidth like what passes SSH.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::common::clients::succeed;
use crate::common::edge::{EdgeStage, serve};
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Bytes a second of one account. The first second's worth goes at once.
const RATE: u64 = 2_000_000;
const BYTES: usize = 5_000_000;
/// (BYTES - RATE) / RATE is 1.5 s, and what was read last is not waited for.
const LEAST: Duration = Duration::from_millis(1000);

async fn limited() -> EdgeStage {
    EdgeStage::with(|config| config.account_limits.bytes_per_second = NonZeroU64::new(RATE)).await
}

async fn web() -> u16 {
    let download = || async { vec![7u8; BYTES] };
    let upload = |body: Bytes| async move { body.len().to_string() };
    let app = Router::new().route("/", get(download).post(upload));
    serve(app.layer(DefaultBodyLimit::disable())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_and_uploads_go_at_the_machines_accounts_rate_and_arrive_whole() {
    for (version, arguments, answer) in
        [("--http1.1", &[][..], BYTES), ("--http2", &["--data-binary", "@-"], BYTES.to_string().len())]
    {
        let stage = limited().await;
        stage.machine("web", web().await).await;
        let begun = Instant::now();
        let curl = stage.curl(&[&[version, "https://web.mashine.dev/"], arguments].concat());
        let output = succeed(curl, &vec![7u8; BYTES]).await;
        assert_eq!(output.out.len(), answer);
        assert!(begun.elapsed() > LEAST, "{version}: {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_nobody_looks_into_are_counted_with_those_of_the_accounts_other_machines() {
    let stage = limited().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _cut = stream.write_all(&vec![7u8; BYTES / 2]).await;
            });
        }
    });
    stage.machine("web", web().await).await;
    stage
        .machine_with("raw", port, |machine| {
            machine["config"]["services"][0]["ports"] = json!([{"port": 443, "handlers": ["tls"]}]);
        })
        .await;
    let begun = Instant::now();
    let mut got = Vec::new();
    for _ in 0..2 {
        let mut raw = stage.tls("raw.mashine.dev", &[]).await;
        // The machine ends without TLS's own farewell, as it knows of no TLS.
        let _cut = raw.read_to_end(&mut got).await;
    }
    assert_eq!(got.len(), BYTES);
    assert!(begun.elapsed() > LEAST, "{:?}", begun.elapsed());
    let begun = Instant::now();
    let output = succeed(stage.curl(&["-r", "0-0", "https://web.mashine.dev/"]), b"").await;
    assert_eq!(output.out.len(), BYTES);
    assert!(begun.elapsed() > LEAST, "another machine of the account has no bandwidth of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_machine_is_not_slowed() {
    let stage = limited().await;
    stage.machine("web", web().await).await;
    stage.machine_with("theirs", web().await, |machine| machine["account"] = json!("bob")).await;
    let (ann, bob) = tokio::join!(
        async {
            succeed(stage.curl(&["https://web.mashine.dev/"]), b"").await;
            succeed(stage.curl(&["https://web.mashine.dev/"]), b"").await;
            Instant::now()
        },
        async {
            succeed(stage.curl(&["https://theirs.mashine.dev/"]), b"").await;
            Instant::now()
        }
    );
    assert!(bob < ann, "one's downloads wait for the other's");
}
