//! testssl.sh looks at the edge: no finding of medium or more.

use std::process::Stdio;
use std::time::Duration;

use crate::common::clients::tool;
use crate::common::edge::{EdgeStage, serve};
use axum::Router;
use axum::routing::get;
use serde_json::Value;

/// Two minutes, most of them asleep: scripts/test runs it beside the others.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes: scripts/test runs it with --ignored"]
async fn testssl_finds_nothing_of_medium_or_more() {
    let stage = EdgeStage::new().await;
    // These are the machine's own affair, and testssl.sh would miss them.
    let headers = [
        ("strict-transport-security", "max-age=63072000"),
        ("content-security-policy", "default-src 'self'"),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
    ];
    let app = Router::new().route("/", get(move || async move { (headers, "web") }));
    stage.machine("web", serve(app).await).await;
    let found = stage.path("found.json");
    let mut audit = tool("testssl", "testssl.sh");
    let port = stage.https.port();
    audit.args([
        "--quiet",
        "--warnings",
        "batch",
        "--color",
        "0",
        "--ip",
        "127.0.0.1",
        "--nodns",
        "min",
        "--fast",
    ]);
    audit.args(["--severity", "MEDIUM", "--add-ca", stage.path("ca.pem").to_str().unwrap()]);
    audit.args(["--jsonfile", found.to_str().unwrap(), "-p", "-s", "-f", "-S", "-h", "-U", "-P"]);
    audit.arg(format!("web.mashine.dev:{port}"));
    let output = tokio::time::timeout(Duration::from_secs(280), audit.stdin(Stdio::null()).output()).await;
    let output = output.expect("testssl.sh hangs").unwrap();
    let text = std::fs::read_to_string(&found).unwrap_or_else(|_| panic!("{output:?}"));
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
    let bad = findings.iter().filter(|finding| {
        matches!(finding["severity"].as_str().unwrap(), "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL")
    });
    assert_eq!(bad.collect::<Vec<_>>(), Vec::<&Value>::new(), "{output:?}");
}
