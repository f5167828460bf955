//! A fleet that is not there: the API's paths that the commands use, over real TLS with a real fleet CA, on loopback.
//!
//! Its machines go one step towards what was asked at each look, so that waiting and progress have something to see.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use mashines_fleet::api::{self, DrainOutcome};
use mashines_fleet::id::{Epoch, MachineId, MigrationId, VolumeId};
use mashines_fleet::pki::{Ca, ClientCertificates, PeerName};
use mashines_fleet::record::{Capacity, MachineState, MigrationStep};
use mashines_fleet::rpc::{self, Limits};
use serde_json::{Value, json};

pub const TOKEN: &str = "fleet-token-of-the-tests";

type Refusal = (StatusCode, Json<api::ErrorBody>);
type Outcome<T> = Result<Json<T>, Refusal>;

#[derive(Default)]
pub struct Inner {
    pub machines: Vec<api::Machine>,
    pub volumes: Vec<api::Volume>,
    pub migrations: Vec<api::Migration>,
    pub hosts: Vec<api::Host>,
    pub drain: Option<api::Drain>,
    pub console: String,
    /// Bodies of POSTs, by path, as they came.
    pub asked: Vec<(String, Value)>,
    /// Answers to what has no handler of its own, by `METHOD /path`; such calls are noted in `asked` as `METHOD /path`, and
    /// `METHOD /path for ACCOUNT` when they are for another account.
    pub canned: std::collections::BTreeMap<String, Value>,
    /// How the next migration ends.
    pub migration_ends: Option<(MigrationStep, String)>,
    /// What the agent was last told to begin, and how that ends.
    pub ordered: Value,
    pub operation_fails: Option<String>,
    /// Machines that start end here instead.
    pub boot_ends: Option<(MachineState, String)>,
}

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Inner>>);

/// A running one.
pub struct Fleet {
    pub fake: Fake,
    pub url: String,
    pub ca: Ca,
    pub directory: tempfile::TempDir,
}

impl Fake {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

impl Fleet {
    pub async fn start() -> Self {
        let ca = Ca::create("test").unwrap();
        let identity = ca.issue(&PeerName::control(), &[]).unwrap();
        let fake = Fake::default();
        fake.lock().hosts = vec![host("a"), host("b")];
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = identity.server_config(ClientCertificates::Optional).unwrap();
        let app = router(fake.clone());
        tokio::spawn(rpc::serve(listener, app, tls, Limits::default(), std::future::pending()));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.certificate_pem()).unwrap();
        Self { fake, url, ca, directory }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    /// A client as the lobby would bring one, but with the person's token.
    pub fn client(&self) -> mashines_cli::Client {
        let settings = mashines_cli::settings::Settings {
            api: self.url.clone(),
            token: TOKEN.to_owned(),
            ca: self.ca.certificate_pem().to_owned(),
        };
        mashines_cli::https::client(&settings).unwrap()
    }

    /// Runs a line as in the lobby; exit code, standard output, standard error.
    pub async fn lobby(&self, line: &str) -> (u8, String, String) {
        self.run(line, false).await
    }

    /// The same with a terminal on standard error.
    pub async fn terminal(&self, line: &str) -> (u8, String, String) {
        self.run(line, true).await
    }

    async fn run(&self, line: &str, terminal: bool) -> (u8, String, String) {
        let (out, err) = (Pen::default(), Pen::default());
        let (stdout, stderr) = (Box::new(out.clone()), Box::new(err.clone()));
        let mut session = mashines_cli::Session::lobby(self.client(), "mashine.test", stdout, stderr);
        session.terminal = terminal;
        let words = mashines_cli::words::split(line).unwrap();
        let code = mashines_cli::run(words, &mut session).await;
        (code, out.text(), err.text())
    }
}

/// A writer whose text can be read.
#[derive(Clone, Default)]
pub struct Pen(Arc<Mutex<Vec<u8>>>);

impl Pen {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl tokio::io::AsyncWrite for Pen {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

pub fn host(id: &str) -> api::Host {
    api::Host {
        id: id.parse().unwrap(),
        roles: vec![mashines_fleet::record::HostRole::Host],
        region: "lab".to_owned(),
        capacity: Capacity { vcpus: 8, memory_mib: 4096, disk_mib: 20480 },
        used: Capacity { vcpus: 2, memory_mib: 512, disk_mib: 1024 },
        images: Vec::new(),
        cordoned: false,
        alive: true,
        seen_at: 0,
        underlay: "10.0.0.1".parse().unwrap(),
        machines: Vec::new(),
    }
}

pub fn machine(slug: &str, state: MachineState) -> api::Machine {
    let config = json!({"image": "container-os", "guest": {"cpus": 2, "memory_mb": 512}});
    let number = u16::try_from(slug.bytes().map(u32::from).sum::<u32>()).unwrap();
    api::Machine {
        id: format!("{number:014x}").parse().unwrap(),
        name: slug.parse().unwrap(),
        slug: slug.parse().unwrap(),
        app: "default".parse().unwrap(),
        account: "alice".parse().unwrap(),
        state,
        reason: None,
        region: "lab".to_owned(),
        host: (state != MachineState::Created).then(|| "a".parse().unwrap()),
        epoch: Epoch(u64::from(state != MachineState::Created)),
        instance_id: "01JD3V8Z5M0Q4X9T7R2N6B1K8C".to_owned(),
        image_ref: api::ImageRef {
            repository: "container-os".parse().unwrap(),
            digest: format!("sha256:{}", "ab".repeat(32)),
        },
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number),
        private_ip: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number),
        fqdn: format!("{slug}.mashine.test"),
        entry_ipv4: None,
        ssh: Some(api::SshDoor {
            ipv4_host: "entry1.mashine.test".to_owned(),
            ipv4: vec!["192.0.2.1".parse().unwrap()],
            port: 2201,
        }),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
        updated_at: "2026-01-01T00:00:00Z".to_owned(),
        config: serde_json::from_value(config).unwrap(),
        events: Vec::new(),
        checks: Vec::new(),
        migration: None,
        shared: None,
    }
}

fn router(fake: Fake) -> Router {
    const M: &str = "/v1/apps/{app}/machines";
    let at = |rest: &str| format!("{M}/{{id}}{rest}");
    Router::new()
        .route("/v1/account", get(account))
        .route("/v1/machines", get(machines))
        .route("/v1/machines/{id}", get(one_machine))
        .route("/v1/volumes", get(volumes))
        .route("/v1/migrations", get(migrations))
        .route("/v1/migrations/{id}", get(one_migration))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{id}/cordon", post(cordon))
        .route("/v1/hosts/{id}/drain", post(drain).get(look_at_drain))
        .route(M, post(launch))
        .route(&at(""), delete(remove))
        .route(&at("/start"), post(start))
        .route(&at("/stop"), post(stop))
        .route(&at("/restart"), post(start))
        .route(&at("/exec"), post(exec))
        .route(&at("/logs"), get(logs))
        .route(&at("/migrate"), post(migrate))
        .route("/v1/apps/{app}/volumes", post(make_volume))
        .route("/v1/apps/{app}/volumes/{id}", delete(remove_volume))
        .fallback(canned)
        .layer(axum::middleware::from_fn(only_with_the_token))
        .with_state(fake)
}

async fn only_with_the_token(
    headers: HeaderMap,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    use axum::response::IntoResponse as _;
    let expected = format!("Bearer {TOKEN}");
    match headers.get("authorization").and_then(|v| v.to_str().ok()) == Some(&expected) {
        true => next.run(request).await,
        false => refuse(StatusCode::UNAUTHORIZED, "this token is not known").into_response(),
    }
}

async fn canned(
    State(fake): State<Fake>,
    method: axum::http::Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Outcome<Value> {
    let mut inner = fake.lock();
    let call = format!("{method} {uri}");
    let account =
        headers.get(api::ACT_FOR_HEADER).map(|account| format!(" for {}", account.to_str().unwrap()));
    let noted = format!("{call}{}", account.unwrap_or_default());
    inner.asked.push((noted, serde_json::from_slice(&body).unwrap_or_default()));
    match inner.canned.get(&call) {
        Some(Value::String(refusal)) => Err(refuse(StatusCode::FORBIDDEN, refusal)),
        Some(answer) => Ok(Json(answer.clone())),
        None => Err(refuse(StatusCode::NOT_FOUND, &format!("nothing is canned for {call}"))),
    }
}

fn refuse(status: StatusCode, error: &str) -> Refusal {
    (status, Json(api::ErrorBody { error: error.to_owned(), status: None }))
}

async fn account() -> Json<api::Account> {
    Json(api::Account {
        id: "alice".parse().unwrap(),
        ssh_keys: Vec::new(),
        admin: true,
        domain: "mashine.test".to_owned(),
        ssh_ca: Some("ssh-ed25519 AAAAC3Nza test".to_owned()),
    })
}

async fn machines(State(fake): State<Fake>) -> Json<Vec<api::Machine>> {
    Json(fake.lock().machines.clone())
}

/// Each look at a machine brings it a step further.
async fn one_machine(State(fake): State<Fake>, Path(id): Path<String>) -> Outcome<api::Machine> {
    let mut inner = fake.lock();
    let boot_ends = inner.boot_ends.clone();
    let found = inner.machines.iter().position(|m| m.slug.as_str() == id || m.id.as_str() == id);
    let at = found.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such machine"))?;
    let machine = &mut inner.machines[at];
    let before = machine.clone();
    match (machine.state, boot_ends) {
        (MachineState::Created, _) => {
            machine.state = MachineState::Starting;
            machine.host = Some("a".parse().unwrap());
            machine.epoch = machine.epoch.next();
        }
        (MachineState::Starting, Some((state, why))) => (machine.state, machine.reason) = (state, Some(why)),
        (MachineState::Starting, None) => machine.state = MachineState::Started,
        (MachineState::Stopping, _) => machine.state = MachineState::Stopped,
        (MachineState::Destroying, _) => drop(inner.machines.remove(at)),
        _ => {}
    }
    Ok(Json(before))
}

async fn launch(State(fake): State<Fake>, Json(body): Json<Value>) -> Outcome<api::Machine> {
    let mut inner = fake.lock();
    inner.asked.push(("launch".to_owned(), body.clone()));
    let asked: api::CreateMachine = serde_json::from_value(body).unwrap();
    if asked.config.image != "container-os" {
        let error = "no image `nothing`; the fleet has: container-os";
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, error));
    }
    let made = machine(asked.name.as_deref().unwrap_or("made-up"), MachineState::Created);
    inner.machines.push(made.clone());
    Ok(Json(made))
}

fn change(fake: &Fake, id: &str, what: impl FnOnce(&mut api::Machine)) -> Outcome<api::Done> {
    let mut inner = fake.lock();
    let machine = inner.machines.iter_mut().find(|m| m.id.as_str() == id);
    what(machine.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such machine"))?);
    Ok(Json(api::Done { ok: true }))
}

async fn start(State(fake): State<Fake>, Path((_, id)): Path<(String, String)>) -> Outcome<api::Done> {
    change(&fake, &id, |m| m.state = MachineState::Created)
}

async fn stop(
    State(fake): State<Fake>,
    Path((_, id)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Outcome<api::Done> {
    fake.lock().asked.push(("stop".to_owned(), body));
    change(&fake, &id, |m| m.state = MachineState::Stopping)
}

async fn remove(State(fake): State<Fake>, Path((_, id)): Path<(String, String)>) -> Outcome<api::Done> {
    change(&fake, &id, |m| m.state = MachineState::Destroying)
}

async fn exec(State(fake): State<Fake>, Json(body): Json<api::Exec>) -> Outcome<api::ExecAnswer> {
    fake.lock().asked.push(("exec".to_owned(), serde_json::to_value(&body).unwrap()));
    let words: Vec<&str> = body.command.iter().map(String::as_str).collect();
    if let Some(("/run/mashines/agent", words)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        return Ok(Json(agent(&fake, words, body.stdin.as_deref())));
    }
    match body.command.first().map(String::as_str) {
        Some("false") => Ok(Json(api::ExecAnswer { exit_code: 7, ..Default::default() })),
        Some("echo") => Ok(Json(api::ExecAnswer {
            stdout: format!("{}\n", body.command[1..].join(" ")),
            stderr: "to err\n".to_owned(),
            ..Default::default()
        })),
        _ => Err(refuse(StatusCode::CONFLICT, "machine `web` is stopped; start it with: mashines start web")),
    }
}

/// The agent of a machine with one release, whose operations take three looks.
fn agent(fake: &Fake, words: &[&str], stdin: Option<&str>) -> api::ExecAnswer {
    let mut inner = fake.lock();
    let release = json!({"version": 2, "commit": "0123456789abcdef", "subject": "say hello", "by": "alice",
        "at_ms": 1000, "kind": "procfile", "state": "live"});
    let answer = match words {
        ["deploy", "releases", "--json"] => json!({"releases": [release], "port": 80}),
        ["deploy", "config", "--json"] => json!({"env": {"GREETING": "hello you"}}),
        ["deploy", "begin"] => {
            inner.ordered = serde_json::from_str(stdin.unwrap()).unwrap();
            json!({"operation": "17-4"})
        }
        ["deploy", "follow", "17-4", "0"] => json!({"text": "-----> Building\n", "offset": 16}),
        ["deploy", "follow", "17-4", "16"] => json!({"text": "       made\n", "offset": 28}),
        ["deploy", "follow", "17-4", "28"] => match inner.operation_fails.clone() {
            Some(error) => json!({"text": "", "offset": 28, "ended": {"error": error}}),
            None => json!({"text": "", "offset": 28, "ended": {"live": 2}}),
        },
        _ => {
            let stderr = format!("an older agent does not know {words:?}");
            return api::ExecAnswer { exit_code: 2, stderr, ..Default::default() };
        }
    };
    api::ExecAnswer { stdout: format!("{answer}\n"), ..Default::default() }
}

async fn logs(State(fake): State<Fake>) -> Json<api::Logs> {
    Json(api::Logs { text: fake.lock().console.clone() })
}

async fn migrate(
    State(fake): State<Fake>,
    Path((_, id)): Path<(String, String)>,
    Json(body): Json<api::Migrate>,
) -> Outcome<api::Migration> {
    let mut inner = fake.lock();
    if body.host.as_deref().is_some_and(|h| inner.hosts.iter().all(|known| known.id.as_str() != h)) {
        return Err(refuse(StatusCode::NOT_FOUND, "no such host"));
    }
    let migration = api::Migration {
        id: MigrationId::generate(),
        machine: id.parse().unwrap(),
        slug: inner.machines.iter().find(|m| m.id.as_str() == id).unwrap().slug.to_string(),
        source: "a".parse().unwrap(),
        destination: "b".parse().unwrap(),
        epoch: Epoch(1),
        step: MigrationStep::Reserved,
        done: false,
        phase: None,
        error: None,
        figures: None,
        requested_by: "alice".to_owned(),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
        updated_at: "2026-01-01T00:00:00Z".to_owned(),
    };
    inner.migrations.push(migration.clone());
    Ok(Json(migration))
}

async fn one_migration(State(fake): State<Fake>, Path(id): Path<String>) -> Outcome<api::Migration> {
    let mut inner = fake.lock();
    let end = inner.migration_ends.clone().unwrap_or((MigrationStep::Completed, String::new()));
    let found = inner.migrations.iter_mut().find(|m| m.id.as_str() == id);
    let migration = found.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such migration"))?;
    match migration.step {
        MigrationStep::Reserved => {
            migration.step = MigrationStep::Moving;
            migration.phase = Some("pre-copy".to_owned());
            migration.figures = Some(json!({"ram_bytes": 1 << 20, "rounds": 1}));
        }
        MigrationStep::Moving => {
            migration.step = end.0;
            migration.done = true;
            migration.error = (!end.1.is_empty()).then_some(end.1);
            migration.figures = Some(json!({
                "total_us": 2_500_000, "blackout_us": 31_400, "ram_bytes": 5 << 20, "disk_bytes": 3 << 10,
                "zero_pages": 9, "rounds": 3, "last_pages": 12, "frames": 4, "throttle_percent": 0,
                "spans": [["pause", 400], ["last pages", 12_000]], "a field of tomorrow": true,
            }));
        }
        _ => {}
    }
    Ok(Json(migration.clone()))
}

async fn migrations(
    State(fake): State<Fake>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
) -> Json<Vec<api::Migration>> {
    let wanted = query.get("machine");
    let fits = |m: &&api::Migration| wanted.is_none_or(|id| m.machine.as_str() == id);
    Json(fake.lock().migrations.iter().filter(fits).cloned().collect())
}

async fn hosts(State(fake): State<Fake>) -> Json<Vec<api::Host>> {
    Json(fake.lock().hosts.clone())
}

async fn cordon(State(fake): State<Fake>, Path(id): Path<String>) -> Json<api::Host> {
    let mut inner = fake.lock();
    let host = inner.hosts.iter_mut().find(|h| h.id.as_str() == id).unwrap();
    host.cordoned = true;
    Json(host.clone())
}

async fn drain(State(fake): State<Fake>, Path(id): Path<String>) -> Json<api::Drain> {
    let mut inner = fake.lock();
    let machines = inner.machines.iter().map(|m| api::DrainedMachine {
        machine: m.id.clone(),
        slug: m.slug.to_string(),
        outcome: DrainOutcome::Moving,
        migration: None,
        message: String::new(),
    });
    let drain = api::Drain { host: id.parse().unwrap(), done: false, machines: machines.collect() };
    inner.drain = Some(drain.clone());
    Json(drain)
}

/// The first machine moves, the others cannot.
async fn look_at_drain(State(fake): State<Fake>) -> Json<api::Drain> {
    let mut inner = fake.lock();
    let drain = inner.drain.as_mut().unwrap();
    drain.done = true;
    for (at, machine) in drain.machines.iter_mut().enumerate() {
        (machine.outcome, machine.message) = match at {
            0 => (DrainOutcome::Moved, "to b".to_owned()),
            _ => (DrainOutcome::Failed, "b has no room".to_owned()),
        };
    }
    Json(drain.clone())
}

async fn volumes(State(fake): State<Fake>) -> Json<Vec<api::Volume>> {
    Json(fake.lock().volumes.clone())
}

async fn make_volume(
    State(fake): State<Fake>,
    Path(app): Path<String>,
    Json(body): Json<api::CreateVolume>,
) -> Json<api::Volume> {
    let volume = volume(&body.name, body.size_mib.unwrap(), &app, None);
    fake.lock().volumes.push(volume.clone());
    Json(volume)
}

async fn remove_volume(State(fake): State<Fake>, Path((_, id)): Path<(String, String)>) -> Outcome<Value> {
    let mut inner = fake.lock();
    if inner.volumes.iter().any(|v| v.id.as_str() == id && v.attached_machine_id.is_some()) {
        return Err(refuse(StatusCode::CONFLICT, "volume `data` is attached to `web`; remove that first"));
    }
    inner.volumes.retain(|v| v.id.as_str() != id);
    Ok(Json(json!({})))
}

pub fn volume(name: &str, size_mib: u64, app: &str, machine: Option<MachineId>) -> api::Volume {
    api::Volume {
        id: VolumeId::random(),
        name: name.to_owned(),
        app: app.parse().unwrap(),
        state: if machine.is_some() { "attached" } else { "created" }.to_owned(),
        size_gb: size_mib.div_ceil(1024),
        size_mib,
        region: "lab".to_owned(),
        host: None,
        attached_machine_id: machine,
        created_at: "2026-01-01T00:00:00Z".to_owned(),
    }
}
