//! Two halves over loopback with machines in memory.

mod codec;
mod cuts;
mod hostile;
mod moves;
mod proxy;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::fake::{Arena, FakeMachine, Shape};
use super::{Incoming, Instance, Outgoing, handover};
use crate::api::{Hooks, MigrateIn, MigrateOut, MigrationStatus, Outcome, Tls};

const MIGRATION: &str = "01JMIGRATION0000000000000A";
const A: &str = "a.host.mashines.internal";
const B: &str = "b.host.mashines.internal";

/// A fleet's CA with certificates in files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = dir.join(format!("{name}.pem"));
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca }
    }

    /// Credentials of host `name` that demand `peer`.
    fn tls(&self, dir: &Path, name: &str, peer: &str) -> Tls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // Each call has files of its own: a second certificate of the same name must not replace the first.
        let unique = dir.join(format!("{name}-{:08x}", rand::random::<u32>()));
        let tls = Tls {
            certificate: unique.with_added_extension("crt"),
            private_key: unique.with_added_extension("key"),
            ca: self.ca.clone(),
            peer_name: peer.to_owned(),
        };
        std::fs::write(&tls.certificate, certificate.pem()).unwrap();
        std::fs::write(&tls.private_key, key.serialize_pem()).unwrap();
        tls
    }
}

/// Two sides, ready to move.
struct Rig {
    dir: TempDir,
    authority: Authority,
    arena: Arc<Arena>,
    source: Arc<FakeMachine>,
    destination: Arc<FakeMachine>,
}

impl Rig {
    fn new(shape: &Shape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        let authority = Authority::new(dir.path(), "ca");
        let arena = Arc::new(Arena::default());
        let (source, destination) = (FakeMachine::new(&arena, shape), FakeMachine::new(&arena, shape));
        source.boot();
        Self { dir, authority, arena, source, destination }
    }

    fn state_dir(&self, side: &str) -> PathBuf {
        self.dir.path().join(side)
    }

    fn instance(&self, side: &str, epoch: u64) -> Instance {
        Instance {
            machine_id: "machine".into(),
            epoch,
            state_dir: self.state_dir(side),
            hooks: Hooks::default(),
        }
    }

    fn request_in(&self) -> MigrateIn {
        MigrateIn {
            migration_id: MIGRATION.into(),
            listen: ([127, 0, 0, 1], 0).into(),
            tls: self.authority.tls(self.dir.path(), B, A),
            timeout_ms: 10_000,
        }
    }

    fn request_out(&self, address: SocketAddr) -> MigrateOut {
        MigrateOut {
            migration_id: MIGRATION.into(),
            address,
            next_epoch: 4,
            tls: self.authority.tls(self.dir.path(), A, B),
            budget_ms: 100,
            timeout_ms: 10_000,
            throttle: false,
            streams: 2,
            handed_over: None,
        }
    }

    fn listen(&self) -> Incoming {
        Incoming::listen(self.destination.clone(), self.request_in(), self.instance("b", 4)).unwrap()
    }

    fn start(&self, request: MigrateOut) -> Outgoing {
        Outgoing::start(self.source.clone(), request, self.instance("a", 3)).unwrap()
    }

    fn handed_over(&self) -> bool {
        handover::refuse_if_handed_over(&self.state_dir("a")).is_err()
    }

    /// The two machines hold the same, and only the destination runs.
    fn assert_moved(&self) {
        assert!(!self.source.is_running() && self.destination.is_running());
        assert!(!self.arena.two_at_once.load(std::sync::atomic::Ordering::SeqCst));
        for (region, pages) in self.source.regions.iter().map(super::machine::RamRegion::pages).enumerate() {
            for page in 0..pages {
                assert!(
                    self.source.page(region, page) == self.destination.page(region, page),
                    "page {page} of region {region} differs"
                );
            }
        }
        for (mine, other) in self.source.disks.iter().zip(&self.destination.disks) {
            assert!(mine.content() == other.content(), "a disk differs");
        }
    }

    fn assert_stayed(&self) {
        assert!(self.source.is_running() && !self.destination.is_running());
        assert!(!self.handed_over());
        assert!(!self.source.logging.load(std::sync::atomic::Ordering::SeqCst), "the dirty log is still on");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.source.power_off();
        self.destination.power_off();
    }
}

fn failure(status: &MigrationStatus) -> String {
    match &status.outcome {
        Some(Outcome::Failed { error }) => error.clone(),
        other => panic!("not failed: {other:?}"),
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
