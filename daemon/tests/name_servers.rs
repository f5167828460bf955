//! Two name servers of real processes behind a validating resolver (unbound): kill either under load, and nobody notices.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fleet;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fleet::asked::{ask, data};
use fleet::unbound::Unbound;
use fleet::{Fleet, eventually};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use mashines_fleet::api::Zone;

/// How long a client waits for one answer before it asks again, and how often it asks: what glibc does.
const WAIT: Duration = Duration::from_secs(5);
const TRIES: usize = 3;

/// How long a resolver waits for a server before it asks the next.
const NEXT_SERVER: Duration = Duration::from_millis(400);

/// The answers that are waited for after each death, of all clients together.
const AFTER_DEATH: u64 = 300;

fn is_signed(reply: &Message) -> bool {
    reply.answers.iter().any(|record| record.record_type() == RecordType::RRSIG)
}

/// The zone's serial at a server that answers and signs.
fn serial(at: SocketAddr) -> Option<u32> {
    let reply = ask(at, "mashine.dev.", RecordType::SOA, Duration::from_secs(1))?;
    let serial = reply.answers.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    serial.filter(|_| is_signed(&reply))
}

/// All that a server says of the zone's names.
fn content(at: SocketAddr) -> Vec<Vec<String>> {
    use RecordType::{A, CDS, DNSKEY, NS, SOA, TXT};
    let names = [
        ("mashine.dev.", SOA),
        ("mashine.dev.", NS),
        ("ns1.mashine.dev.", A),
        ("mashine.dev.", DNSKEY),
        ("mashine.dev.", CDS),
        ("here.mashine.dev.", TXT),
        ("any.wild.mashine.dev.", TXT),
    ];
    let each = names.into_iter().map(|(name, kind)| {
        let reply = ask(at, name, kind, Duration::from_secs(5))
            .unwrap_or_else(|| panic!("{at}: no answer to {name} {kind}"));
        assert!(is_signed(&reply), "{at}: {name} {kind} is not signed: {reply}");
        data(&reply)
    });
    each.collect()
}

/// unbound with the zone's key as its trust anchor.
///
/// For how long it stays away from a server that did not answer is its own affair (15 minutes, and the next answer of the server
/// that lives comes meanwhile). Here deaths are seconds apart, not days, so that memory is shorter in the same proportion.
fn unbound(directory: &Path, ds: &str, servers: &[SocketAddr]) -> Unbound {
    let anchor = format!("trust-anchor: \"mashine.dev. DS {ds}\"");
    let settings = ["infra-host-ttl: 2", "infra-keep-probing: yes", &anchor];
    let unbound = Unbound::start(directory, &settings, &[("mashine.dev", servers)]);
    eventually("unbound validates", || {
        let reply = ask(unbound.at, "here.mashine.dev.", RecordType::TXT, Duration::from_secs(1))?;
        (reply.metadata.authentic_data && !reply.answers.is_empty()).then_some(())
    });
    unbound
}

/// Steady questions, each for a name that no cache has.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    through_resolver: AtomicU64,
    direct: AtomicU64,
    /// Questions that were asked again: they were in flight when a server died.
    again: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn start(resolver: SocketAddr, servers: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared::default());
        let mut clients = Vec::new();
        for _ in 0..3 {
            let shared = Arc::clone(&shared);
            clients.push(std::thread::spawn(move || {
                shared.go_on(|shared, name| shared.by_resolver(resolver, name))
            }));
        }
        let (own, servers) = (Arc::clone(&shared), servers.to_vec());
        clients
            .push(std::thread::spawn(move || own.go_on(|shared, name| shared.as_resolver(&servers, name))));
        Self { shared, clients }
    }

    /// Waits until so many more were answered in each way.
    fn go_on(&self, when: &str) {
        let many = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let goals =
            (many(&self.shared.through_resolver) + AFTER_DEATH, many(&self.shared.direct) + AFTER_DEATH / 3);
        eventually(when, || {
            let now = (many(&self.shared.through_resolver), many(&self.shared.direct));
            (now.0 >= goals.0 && now.1 >= goals.1 || !self.shared.failures.lock().unwrap().is_empty())
                .then_some(())
        });
        assert_eq!(*self.shared.failures.lock().unwrap(), Vec::<String>::new(), "{when}");
    }

    fn stop(self) -> Arc<Shared> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        self.shared
    }
}

impl Shared {
    fn go_on(&self, client: impl Fn(&Self, &str) -> Result<(), String>) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            if let Err(why) = client(self, &format!("n{number}.wild.mashine.dev.")) {
                // One is one too many; its like would follow.
                return self.failures.lock().unwrap().push(why);
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// As a stub resolver does.
    fn by_resolver(&self, resolver: SocketAddr, name: &str) -> Result<(), String> {
        for turn in 0..TRIES {
            self.again.fetch_add(u64::from(turn > 0), Ordering::Relaxed);
            let Some(reply) = ask(resolver, name, RecordType::TXT, WAIT) else { continue };
            let code = reply.metadata.response_code;
            if code != ResponseCode::NoError || !reply.metadata.authentic_data || data(&reply) != ["TXT wild"]
            {
                return Err(format!("{name} through unbound: {reply}"));
            }
            self.through_resolver.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        Err(format!("{name}: no answer through unbound to {TRIES} questions"))
    }

    /// As a resolver does: the servers in turn.
    fn as_resolver(&self, servers: &[SocketAddr], name: &str) -> Result<(), String> {
        let first = usize::from(name.as_bytes()[name.find('.').unwrap() - 1]);
        for turn in 0..2 * servers.len() {
            self.again.fetch_add(u64::from(turn > 0), Ordering::Relaxed);
            let server = servers[(first + turn) % servers.len()];
            let Some(reply) = ask(server, name, RecordType::TXT, NEXT_SERVER) else { continue };
            // A server that starts has the names before it has the socket: there is no time of wrong answers.
            if !reply.metadata.authoritative || !is_signed(&reply) || data(&reply) != ["TXT wild"] {
                return Err(format!("{name} at {server}: {reply}"));
            }
            self.direct.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        Err(format!("{name}: none of the servers answered"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_of_two_name_servers_dies_under_load_and_comes_back_without_control() {
    let directory = tempfile::tempdir().unwrap();
    let zones = "[[fleet.zones]]\nname = \"mashine.dev\"\nrecords = [\n\
                 { name = \"here\", type = \"TXT\", ttl = 30, data = '\"here\"' },\n\
                 { name = \"*.wild\", type = \"TXT\", ttl = 30, data = '\"wild\"' },\n]";
    let mut fleet = Fleet::found(directory.path(), &["ns1", "ns2"], zones, "").await;
    for server in &mut fleet.servers {
        server.start();
    }
    let both = fleet.addresses.clone();
    let (one, two) = (both[0], both[1]);
    eventually("both serve the same", || serial(one).filter(|serial| Some(*serial) == self::serial(two)));
    let zones: Vec<Zone> = fleet.api.get("/v1/fleet/zones").await.unwrap();
    let zone = zones.into_iter().find(|zone| zone.zone.as_str() == "mashine.dev").unwrap();
    let unbound = unbound(&directory.path().join("unbound"), &zone.keys[0].ds, &both);
    let load = Load::start(unbound.at, &both);
    load.go_on("answers of both");

    // One dies; what changes meanwhile, the other has, and it after its return.
    fleet.servers[0].kill();
    load.go_on("answers after the first's death");
    let before = serial(two).unwrap();
    let rolled: Zone =
        fleet.api.post("/v1/fleet/zones/mashine.dev/rollover", &serde_json::json!({})).await.unwrap();
    assert_eq!(rolled.keys.len(), 2);
    let after =
        eventually("the change is at the server that lives", || serial(two).filter(|now| *now != before));
    fleet.servers[0].start();
    eventually("the first is back", || (serial(one) == Some(after)).then_some(()));
    assert_eq!(content(one), content(two));

    // The other dies, and control with it. It comes back from its copy, and then has to serve alone.
    eventually("the copies on disk are as new", || {
        let all = fleet
            .servers
            .iter()
            .all(|server| server.kept_revision() >= u64::from(after) && server.has_secret());
        all.then_some(())
    });
    let expected = content(one);
    fleet.servers[1].kill();
    fleet.control.kill();
    load.go_on("answers after the second's death");
    fleet.servers[1].start();
    let since = Instant::now();
    eventually("the second is back without control", || (serial(two) == Some(after)).then_some(()));
    println!("back from its copy after {:?}", since.elapsed());
    assert_eq!(content(two), expected);
    fleet.servers[0].kill();
    load.go_on("answers of a server that started without control");
    assert_eq!(content(two), expected);
    fleet.servers[0].start();
    eventually("the first is back without control", || (serial(one) == Some(after)).then_some(()));
    assert_eq!(content(one), expected);
    load.go_on("answers of both again");

    let shared = load.stop();
    assert_eq!(*shared.failures.lock().unwrap(), Vec::<String>::new());
    let many = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} answers through unbound and {} direct ones over four deaths; {} questions were asked a second time",
        many(&shared.through_resolver),
        many(&shared.direct),
        many(&shared.again)
    );
}
