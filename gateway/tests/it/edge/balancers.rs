//! The edge between PROXY headers: a load balancer's before TLS and HTTP, and its own towards the machine. HAProxy plays both.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::clients::{succeed, tool};
use crate::common::edge::{EdgeStage, serve};
use crate::common::{finish, free_port};
use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;

/// Where HAProxy comes from: the only address that the edge believes.
const BALANCER: &str = "127.0.0.2";
/// Where the client is.
const CLIENT: &str = "127.0.0.7";

/// HAProxy with those sections, once it accepts at each of those addresses.
async fn haproxy(directory: &Path, sections: &str, accepts: &[SocketAddr]) -> Child {
    let config = format!(
        "global\n maxconn 64\ndefaults\n timeout connect 10s\n timeout client 30s\n timeout server 30s\n{sections}"
    );
    let file = directory.join(format!("haproxy-{}.cfg", accepts[0].port()));
    std::fs::write(&file, config).unwrap();
    let mut haproxy = tool("haproxy", "haproxy");
    haproxy.args(["-db", "-f", file.to_str().unwrap()]).stdout(Stdio::null());
    let mut running = haproxy.spawn().unwrap();
    for address in accepts {
        let mut tries = 0;
        while TcpStream::connect(address).await.is_err() {
            assert!(running.try_wait().unwrap().is_none(), "haproxy ended");
            tries += 1;
            assert!(tries < 400, "haproxy does not listen on {address}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    running
}

/// What a client's requests look like in the machine.
fn app() -> Router {
    let told = |headers: HeaderMap| async move {
        let of = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
        format!("for {} seen {}", of("x-forwarded-for"), of("x-seen"))
    };
    Router::new().route("/", get(told))
}

async fn behind_balancers() -> EdgeStage {
    EdgeStage::with(|config| config.proxy_from = vec![format!("{BALANCER}/32").parse().unwrap()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancers_client_is_the_machines_client_over_tls_and_over_http_by_either_version() {
    let stage = behind_balancers().await;
    stage.machine("web", serve(app()).await).await;
    let mut sections = String::new();
    let mut ports = Vec::new();
    for (name, to) in [("tls", stage.https), ("web", stage.http)] {
        for version in ["send-proxy", "send-proxy-v2"] {
            let port = free_port();
            ports.push((name, version, SocketAddr::from(([127, 0, 0, 1], port))));
            write!(
                sections,
                "listen {name}-{version}\n mode tcp\n bind 127.0.0.1:{port}\n source {BALANCER}\n server edge {to} {version}\n"
            )
            .unwrap();
        }
    }
    let addresses: Vec<SocketAddr> = ports.iter().map(|(_, _, at)| *at).collect();
    let _haproxy = haproxy(stage.directory.path(), &sections, &addresses).await;
    for (name, version, at) in ports {
        let mut curl = tool("curl", "curl");
        curl.args(["-sS", "--max-time", "30", "--noproxy", "*", "--interface", CLIENT, "--cacert"]);
        curl.arg(stage.path("ca.pem")).args(["--connect-to", &format!("::{at}")]);
        curl.arg(if name == "tls" { "https://web.mashine.dev/" } else { "http://web.mashine.dev/" });
        let answer = succeed(curl, b"").await.text();
        assert_eq!(answer, format!("for {CLIENT} seen -"), "{name} {version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_towards_the_machine_names_the_client_and_not_the_balancer() {
    let stage = behind_balancers().await;
    let (server, machine, front) = (serve(app()).await, free_port(), free_port());
    let sections = format!(
        "listen machine\n mode http\n bind [::1]:{machine} accept-proxy\n http-request set-header x-seen %[src]\n server app [::1]:{server}\n\
         listen front\n mode tcp\n bind 127.0.0.1:{front}\n source {BALANCER}\n server edge {} send-proxy-v2\n",
        stage.other
    );
    let front = SocketAddr::from(([127, 0, 0, 1], front));
    let listens = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, machine));
    let _haproxy = haproxy(stage.directory.path(), &sections, &[front, listens]).await;
    for version in ["v1", "v2"] {
        stage
            .machine_with("web", machine, |record| {
                record["config"]["services"][0]["ports"] = json!([{
                    "port": 8443, "handlers": ["tls", "proxy_proto"], "proxy_proto_options": {"version": version},
                }]);
            })
            .await;
        let mut curl = tool("curl", "curl");
        curl.args([
            "-sS",
            "--http1.1",
            "--max-time",
            "30",
            "--noproxy",
            "*",
            "--interface",
            CLIENT,
            "--cacert",
        ]);
        curl.arg(stage.path("ca.pem")).args([
            "--connect-to",
            &format!("::{front}"),
            "https://web.mashine.dev:8443/",
        ]);
        assert_eq!(succeed(curl, b"").await.text(), format!("for - seen {CLIENT}"), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_anybody_else_is_no_request_and_a_balancer_without_one_gets_nowhere() {
    let stage = behind_balancers().await;
    stage.machine("web", serve(app()).await).await;
    let request = "PROXY TCP4 198.51.100.7 192.0.2.1 5000 80\r\nGET / HTTP/1.1\r\nHost: web.mashine.dev\r\nConnection: close\r\n\r\n";
    for from in [stage.http, stage.https] {
        let mut stranger = TcpStream::connect(from).await.unwrap();
        stranger.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _reset = stranger.read_to_string(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(!answer.contains("198.51.100.7"), "{answer}");
    }
    let mut curl = stage.curl(&["--haproxy-protocol", "https://web.mashine.dev/"]);
    curl.stdout(Stdio::piped());
    let refused = finish(curl, b"").await;
    assert_ne!(refused.code, Some(0), "a header before TLS from a source that is no balancer: {refused:?}");
    let bare = stage.curl(&["--interface", BALANCER, "http://web.mashine.dev/"]);
    let refused = finish(bare, b"").await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(succeed(stage.curl(&["http://web.mashine.dev/"]), b"").await.text(), "for 127.0.0.1 seen -");
}
