//! A CA in the test, with what Debian's pebble lacks: windows (RFC 9773) and profiles, and every kind of bad day. It looks at no
//! signature and no challenge; that is pebble's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mashines_acme::config;
use mashines_fleet::rpc::{Limits, serve};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    PublicKeyData as _,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::LOCAL;
use super::pebble::server_certificate;

/// What it does to new orders.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Mood {
    #[default]
    Good,
    /// 429 with `Retry-After`, of the names or of all.
    Limits { seconds: u64, all: bool },
    /// It takes its time.
    Slow(Duration),
    /// A problem document.
    Refuses { kind: &'static str },
    /// No JSON.
    Broken,
    /// Challenges are invalid.
    Blind,
    /// Challenges stay pending for ever.
    Stalls,
}

#[derive(Default)]
pub struct Inner {
    pub mood: Mood,
    /// The window of every certificate, Unix seconds.
    pub window: Option<(u64, u64)>,
    pub orders: Vec<Value>,
    pub accounts: Vec<Value>,
    /// The keys that accounts were made with.
    keys: Vec<Value>,
    pub windows_asked: usize,
    pub calls: usize,
    /// The next order is refused: it knows no such account.
    pub forget_account: bool,
    chains: BTreeMap<usize, String>,
    statuses: BTreeMap<usize, &'static str>,
    names: BTreeMap<usize, Vec<String>>,
}

#[derive(Clone)]
pub struct TestCa {
    inner: Arc<Mutex<Inner>>,
    port: u16,
    key: Arc<(String, String)>,
    directory: Arc<tempfile::TempDir>,
}

impl TestCa {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ca, chain, key) = server_certificate();
        std::fs::write(directory.path().join("ca.pem"), ca).unwrap();
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let signing = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&signing).unwrap();
        let issuer = Self {
            inner: Arc::default(),
            port: listener.local_addr().unwrap().port(),
            key: Arc::new((root.pem(), signing.serialize_pem())),
            directory: Arc::new(directory),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let app = router(issuer.clone());
        tokio::spawn(serve(listener, app, tls, Limits::default(), std::future::pending()));
        issuer
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn mood(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    pub fn issuer(&self, name: &str) -> config::Issuer {
        config::Issuer {
            name: name.parse().unwrap(),
            directory: self.url("directory"),
            contact: vec![],
            profile: None,
            eab: None,
            ca_file: Some(self.directory.path().join("ca.pem")),
        }
    }

    pub fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn url(&self, path: &str) -> String {
        format!("https://{LOCAL}:{}/{path}", self.port)
    }

    fn order(&self, n: usize) -> Value {
        let inner = self.lock();
        let asked = inner.orders.get(n).cloned().unwrap_or_default();
        let count = asked["identifiers"].as_array().map_or(0, Vec::len);
        let authorizations: Vec<_> = (0..count).map(|i| self.url(&format!("authz/{n}/{i}"))).collect();
        let mut order = json!({
            "status": inner.statuses.get(&n).copied().unwrap_or("pending"),
            "identifiers": asked["identifiers"], "authorizations": authorizations,
            "finalize": self.url(&format!("finalize/{n}")),
        });
        for key in ["profile", "replaces"] {
            if asked.get(key).is_some() {
                order[key] = asked[key].clone();
            }
        }
        if inner.chains.contains_key(&n) {
            order["certificate"] = json!(self.url(&format!("certificate/{n}")));
        }
        order
    }

    fn answer(&self, status: StatusCode, location: Option<String>, body: impl IntoResponse) -> Response {
        let mut response = (status, body).into_response();
        let nonce = rand::random::<u64>().to_string().parse().unwrap();
        response.headers_mut().insert("replay-nonce", nonce);
        if let Some(location) = location {
            response.headers_mut().insert("location", location.parse().unwrap());
        }
        response
    }

    fn sign(&self, csr: &[u8]) -> String {
        let mut request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec()))
                .unwrap();
        request.params.use_authority_key_identifier_extension = true;
        let now = super::now() / 1000;
        let at = |seconds: u64| (std::time::UNIX_EPOCH + Duration::from_secs(seconds)).into();
        request.params.not_before = at(now - 60);
        request.params.not_after = at(now + 90 * 24 * 3600);
        request.params.serial_number = Some(rcgen::SerialNumber::from(rand::random::<u64>() >> 1));
        assert!(!request.public_key.der_bytes().is_empty());
        let (root, key) = &*self.key;
        let issuer = Issuer::from_ca_cert_pem(root, KeyPair::from_pem(key).unwrap()).unwrap();
        format!("{}{root}", request.signed_by(&issuer).unwrap().pem())
    }
}

fn payload(body: &Bytes) -> Value {
    part(body, "payload")
}

fn protected(body: &Bytes) -> Value {
    part(body, "protected")
}

fn part(body: &Bytes, name: &str) -> Value {
    let jws: Value = serde_json::from_slice(body).unwrap();
    let part = URL_SAFE_NO_PAD.decode(jws[name].as_str().unwrap()).unwrap();
    serde_json::from_slice(&part).unwrap_or(Value::Null)
}

fn problem(status: u16, kind: &str, detail: &str) -> Response {
    let body =
        json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status});
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn router(ca: TestCa) -> Router {
    Router::new()
        .route("/directory", get(directory))
        .route("/nonce", any(|State(ca): State<TestCa>| async move { ca.answer(StatusCode::OK, None, ()) }))
        .route("/account", post(account))
        .route("/order", post(order))
        .route(
            "/order/{n}",
            post(|State(ca): State<TestCa>, Path(n): Path<usize>| async move {
                let order = ca.order(n);
                ca.answer(StatusCode::OK, None, Json(order))
            }),
        )
        .route("/authz/{n}/{i}", post(authorization))
        .route("/challenge/{n}/{i}", post(challenge))
        .route("/finalize/{n}", post(finalize))
        .route(
            "/certificate/{n}",
            post(|State(ca): State<TestCa>, Path(n): Path<usize>| async move {
                let chain = ca.lock().chains[&n].clone();
                ca.answer(StatusCode::OK, None, chain)
            }),
        )
        .route("/renewal/{id}", get(renewal))
        .with_state(ca)
}

async fn directory(State(ca): State<TestCa>) -> Json<Value> {
    ca.lock().calls += 1;
    let mut directory = json!({
        "newNonce": ca.url("nonce"), "newAccount": ca.url("account"), "newOrder": ca.url("order"),
        // Without `keyChange`: it knows no new keys for accounts.
        "revokeCert": ca.url("revoke"),
        "meta": {"profiles": {"classic": "", "short": ""}},
    });
    if ca.lock().window.is_some() {
        directory["renewalInfo"] = json!(ca.url("renewal"));
    }
    Json(directory)
}

async fn account(State(ca): State<TestCa>, body: Bytes) -> Response {
    let asked = payload(&body);
    let key = protected(&body)["jwk"].clone();
    if asked["onlyReturnExisting"] == true && !ca.lock().keys.contains(&key) {
        return problem(400, "accountDoesNotExist", "no account has that key");
    }
    ca.lock().keys.push(key);
    ca.lock().accounts.push(asked);
    ca.answer(StatusCode::CREATED, Some(ca.url("account/1")), Json(json!({"status": "valid"})))
}

async fn order(State(ca): State<TestCa>, body: Bytes) -> Response {
    if std::mem::take(&mut ca.lock().forget_account) {
        return problem(400, "accountDoesNotExist", "who are you?");
    }
    let mood = ca.lock().mood.clone();
    match mood {
        Mood::Good | Mood::Blind | Mood::Stalls => {}
        Mood::Limits { seconds, all } => {
            ca.lock().calls += 1;
            let mut response = match all {
                true => problem(503, "serverInternal", "busy; retry later"),
                false => problem(429, "rateLimited", "too many certificates for these names"),
            };
            response.headers_mut().insert("retry-after", seconds.to_string().parse().unwrap());
            return response;
        }
        Mood::Slow(time) => tokio::time::sleep(time).await,
        Mood::Refuses { kind } => return problem(403, kind, "we do not want to"),
        Mood::Broken => return (StatusCode::BAD_GATEWAY, "<html>oops</html>").into_response(),
    }
    let asked = payload(&body);
    let n = {
        let mut inner = ca.lock();
        let names =
            asked["identifiers"].as_array().unwrap().iter().map(|i| i["value"].as_str().unwrap().to_owned());
        let n = inner.orders.len();
        inner.names.insert(n, names.collect());
        inner.orders.push(asked);
        n
    };
    let order = ca.order(n);
    ca.answer(StatusCode::CREATED, Some(ca.url(&format!("order/{n}"))), Json(order))
}

async fn authorization(State(ca): State<TestCa>, Path((n, i)): Path<(usize, usize)>) -> Response {
    let (name, status) = {
        let inner = ca.lock();
        (inner.names[&n][i].clone(), inner.statuses.get(&n).copied().unwrap_or("pending"))
    };
    let status = if status == "ready" { "valid" } else { status };
    let base = name.strip_prefix("*.").unwrap_or(&name);
    let challenge = |kind: &str| {
        let mut one = json!({"type": kind, "url": ca.url(&format!("challenge/{n}/{i}")), "token": format!("token{n}x{i}"), "status": status});
        if status == "invalid" {
            one["error"] =
                json!({"type": "urn:ietf:params:acme:error:unauthorized", "detail": "saw something else"});
        }
        one
    };
    let kinds: &[&str] = if name == base { &["dns-01", "http-01", "tls-alpn-01"] } else { &["dns-01"] };
    let body = json!({
        "identifier": {"type": "dns", "value": base}, "status": status, "wildcard": name != base,
        "challenges": kinds.iter().map(|kind| challenge(kind)).collect::<Vec<_>>(),
    });
    ca.answer(StatusCode::OK, None, Json(body))
}

async fn challenge(State(ca): State<TestCa>, Path((n, i)): Path<(usize, usize)>) -> Response {
    {
        let mut inner = ca.lock();
        match inner.mood {
            Mood::Stalls => {}
            Mood::Blind => drop(inner.statuses.insert(n, "invalid")),
            // The last one makes the order ready.
            _ if i + 1 == inner.names[&n].len() => drop(inner.statuses.insert(n, "ready")),
            _ => {}
        }
    }
    let body = json!({"type": "dns-01", "url": ca.url(&format!("challenge/{n}/{i}")), "token": "t", "status": "processing"});
    ca.answer(StatusCode::OK, None, Json(body))
}

async fn finalize(State(ca): State<TestCa>, Path(n): Path<usize>, body: Bytes) -> Response {
    let csr = URL_SAFE_NO_PAD.decode(payload(&body)["csr"].as_str().unwrap()).unwrap();
    let chain = ca.sign(&csr);
    {
        let mut inner = ca.lock();
        inner.chains.insert(n, chain);
        inner.statuses.insert(n, "valid");
    }
    let order = ca.order(n);
    ca.answer(StatusCode::OK, None, Json(order))
}

async fn renewal(State(ca): State<TestCa>, Path(id): Path<String>, _: HeaderMap) -> Response {
    assert_eq!(id.split('.').count(), 2, "RFC 9773 §4.1: {id}");
    let window = {
        let mut inner = ca.lock();
        inner.windows_asked += 1;
        inner.window
    };
    let Some((start, end)) = window else { return StatusCode::NOT_FOUND.into_response() };
    let date =
        |seconds: u64| jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap().to_string();
    let body = json!({"suggestedWindow": {"start": date(start), "end": date(end)}});
    ([("retry-after", "3600")], Json(body)).into_response()
}
