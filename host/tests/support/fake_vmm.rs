//! A monitor without a machine: it speaks `mashines_vmm::api`, the agent's protocol, and a move of four lines.
//!
//! It obeys files, so that a test can reach it whatever became of the daemon:
//! - `die` in the machine's directory: exit with the code in it;
//! - `deaf` there: neither the power button nor the agent's shutdown does anything;
//! - `hold-PHASE` in its state directory: wait there, as the real one does;
//! - `die-at-start` on the kernel's command line: fail as a bad kernel would.

// Helpers of tests: a failed unwrap is a failed test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mashines_guest::protocol as agent;
use mashines_vmm::api::{
    Figures, Hook, MachineSpec, MigrateIn, MigrateOut, MigrationStatus, Outcome, Phase, Reply, Request,
    State, Status,
};

#[derive(Clone)]
struct Monitor {
    spec: Arc<MachineSpec>,
    dir: PathBuf,
    now: Arc<Mutex<(State, Option<MigrationStatus>)>>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args[args.iter().position(|a| a == name).unwrap() + 1].clone();
    let spec: MachineSpec = serde_json::from_slice(&std::fs::read(value("--spec")).unwrap()).unwrap();
    if spec.cmdline.contains("die-at-start") {
        eprintln!("no such kernel");
        std::process::exit(1);
    }
    assert!(!spec.state_dir.join("handed-over.json").exists(), "it was handed over");
    let incoming = args.iter().any(|a| a == "--incoming");
    let state = if incoming { State::Incoming } else { State::Running };
    let dir = PathBuf::from(value("--spec")).parent().unwrap().to_path_buf();
    let monitor = Monitor { dir, now: Arc::new(Mutex::new((state, None))), spec: Arc::new(spec) };
    let vsock = UnixListener::bind(&monitor.spec.vsock.as_ref().unwrap().socket).unwrap();
    let control = UnixListener::bind(value("--socket")).unwrap();
    let (guest, owner) = (monitor.clone(), monitor.clone());
    std::thread::spawn(move || {
        for stream in vsock.incoming().flatten() {
            guest.serve_agent(stream);
        }
    });
    std::thread::spawn(move || {
        for stream in control.incoming().flatten() {
            let owner = owner.clone();
            std::thread::spawn(move || owner.serve_control(stream));
        }
    });
    loop {
        // The file is there before the number is in it.
        let told = std::fs::read_to_string(monitor.dir.join("die")).ok();
        if let Some(code) = told.and_then(|code| code.trim().parse().ok()) {
            std::fs::remove_file(monitor.dir.join("die")).unwrap();
            eprintln!("told to die");
            std::process::exit(code);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Monitor {
    fn deaf(&self) -> bool {
        self.dir.join("deaf").exists()
    }

    fn serve_agent(&self, stream: UnixStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let mut stream = stream;
        let Some(connect) = lines.next() else { return };
        writeln!(stream, "OK {}", connect.trim_start_matches("CONNECT ")).unwrap();
        let Some(line) = lines.next() else { return };
        let answer = match serde_json::from_str(&line).unwrap() {
            agent::Request::Ready => agent::Response::Ready { ready: true, why: String::new() },
            agent::Request::Exec(exec) => agent::Response::Exec(agent::ExecResult {
                stdout: exec.stdin,
                ..agent::ExecResult::default()
            }),
            agent::Request::Shutdown | agent::Request::Sync | agent::Request::Status => agent::Response::Done,
        };
        let _ = writeln!(stream, "{}", serde_json::to_string(&answer).unwrap());
        if line.contains("shutdown") && !self.deaf() {
            std::thread::sleep(Duration::from_millis(250));
            std::process::exit(0);
        }
    }

    fn serve_control(&self, stream: UnixStream) {
        let mut out = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let request: Request = serde_json::from_str(&line).unwrap();
            let reply = self.obey(&request);
            let _ = writeln!(out, "{}", serde_json::to_string(&reply).unwrap());
            match request {
                Request::Kill => std::process::exit(0),
                Request::PowerButton if !self.deaf() => std::process::exit(0),
                Request::Resolve { run: false } if matches!(reply, Reply::Ok) => std::process::exit(0),
                _ => {}
            }
        }
    }

    fn obey(&self, request: &Request) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Console => Reply::Console { text: format!("console of {}", self.spec.machine_id) },
            Request::MigrateOut(order) => {
                let (monitor, order) = (self.clone(), order.clone());
                self.set_migration(&order.migration_id, Phase::Handshake, None);
                std::thread::spawn(move || monitor.send(&order));
                Reply::Ok
            }
            Request::MigrateIn(order) => {
                let listener = TcpListener::bind(order.listen).unwrap();
                let address = listener.local_addr().unwrap();
                let (monitor, order) = (self.clone(), order.clone());
                std::thread::spawn(move || monitor.receive(&listener, &order));
                Reply::Listening { address }
            }
            Request::Resolve { run } => match (self.now.lock().unwrap().0, run) {
                (State::Prepared, true) => {
                    let monitor = self.clone();
                    std::thread::spawn(move || monitor.start("resolved"));
                    Reply::Ok
                }
                (State::Prepared, false) => Reply::Ok,
                _ => Reply::Error { error: "not prepared".to_owned() },
            },
            Request::MigrateCancel => {
                std::fs::write(self.spec.state_dir.join("cancelled"), b"").unwrap();
                Reply::Ok
            }
            _ => Reply::Ok,
        }
    }

    fn status(&self) -> Status {
        let (state, migration) = self.now.lock().unwrap().clone();
        Status {
            machine_id: self.spec.machine_id.clone(),
            epoch: self.spec.epoch,
            state,
            migration,
            migrating: false,
            cpu_time_us: 7,
            resident_bytes: 1 << 20,
        }
    }

    fn set_state(&self, state: State) {
        self.now.lock().unwrap().0 = state;
    }

    fn set_migration(&self, id: &str, phase: Phase, outcome: Option<Outcome>) {
        let migration_id = id.to_owned();
        let figures = Figures { blackout_us: 4000, ..Figures::default() };
        self.now.lock().unwrap().1 = Some(MigrationStatus { migration_id, phase, outcome, figures });
    }

    /// Waits while the test holds this phase; false when the move was cancelled meanwhile.
    fn hold(&self, phase: &str) -> bool {
        while self.spec.state_dir.join(format!("hold-{phase}")).exists() {
            if self.spec.state_dir.join("cancelled").exists() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        !self.spec.state_dir.join("cancelled").exists()
    }

    fn send(&self, order: &MigrateOut) {
        let id = &order.migration_id;
        let failed = |error: &str| {
            let error = error.to_owned();
            self.set_migration(id, Phase::PreCopy, Some(Outcome::Failed { error }));
            let _ = std::fs::remove_file(self.spec.state_dir.join("cancelled"));
        };
        let Ok(stream) = TcpStream::connect(order.address) else { return failed("no connection") };
        if !self.hold("pre-copy") {
            return failed("cancelled");
        }
        let mut peer = Lines::new(stream);
        peer.say(id);
        if peer.hear().as_deref() != Some("prepared") || !self.hold("handed-over") {
            return failed("the destination went away");
        }
        std::fs::write(self.spec.state_dir.join("handed-over.json"), b"{}").unwrap();
        self.set_state(State::HandedOver);
        hook(order.handed_over.as_ref());
        peer.say("go");
        let outcome = match peer.hear() {
            Some(_) => Outcome::Completed,
            None => Outcome::Doubtful { error: "silence".to_owned() },
        };
        self.set_migration(id, Phase::Running, Some(outcome));
    }

    fn receive(&self, listener: &TcpListener, order: &MigrateIn) {
        let mut peer = Lines::new(listener.accept().unwrap().0);
        if peer.hear().as_ref() != Some(&order.migration_id) {
            std::process::exit(1);
        }
        hook(self.spec.hooks.prepared.as_ref());
        self.set_state(State::Prepared);
        peer.say("prepared");
        // In silence it waits for a verdict.
        if peer.hear().as_deref() == Some("go") {
            self.start(&order.migration_id);
            peer.say("running");
        }
    }

    fn start(&self, id: &str) {
        std::fs::write(self.spec.state_dir.join("accepted.json"), b"{}").unwrap();
        self.set_state(State::Running);
        self.set_migration(id, Phase::Running, Some(Outcome::Completed));
        hook(self.spec.hooks.running.as_ref());
    }
}

struct Lines(BufReader<TcpStream>);

impl Lines {
    fn new(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.0.get_mut(), "{line}");
    }

    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(n) if n > 0 => Some(line.trim().to_owned()),
            Ok(_) | Err(_) => None,
        }
    }
}

fn hook(hook: Option<&Hook>) {
    let Some(hook) = hook else { return };
    let said = |socket: &Path| -> std::io::Result<()> {
        let mut stream = UnixStream::connect(socket)?;
        writeln!(stream, "{}", hook.line)?;
        BufReader::new(stream).read_line(&mut String::new())?;
        Ok(())
    };
    let _ = said(&hook.socket);
}
