//! The TLS of the edge: names, challenges, resumption at another entry, TLS that goes through untouched.

use std::sync::Arc;

use crate::common::clients::{succeed, tool};
use crate::common::edge::{EdgeStage, WebCa, client_config, serve};
use crate::common::{finish, put};
use axum::Router;
use axum::routing::get;
use mashines_fleet::sealed::EntrySecret;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

fn app() -> Router {
    Router::new().route("/", get(|| async { "web" }))
}

/// `openssl s_client` for that name.
fn s_client(at: std::net::SocketAddr, name: &str, more: &[&str]) -> Command {
    let mut openssl = tool("openssl", "openssl");
    openssl.args(["s_client", "-connect", &at.to_string(), "-servername", name]).args(more);
    openssl
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_entry_is_resumed_at_another_and_for_no_other_name() {
    let (ca, secret) = (Arc::new(WebCa::new()), EntrySecret::random());
    let mut edges = Vec::new();
    let port = serve(app()).await;
    for _ in 0..2 {
        let stage = EdgeStage::sharing(Arc::clone(&ca), secret.clone(), |_| ()).await;
        stage.machine("web", port).await;
        stage.machine("other", port).await;
        edges.push(stage);
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let session = edges[0].path("session").display().to_string();
        let request = b"GET / HTTP/1.0\r\nHost: web.mashine.dev\r\n\r\n";
        let first =
            s_client(edges[0].https, "web.mashine.dev", &[version, "-ign_eof", "-sess_out", &session]);
        let first = succeed(first, request).await.text();
        assert!(first.contains("New, TLSv1") && first.contains("HTTP/1.0 200 OK"), "{first}");
        let again = s_client(edges[1].https, "web.mashine.dev", &[version, "-ign_eof", "-sess_in", &session]);
        let again = succeed(again, request).await.text();
        assert!(again.contains("Reused, TLSv1") && again.contains("HTTP/1.0 200 OK"), "{version}: {again}");
        let other = s_client(edges[1].https, "other.mashine.dev", &[version, "-sess_in", &session]);
        let other = finish(other, b"").await.text();
        assert!(!other.contains("Reused,"), "{version}: another name's session: {other}");
    }
    let strangers = EdgeStage::sharing(ca, EntrySecret::random(), |_| ()).await;
    strangers.machine("web", port).await;
    let session = edges[0].path("session").display().to_string();
    let foreign = s_client(strangers.https, "web.mashine.dev", &["-sess_in", &session]);
    assert!(finish(foreign, b"").await.text().contains("New, TLSv1"), "another fleet's secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_nowhere_are_told_so_in_tls_own_words() {
    let stage = EdgeStage::new().await;
    stage.machine("web", serve(app()).await).await;
    for (name, more) in
        [("nobody.mashine.dev", &[][..]), ("web.example", &[]), ("web.mashine.dev", &["-noservername"])]
    {
        let mut refused = s_client(stage.https, name, &[]);
        if !more.is_empty() {
            refused = tool("openssl", "openssl");
            refused.args(["s_client", "-connect", &stage.https.to_string()]).args(more);
        }
        let refused = finish(refused, b"").await;
        assert!(refused.err.contains("unrecognized name"), "{name}: {refused:?}");
    }
    for old in ["-tls1", "-tls1_1"] {
        let refused =
            finish(s_client(stage.https, "web.mashine.dev", &[old, "-cipher", "ALL@SECLEVEL=0"]), b"").await;
        assert_ne!(refused.code, Some(0), "{old}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_is_served_with_its_own_certificate_once_it_is_proved() {
    let stage = EdgeStage::new().await;
    stage.machine("web", serve(app()).await).await;
    let machine =
        format!("{:014x}", "web".bytes().fold(7u64, |n, byte| (n * 31 + u64::from(byte)) & 0xffff_ffff));
    let domain = |verified: Option<u64>| {
        put(
            "domains/shop.example",
            json!({"id": "shop.example", "account": "ann", "machine": machine, "proof": "p", "verified_at": verified, "created_at": 0}),
        )
    };
    stage.publish(vec![domain(None), stage.ca.record(&stage.secret, &["shop.example"])]).await;
    let refused = finish(stage.curl(&["https://shop.example/"]), b"").await;
    assert!(refused.err.contains("unrecognized name"), "{refused:?}");
    stage.publish(vec![domain(Some(1))]).await;
    assert_eq!(succeed(stage.curl(&["https://shop.example/"]), b"").await.text(), "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_sees_its_challenge_by_tls_alpn() {
    let stage = EdgeStage::new().await;
    let digest = "0123456789abcdef".repeat(4);
    stage.publish(vec![put(
        "challenges/01J00000000000000000000001",
        json!({"name": "new.example", "show": {"type": "tls-alpn01", "digest": digest}, "expires_at": u64::MAX}),
    )]).await;
    let seen = finish(s_client(stage.https, "new.example", &["-alpn", "acme-tls/1"]), b"").await.text();
    assert!(seen.contains("ALPN protocol: acme-tls/1"), "{seen}");
    let pem = seen.split_inclusive("-----END CERTIFICATE-----").next().unwrap();
    let pem = &pem[pem.find("-----BEGIN").unwrap()..];
    let mut shown = tool("openssl", "openssl");
    shown.args(["x509", "-noout", "-text"]);
    let shown = succeed(shown, pem.as_bytes()).await.text();
    // RFC 8737 §3: the only name, and id-pe-acmeIdentifier, critical.
    assert!(shown.contains("1.3.6.1.5.5.7.1.31: critical") && shown.contains("DNS:new.example"), "{shown}");
    let other = finish(s_client(stage.https, "other.example", &["-alpn", "acme-tls/1"]), b"").await;
    assert!(other.err.contains("unrecognized name"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_untouched_with_a_header_that_says_who_comes() {
    let stage = EdgeStage::new().await;
    let own = WebCa::new();
    let (chain, key) = own.issue(&["own.mashine.dev"]);
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let machine = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        let mut tls = acceptor.accept(stream).await.unwrap();
        let mut hello = [0; 5];
        tls.read_exact(&mut hello).await.unwrap();
        tls.write_all(b"world").await.unwrap();
        tls.shutdown().await.unwrap();
        String::from_utf8(line).unwrap()
    });
    stage
        .machine_with("own", port, |machine| {
            machine["config"]["services"][0]["ports"] = json!([{"port": 443, "handlers": ["proxy_proto"]}]);
        })
        .await;
    let stream = tokio::net::TcpStream::connect(stage.https).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("own.mashine.dev").unwrap();
    let connector = tokio_rustls::TlsConnector::from(client_config(&own, &[]));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let source = stream.get_ref().0.local_addr().unwrap().port();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"world");
    assert_eq!(machine.await.unwrap(), format!("PROXY TCP4 127.0.0.1 127.0.0.1 {source} 443\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_tls_may_be_any_protocol() {
    let stage = EdgeStage::new().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    stage
        .machine_with("echo", port, |machine| {
            machine["config"]["services"][0]["ports"] =
                json!([{"port": 443, "handlers": ["tls"], "tls_options": {"versions": ["TLSv1.3"]}}]);
        })
        .await;
    let mut stream = stage.tls("echo.mashine.dev", &[]).await;
    let data = crate::common::clients::noise(3_000_000);
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut back = vec![0; data.len()];
    let (sent, received) = tokio::join!(write.write_all(&data), read.read_exact(&mut back));
    sent.unwrap();
    received.unwrap();
    assert!(back == data);
    let old = finish(s_client(stage.https, "echo.mashine.dev", &["-tls1_2"]), b"").await;
    assert!(old.err.contains("protocol version"), "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresqls_clients_ask_for_tls_in_their_own_way() {
    let stage = EdgeStage::new().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    });
    let ports = json!([{"port": 8443, "handlers": ["pg_tls"]}, {"port": 443, "handlers": ["tls", "http"]}]);
    stage.machine_with("db", port, |machine| machine["config"]["services"][0]["ports"] = ports).await;
    let client = s_client(stage.other, "db.mashine.dev", &["-starttls", "postgres"]);
    let told = finish(client, b"startup").await;
    assert!(told.text().contains("Verification") && told.code == Some(0), "{told:?}");
    assert_eq!(heard.await.unwrap(), b"startup");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_agreed_on_by_the_hybrid_where_the_client_has_it_and_by_x25519_where_not() {
    let stage = EdgeStage::new().await;
    stage.machine("web", serve(app()).await).await;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(stage.ca.pem.as_bytes()).unwrap()).unwrap();
    for (offered, agreed) in [
        // As browsers do: both, the hybrid first.
        (vec![X25519MLKEM768, X25519], rustls::NamedGroup::X25519MLKEM768),
        (vec![X25519], rustls::NamedGroup::X25519),
        (vec![SECP256R1], rustls::NamedGroup::secp256r1),
    ] {
        provider.kx_groups = offered;
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider.clone()));
        let mut config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let stream = tokio::net::TcpStream::connect(stage.https).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("web.mashine.dev").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), agreed);
    }
    let request = b"GET / HTTP/1.0\r\nHost: web.mashine.dev\r\n\r\n";
    let classical = s_client(stage.https, "web.mashine.dev", &["-groups", "X25519", "-ign_eof"]);
    let classical = succeed(classical, request).await.text();
    assert!(classical.contains("Server Temp Key: X25519") && classical.contains("200 OK"), "{classical}");
}
