//! Real listeners on loopback: who gets in, who does not, and what the caller is told.

use std::time::Duration;

use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::pki::{
    Ca, ClientCertificates, Identity, PeerName, anonymous_client_config, fingerprint, pinned_client_config,
};

fn host(id: &str) -> PeerName {
    PeerName::host(&id.parse().unwrap())
}

async fn server(
    identity: &Identity,
    clients: ClientCertificates,
    limits: Limits,
) -> (String, JoinHandle<()>) {
    let app =
        Router::new()
            .route(
                "/who",
                get(|Extension(peer): Extension<Peer>| async move {
                    Json(peer.name.map(|name| name.to_string()))
                }),
            )
            .route("/echo", post(|Json(body): Json<serde_json::Value>| async move { Json(body) }))
            .route("/slow", get(|| async { tokio::time::sleep(Duration::from_secs(60)).await }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let tls = identity.server_config(clients).unwrap();
    let task = tokio::spawn(async move {
        serve(listener, app, tls, limits, std::future::pending()).await.unwrap();
    });
    (url, task)
}

#[tokio::test]
async fn a_member_is_known_by_its_certificate() {
    let ca = Ca::create("test").unwrap();
    let (a, b) = (ca.issue(&host("hosta"), &[]).unwrap(), ca.issue(&host("hostb"), &[]).unwrap());
    let (url, _task) = server(&a, ClientCertificates::Required, Limits::default()).await;
    let client = Client::to_peer(&b, &url, &host("hosta")).unwrap();
    let who: Option<String> = client.get("/who").await.unwrap();
    assert_eq!(who.as_deref(), Some("hostb.host.mashines.internal"));
    let echo: serde_json::Value = client.post("/echo", &serde_json::json!({"x": [1]})).await.unwrap();
    assert_eq!(echo["x"][0], 1);
}

#[tokio::test]
async fn another_member_at_the_address_is_not_spoken_to() {
    let ca = Ca::create("test").unwrap();
    let (a, b) = (ca.issue(&host("hosta"), &[]).unwrap(), ca.issue(&host("hostb"), &[]).unwrap());
    let (url, _task) = server(&a, ClientCertificates::Required, Limits::default()).await;
    let error = Client::to_peer(&b, &url, &host("hostc")).unwrap().get::<Empty>("/who").await.unwrap_err();
    assert!(matches!(&error, RpcError::Unanswered { sent: false, .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn strangers_and_the_nameless_are_refused_where_certificates_are_required() {
    let (ca, foreign) = (Ca::create("test").unwrap(), Ca::create("other").unwrap());
    let a = ca.issue(&host("hosta"), &[]).unwrap();
    let (url, _task) = server(&a, ClientCertificates::Required, Limits::default()).await;
    let name = || host("hosta").server_name().unwrap();
    let nameless = Client::new(anonymous_client_config(ca.certificate_pem()).unwrap(), &url, name());
    assert!(nameless.get::<Empty>("/who").await.is_err());
    let stranger = foreign.issue(&host("hostb"), &[]).unwrap();
    let pinned = fingerprint(ca.certificate_pem()).unwrap();
    assert!(Client::to_peer(&stranger, &url, &host("hosta")).unwrap().get::<Empty>("/who").await.is_err());
    let joiner = Client::new(pinned_client_config(&pinned).unwrap(), &url, name());
    assert!(joiner.get::<Empty>("/who").await.is_err());
}

#[tokio::test]
async fn a_joiner_trusts_the_pinned_fleet_and_no_other() {
    let (ca, foreign) = (Ca::create("test").unwrap(), Ca::create("other").unwrap());
    let control = ca.issue(&PeerName::control(), &[]).unwrap();
    let (url, _task) = server(&control, ClientCertificates::Optional, Limits::default()).await;
    let join = |ca: &Ca| {
        let tls = pinned_client_config(&fingerprint(ca.certificate_pem()).unwrap()).unwrap();
        Client::new(tls, &url, PeerName::control().server_name().unwrap())
    };
    assert_eq!(join(&ca).get::<Option<String>>("/who").await.unwrap(), None);
    let error = join(&foreign).get::<Empty>("/who").await.unwrap_err();
    assert!(error.to_string().contains("not of the fleet"), "{error}");
}

#[tokio::test]
async fn silence_is_a_time_out_and_a_missing_page_is_a_refusal() {
    let ca = Ca::create("test").unwrap();
    let a = ca.issue(&host("hosta"), &[]).unwrap();
    let (url, _task) = server(&a, ClientCertificates::Required, Limits::default()).await;
    let client = Client::to_peer(&a, &url, &host("hosta")).unwrap();
    let slow = client.with_timeout(Duration::from_millis(50)).get::<Empty>("/slow").await.unwrap_err();
    assert!(slow.is_unanswered() && slow.to_string().contains("no answer within 50ms"), "{slow}");
    let missing = client.get::<Empty>("/nothing").await.unwrap_err();
    assert_eq!(missing.status().map(|s| s.as_u16()), Some(404));
    let nobody = Client::to_peer(&a, "https://127.0.0.1:1", &host("hosta")).unwrap();
    let refused = nobody.get::<Empty>("/who").await.unwrap_err();
    assert!(matches!(refused, RpcError::Unanswered { sent: false, .. }), "{refused}");
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_shut_others_out() {
    let ca = Ca::create("test").unwrap();
    let a = ca.issue(&host("hosta"), &[]).unwrap();
    let limits = Limits { connections: 8, handshake: Duration::from_millis(200), ..Limits::default() };
    let (url, _task) = server(&a, ClientCertificates::Required, limits).await;
    let address = url.trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    let client = Client::to_peer(&a, &url, &host("hosta")).unwrap();
    assert!(client.get::<Option<String>>("/who").await.unwrap().is_some());
}

#[tokio::test]
async fn control_is_the_first_address_that_answers_and_a_call_that_may_have_arrived_is_not_made_twice() {
    let ca = Ca::create("test").unwrap();
    let (control, entry) =
        (ca.issue(&PeerName::control(), &[]).unwrap(), ca.issue(&host("entry1"), &[]).unwrap());
    let (up, _task) = server(&control, ClientCertificates::Required, Limits::default()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let down = format!("https://{}", closed.local_addr().unwrap());
    drop(closed);
    let body = serde_json::json!({"x": 1});
    let both = Control::new(&entry, &[down, up.clone()]).unwrap();
    let told: serde_json::Value = both.tell(http::Method::POST, "/echo", &body).await.unwrap();
    assert_eq!(told, body, "nobody was at the first address");
    let who: Option<String> = both.get("/who").await.unwrap();
    assert_eq!(who.as_deref(), Some("entry1.host.mashines.internal"));

    // The first takes requests and never answers.
    let (stuck, _task) = server(&control, ClientCertificates::Required, Limits::default()).await;
    let stuck =
        Control::new(&entry, &[format!("{stuck}/slow?"), up]).unwrap().with_timeout(Duration::from_secs(2));
    let told: Result<serde_json::Value, _> = stuck.tell(http::Method::GET, "/who", &body).await;
    assert!(matches!(told, Err(RpcError::Unanswered { sent: true, .. })), "{told:?}");
    let asked: serde_json::Value = stuck.get("/who").await.unwrap();
    assert_eq!(asked, "entry1.host.mashines.internal");

    let nobody = Control::default().get::<Empty>("/who").await.unwrap_err();
    assert!(nobody.to_string().contains("names no address of control"), "{nobody}");
}
