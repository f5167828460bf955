//! A host daemon without machines: it keeps its side of `host_api` in memory, reports to control, and fails as it is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use mashines_fleet::host_api::*;
use mashines_fleet::id::{Epoch, HostId, MachineId, MigrationId};
use mashines_fleet::pki::{ClientCertificates, Identity};
use mashines_fleet::record::{Capacity, Host, HostRole, Image};
use mashines_fleet::rpc::{Client, Limits, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Every fake host's memory: the wire between monitors.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<HashMap<HostId, Memory>>>);

pub type Memory = Arc<Mutex<Inside>>;

#[derive(Default)]
pub struct Inside {
    pub machines: BTreeMap<MachineId, LocalMachine>,
    pub migrations: BTreeMap<MigrationId, LocalMigration>,
    pub epochs: BTreeMap<MigrationId, Epoch>,
    pub fence: BTreeMap<MachineId, Epoch>,
    faults: Vec<(&'static str, Fault)>,
    /// Monitors stop before this point of a move, until it is cleared.
    pub stall: Option<Stall>,
    /// Every call that came in.
    pub calls: Vec<String>,
    pub silent: bool,
    /// Boots are refused.
    pub boots_badly: bool,
    /// Where machines' files are.
    pub disks: Option<tempfile::TempDir>,
}

impl Inside {
    /// The machine's directory of certificates.
    pub fn certificates(&mut self, machine: &MachineId) -> std::path::PathBuf {
        let disks = self.disks.get_or_insert_with(|| tempfile::tempdir().unwrap());
        disks.path().join(machine.as_str())
    }

    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    PreCopy,
    BeforeHandOver,
    AfterHandOver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It answers 500 and does nothing.
    Refuse,
    /// It does it, and the answer is lost.
    LoseAnswer,
}

pub struct FakeHost {
    pub id: HostId,
    pub memory: Memory,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone)]
struct App {
    memory: Memory,
    registry: Registry,
    id: HostId,
    address: std::net::SocketAddr,
}

type Answer = Result<Json<Value>, Refused>;

struct Refused(StatusCode, &'static str);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

fn refused(status: StatusCode, error: &'static str) -> Refused {
    Refused(status, error)
}

impl App {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.memory.lock().unwrap()
    }

    /// Does one call, with the fault that waits for it.
    async fn call(
        &self,
        what: &'static str,
        on: &str,
        act: impl FnOnce(&mut Inside) -> Result<Value, Refused>,
    ) -> Answer {
        let (fault, silent) = {
            let mut inside = self.inside();
            inside.calls.push(format!("{what} {on}"));
            let at = inside.faults.iter().position(|(call, _)| *call == what);
            (at.map(|at| inside.faults.remove(at).1), inside.silent)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        if fault == Some(Fault::Refuse) {
            return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, "told to fail"));
        }
        let answer = act(&mut self.inside());
        if fault == Some(Fault::LoseAnswer) {
            // An answer that is not understood is as good as none, and quicker than a time-out.
            return Err(refused(StatusCode::OK, "{torn"));
        }
        answer.map(Json)
    }
}

impl FakeHost {
    pub async fn start(identity: Identity, control: &str, roles: Vec<HostRole>, registry: Registry) -> Self {
        let id = identity.host().unwrap();
        let memory = Memory::default();
        registry.0.lock().unwrap().insert(id.clone(), Arc::clone(&memory));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = App { memory: Arc::clone(&memory), registry, id: id.clone(), address };
        let tls = identity.server_config(ClientCertificates::Required).unwrap();
        let served = tokio::spawn(async move {
            serve(listener, router(app), tls, Limits::default(), std::future::pending()).await.unwrap();
        });
        let record = record(&id, address, roles);
        let client = Client::to_control(&identity, control).unwrap().with_timeout(Duration::from_secs(2));
        send_report(&client, &record, &memory).await.unwrap();
        let heard = Arc::clone(&memory);
        let reports = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(60)).await;
                if !heard.lock().unwrap().silent {
                    let _unheard = send_report(&client, &record, &heard).await;
                }
            }
        });
        Self { id, memory, tasks: vec![served, reports] }
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.memory.lock().unwrap()
    }

    pub fn fault(&self, call: &'static str, fault: Fault) {
        self.inside().faults.push((call, fault));
    }

    /// How the machine stands here.
    pub fn state(&self, machine: &MachineId) -> Option<(Epoch, LocalState)> {
        self.inside().machines.get(machine).map(|local| (local.epoch, local.state))
    }

    pub fn runs(&self, machine: &MachineId) -> bool {
        self.state(machine)
            .is_some_and(|(_, state)| matches!(state, LocalState::Ready | LocalState::Starting))
    }

    /// Its monitor dies.
    pub fn crash(&self, machine: &MachineId) {
        if let Some(local) = self.inside().machines.get_mut(machine) {
            local.state = LocalState::Crashed;
            local.reason = Some("the monitor was killed".to_owned());
        }
    }
}

async fn send_report(
    client: &Client,
    record: &Host,
    memory: &Memory,
) -> Result<Value, mashines_fleet::rpc::RpcError> {
    let of_host = record.roles.contains(&HostRole::Host);
    let state = of_host.then(|| state_of(&record.id, &memory.lock().unwrap()));
    let report = Report { host: record.clone(), state };
    client.post(&format!("/internal/v1/hosts/{}/report", record.id), &report).await
}

fn capacity() -> Capacity {
    Capacity { vcpus: 8, memory_mib: 4096, disk_mib: 65536 }
}

fn images() -> Vec<Image> {
    vec![Image {
        name: "container-os".parse().unwrap(),
        digest: "sha256:01".to_owned(),
        rootfs_bytes: 1 << 30,
    }]
}

fn state_of(id: &HostId, inside: &Inside) -> HostState {
    HostState {
        host: id.clone(),
        capacity: capacity(),
        images: images(),
        machines: inside.machines.values().cloned().collect(),
        migrations: inside.migrations.values().cloned().collect(),
        volumes: vec![],
    }
}

fn record(id: &HostId, api: std::net::SocketAddr, roles: Vec<HostRole>) -> Host {
    let entry = roles.contains(&HostRole::Entry);
    Host {
        id: id.clone(),
        roles,
        region: "here".to_owned(),
        api,
        underlay: "127.0.0.1".parse().unwrap(),
        wireguard_port: 0,
        wireguard_key: None,
        mesh: "fd6d::1".parse().unwrap(),
        capacity: capacity(),
        images: if entry { vec![] } else { images() },
        cordoned: false,
        seen_at: 0,
        public_ipv4: if entry { vec!["192.0.2.1".parse().unwrap()] } else { vec![] },
        public_ipv6: vec![],
    }
}

fn router(app: App) -> Router {
    Router::new()
        .route(
            "/v1/state",
            get(|State(app): State<App>| async move {
                app.call("state", "", |inside| Ok(json!(state_of(&app.id, inside)))).await
            }),
        )
        .route("/v1/machines/{id}", put(run).delete(remove))
        .route("/v1/machines/{id}/stop", post(stop))
        .route("/v1/machines/{id}/exec", post(exec))
        .route("/v1/machines/{id}/console", get(|| async { Json(json!({"text": "login:"})) }))
        .route("/v1/volumes/{id}", delete(|| async { Json(json!({})) }))
        .route("/v1/migrations/{id}", get(migration))
        .route("/v1/migrations/{id}/incoming", put(incoming))
        .route("/v1/migrations/{id}/outgoing", put(outgoing))
        .route("/v1/migrations/{id}/cancel", post(cancel))
        .route("/v1/migrations/{id}/resolve", post(resolve))
        .route("/v1/migrations/{id}/finish", post(finish))
        .with_state(app)
}

fn local(id: &MachineId, epoch: Epoch, state: LocalState) -> LocalMachine {
    LocalMachine { id: id.clone(), epoch, state, reason: None, cpu_time_us: 0, resident_bytes: 0 }
}

async fn run(State(app): State<App>, Path(id): Path<MachineId>, Json(body): Json<RunMachine>) -> Answer {
    let memory = Arc::clone(&app.memory);
    let epoch = body.epoch;
    let machine = id.clone();
    let answer = app.call("run", id.as_str(), |inside| {
        if inside.fence.get(&id).is_some_and(|fence| *fence >= body.epoch) {
            return Err(refused(StatusCode::CONFLICT, "that epoch has ended here"));
        }
        if inside.boots_badly {
            return Err(refused(StatusCode::BAD_REQUEST, "the kernel is no kernel"));
        }
        if let Some(here) = inside.machines.get(&id).filter(|here| here.epoch >= body.epoch) {
            return Ok(json!(here));
        }
        let running = local(&id, body.epoch, LocalState::Starting);
        inside.machines.insert(id.clone(), running.clone());
        Ok(json!(running))
    });
    let answer = answer.await;
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(80)).await;
        let mut inside = memory.lock().unwrap();
        let local = inside.machines.get_mut(&machine).filter(|local| local.epoch == epoch);
        if let Some(local) = local.filter(|local| local.state == LocalState::Starting) {
            local.state = LocalState::Ready;
        }
    });
    answer
}

async fn stop(State(app): State<App>, Path(id): Path<MachineId>, Json(body): Json<StopMachine>) -> Answer {
    app.call("stop", id.as_str(), |inside| {
        let Some(local) = inside.machines.get_mut(&id).filter(|local| local.epoch == body.epoch) else {
            return Err(refused(StatusCode::CONFLICT, "another epoch is here"));
        };
        local.state = LocalState::Stopped;
        let answer = json!(local);
        inside.fence.insert(id.clone(), body.epoch);
        Ok(answer)
    })
    .await
}

async fn remove(
    State(app): State<App>,
    Path(id): Path<MachineId>,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    let epoch = Epoch(query["epoch"].parse().unwrap());
    app.call("remove", id.as_str(), |inside| {
        if inside.machines.get(&id).is_some_and(|local| local.epoch <= epoch) {
            inside.machines.remove(&id);
        }
        inside.fence.insert(id.clone(), epoch);
        Ok(json!({}))
    })
    .await
}

fn found(inside: &Inside, id: &MigrationId) -> Result<LocalMigration, Refused> {
    inside.migrations.get(id).cloned().ok_or_else(|| refused(StatusCode::NOT_FOUND, "no such migration here"))
}

async fn migration(State(app): State<App>, Path(id): Path<MigrationId>) -> Answer {
    app.call("migration", id.as_str(), |inside| Ok(json!(found(inside, &id)?))).await
}

fn side(id: &MigrationId, machine: &MachineId, side: Side) -> LocalMigration {
    LocalMigration {
        id: id.clone(),
        machine: machine.clone(),
        side,
        state: LocalMigrationState::Active,
        phase: Some("pre-copy".to_owned()),
        error: None,
        figures: None,
    }
}

async fn incoming(State(app): State<App>, Path(id): Path<MigrationId>, Json(body): Json<Incoming>) -> Answer {
    let address = app.address;
    app.call("incoming", id.as_str(), |inside| {
        let machine = body.machine.id.clone();
        match inside.migrations.get(&id) {
            Some(known) if known.state == LocalMigrationState::Failed => {
                return Err(refused(StatusCode::CONFLICT, "it was discarded"));
            }
            Some(_) => {}
            None if inside.machines.contains_key(&machine) => {
                return Err(refused(StatusCode::CONFLICT, "the machine is here"));
            }
            None => {
                inside.migrations.insert(id.clone(), side(&id, &machine, Side::Destination));
                inside.epochs.insert(id.clone(), body.epoch);
                inside.machines.insert(machine.clone(), local(&machine, body.epoch, LocalState::Incoming));
            }
        }
        Ok(json!(IncomingReady { address }))
    })
    .await
}

async fn outgoing(State(app): State<App>, Path(id): Path<MigrationId>, Json(body): Json<Outgoing>) -> Answer {
    let peer = app.registry.0.lock().unwrap().get(&body.destination).cloned().unwrap();
    let (mine, machine, migration) = (Arc::clone(&app.memory), body.machine.clone(), id.clone());
    let answer = app.call("outgoing", id.as_str(), |inside| {
        if let Some(known) = inside.migrations.get(&id) {
            return Ok(json!(known));
        }
        let here = inside.machines.get(&machine).filter(|here| here.epoch == body.epoch);
        if !here.is_some_and(|here| here.state == LocalState::Ready) {
            return Err(refused(StatusCode::CONFLICT, "it does not run here in that epoch"));
        }
        let sending = side(&id, &machine, Side::Source);
        inside.migrations.insert(id.clone(), sending.clone());
        tokio::spawn(monitors(mine, peer, machine.clone(), migration));
        Ok(json!(sending))
    });
    answer.await
}

/// The two monitors, which know nothing of control.
async fn monitors(source: Memory, destination: Memory, machine: MachineId, id: MigrationId) {
    let stalls = |at: Stall| source.lock().unwrap().stall == Some(at);
    let pause = || tokio::time::sleep(Duration::from_millis(30));
    loop {
        pause().await;
        let (mut a, mut b) = (source.lock().unwrap(), destination.lock().unwrap());
        let died = a.machines.get(&machine).is_none_or(|local| local.state != LocalState::Ready);
        let sides = (a.migrations.get_mut(&id), b.migrations.get_mut(&id));
        let (Some(from), to) = sides else { return };
        let receiving = to.as_ref().is_some_and(|to| {
            matches!(to.state, LocalMigrationState::Active | LocalMigrationState::Prepared)
        });
        if from.state != LocalMigrationState::Active {
            return;
        }
        if died || !receiving {
            from.state = LocalMigrationState::Failed;
            from.error =
                Some(if died { "the source's monitor died" } else { "the destination hung up" }.to_owned());
            return;
        }
        drop((a, b));
        if stalls(Stall::PreCopy) {
            continue;
        }
        {
            let mut b = destination.lock().unwrap();
            if let Some(to) = b.migrations.get_mut(&id).filter(|to| to.state == LocalMigrationState::Active) {
                to.state = LocalMigrationState::Prepared;
            }
        }
        if stalls(Stall::BeforeHandOver) {
            continue;
        }
        break;
    }
    {
        let mut a = source.lock().unwrap();
        let Some(from) = a.migrations.get_mut(&id).filter(|from| from.state == LocalMigrationState::Active)
        else {
            return;
        };
        from.state = LocalMigrationState::HandedOver;
        from.figures = Some(json!({"blackout_us": 9000}));
        if let Some(local) = a.machines.get_mut(&machine) {
            local.state = LocalState::HandedOver;
        }
    }
    if !stalls(Stall::AfterHandOver) {
        run_at_destination(&mut destination.lock().unwrap(), &id);
    }
}

fn run_at_destination(inside: &mut Inside, id: &MigrationId) {
    let Some(to) = inside.migrations.get_mut(id).filter(|to| to.state == LocalMigrationState::Prepared)
    else {
        return;
    };
    to.state = LocalMigrationState::Running;
    let machine = to.machine.clone();
    if let Some(local) = inside.machines.get_mut(&machine) {
        local.state = LocalState::Ready;
    }
}

async fn cancel(State(app): State<App>, Path(id): Path<MigrationId>) -> Answer {
    app.call("cancel", id.as_str(), |inside| {
        let mut known = found(inside, &id)?;
        let open = matches!(known.state, LocalMigrationState::Active | LocalMigrationState::Prepared);
        if open {
            known.state = LocalMigrationState::Failed;
            known.error = Some("cancelled".to_owned());
            inside.migrations.insert(id.clone(), known.clone());
            if known.side == Side::Destination {
                inside.machines.remove(&known.machine);
            }
        }
        Ok(json!(known))
    })
    .await
}

async fn resolve(State(app): State<App>, Path(id): Path<MigrationId>, Json(body): Json<Resolve>) -> Answer {
    app.call("resolve", id.as_str(), |inside| {
        found(inside, &id)?;
        if body.run {
            run_at_destination(inside, &id);
        }
        Ok(json!(found(inside, &id)?))
    })
    .await
}

async fn finish(State(app): State<App>, Path(id): Path<MigrationId>) -> Answer {
    app.call("finish", id.as_str(), |inside| {
        if let Some(known) = inside.migrations.remove(&id) {
            let left = inside.machines.get(&known.machine).map(|local| local.state);
            if known.side == Side::Source && left == Some(LocalState::HandedOver) {
                inside.machines.remove(&known.machine);
            }
        }
        Ok(json!({}))
    })
    .await
}

/// The agent's part in certificates, by its own code; nothing else is run.
async fn exec(
    State(app): State<App>,
    Path(id): Path<MachineId>,
    Json(request): Json<mashines_guest::protocol::Exec>,
) -> Json<mashines_guest::protocol::ExecResult> {
    use mashines_guest::certificate;
    use mashines_guest::protocol::{Bytes, ExecResult};
    let root = app.memory.lock().unwrap().certificates(&id);
    let words = request.command.unwrap_or_default();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["/run/mashines/agent", "certificate", "request", ..] => certificate::request(&root, &words[3..]),
        ["/run/mashines/agent", "certificate", "install", name] => {
            let chain = String::from_utf8(request.stdin.0).unwrap();
            certificate::install(&root, name, &chain, std::path::Path::new("/none")).map(|()| String::new())
        }
        other => panic!("{other:?} is run in a machine"),
    };
    Json(match done {
        Ok(text) => ExecResult { stdout: Bytes(text.into_bytes()), ..ExecResult::default() },
        Err(error) => ExecResult {
            exit_code: 1,
            stderr: Bytes(format!("{error:#}").into_bytes()),
            ..ExecResult::default()
        },
    })
}
