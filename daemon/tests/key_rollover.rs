//! The zone's key rolls over, twice, and no validating resolver (unbound) ever notices: neither one that comes by the parent's DS (a zone
//! that Knot serves and signs), nor one that follows our keys by itself (RFC 5011). Days are seconds here, in caches and in control alike.
//!
//! There is one combined key a zone, so each rollover is that of the key signing key and of the zone signing key at once.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fleet;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use fleet::asked::{ask, data};
use fleet::unbound::Unbound;
use fleet::{Fleet, Process, eventually, free_port};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use mashines_fleet::api::{Delegation, Zone};
use mashines_fleet::record::ZoneKeyState;
use serde_json::json;

/// The zone above ours, served and signed by Knot.
struct Parent {
    _knot: Process,
    directory: PathBuf,
    address: SocketAddr,
    serial: u32,
}

impl Parent {
    fn start(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let here = directory.display();
        let config = format!(
            "server:\n    rundir: \"{here}\"\n    listen: 127.0.0.1@{}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             database:\n    storage: \"{here}\"\n\
             log:\n  - target: stderr\n    any: info\n\
             policy:\n  - id: signed\n    algorithm: ECDSAP256SHA256\n    single-type-signing: on\n    ksk-lifetime: 0\n\
             zone:\n  - domain: dev\n    storage: \"{here}\"\n    file: \"{here}/dev.zone\"\n    dnssec-signing: on\n    dnssec-policy: signed\n\
             \x20   zonefile-load: difference-no-serial\n    zonefile-sync: -1\n    journal-content: all\n",
            address.port()
        );
        std::fs::write(directory.join("knot.conf"), config).unwrap();
        write_zone(directory, 1, &[]);
        let mut command = Command::new("knotd");
        command.arg("-c").arg(directory.join("knot.conf"));
        let knot = Process::start(&mut command, directory.join("knot.log"));
        let parent = Self { _knot: knot, directory: directory.to_owned(), address, serial: 1 };
        eventually("Knot serves the parent", || parent.anchor());
        parent
    }

    /// Its own DS, which resolvers trust.
    fn anchor(&self) -> Option<String> {
        let reply = ask(self.address, "dev.", RecordType::DNSKEY, Duration::from_secs(1))?;
        if reply.metadata.response_code != ResponseCode::NoError || reply.answers.is_empty() {
            return None;
        }
        let listed = Command::new("keymgr")
            .arg("-c")
            .arg(self.directory.join("knot.conf"))
            .args(["dev", "ds"])
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.lines().find(|line| line.split(' ').nth(4) == Some("2")).map(str::to_owned)
    }

    /// Has this DS of our zone, in place of what it had.
    fn publish(&mut self, ds: &str) {
        self.serial += 1;
        write_zone(&self.directory, self.serial, &[ds]);
        let reloaded = Command::new("knotc")
            .arg("-c")
            .arg(self.directory.join("knot.conf"))
            .args(["-b", "zone-reload", "dev"])
            .output()
            .unwrap();
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
        let tag: u16 = ds.split(' ').next().unwrap().parse().unwrap();
        eventually("the parent shows the DS", || {
            let reply = ask(self.address, "mashine.dev.", RecordType::DS, Duration::from_secs(1))?;
            let is_it = |data: &RData| match data {
                RData::Unknown { rdata, .. } => rdata.anything.starts_with(&tag.to_be_bytes()),
                _ => false,
            };
            reply.answers.iter().any(|record| is_it(&record.data)).then_some(())
        });
    }
}

fn write_zone(directory: &Path, serial: u32, ds: &[&str]) {
    let mut text = format!(
        "$ORIGIN dev.\n$TTL 1\n@ SOA ns.dev. hostmaster.dev. {serial} 60 60 3600 1\n@ NS ns.dev.\nns A 127.0.0.1\n\
         mashine NS ns1.mashine.dev.\nns1.mashine A 127.0.0.1\n"
    );
    for ds in ds {
        text.push_str(&format!("mashine DS {ds}\n"));
    }
    std::fs::write(directory.join("dev.zone"), text).unwrap();
}

/// Asks a resolver for a new name every 20 ms; each answer has to be validated.
struct Watcher {
    stop: Arc<AtomicBool>,
    validated: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(what: &'static str, resolver: SocketAddr) -> Self {
        let (stop, validated) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let (stopped, counter, told) = (Arc::clone(&stop), Arc::clone(&validated), Arc::clone(&failures));
        let thread = std::thread::spawn(move || {
            for n in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("{what}{n}.wild.mashine.dev.");
                let reply =
                    (0..3).find_map(|_| ask(resolver, &name, RecordType::TXT, Duration::from_secs(5)));
                match reply {
                    Some(reply) if reply.metadata.authentic_data && data(&reply) == ["TXT wild"] => {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    other => return told.lock().unwrap().push(format!("{name}: {other:?}")),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, validated, failures, thread: Some(thread) }
    }

    /// Nothing failed so far, and it goes on.
    fn check(&self, when: &str) {
        let goal = self.validated.load(Ordering::Relaxed) + 20;
        eventually(when, || {
            let failed = !self.failures.lock().unwrap().is_empty();
            (failed || self.validated.load(Ordering::Relaxed) >= goal).then_some(())
        });
        assert_eq!(*self.failures.lock().unwrap(), Vec::<String>::new(), "{when}");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

async fn zone(fleet: &Fleet) -> Zone {
    let zones: Vec<Zone> = fleet.api.get("/v1/fleet/zones").await.unwrap();
    zones.into_iter().find(|zone| zone.zone.as_str() == "mashine.dev").unwrap()
}

/// Looks at the zone until it is so.
async fn when(fleet: &Fleet, what: &str, is_so: impl Fn(&Zone) -> bool) -> Zone {
    let until = std::time::Instant::now() + fleet::PATIENCE;
    loop {
        let zone = zone(fleet).await;
        if is_so(&zone) {
            return zone;
        }
        assert!(std::time::Instant::now() < until, "{what}: {zone:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_validated_over_two_rollovers_by_the_parents_ds_and_by_rfc_5011() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut parent = Parent::start(&at("parent"));
    let anchor = format!("trust-anchor: \"{}\"", parent.anchor().unwrap());
    // Nothing is kept for longer than a second, and no server's silence remembered for longer.
    let short = ["cache-max-ttl: 1", "cache-max-negative-ttl: 1", "val-bogus-ttl: 1", "infra-host-ttl: 2"];
    let zones = "[[fleet.zones]]\nname = \"mashine.dev\"\nrecords = [{ name = \"*.wild\", type = \"TXT\", ttl = 30, data = '\"wild\"' }]";
    // Control looks at the parent with a resolver of its own, which need not know where our servers are.
    let looking =
        Unbound::start(&at("looking"), &[&short[..], &[&anchor]].concat(), &[("dev", &[parent.address])]);
    let settings = format!(
        "resolvers = [\"{}\"]\nparent_look_s = 1\nzone_keys = {{ dnskey_ttl_s = 4, ds_ttl_s = 2, longest_ttl_s = 2, slack_s = 3 }}",
        looking.at
    );
    let mut fleet = Fleet::found(directory.path(), &["ns1"], zones, &settings).await;
    fleet.servers[0].start();
    let ours = fleet.addresses.clone();

    let first =
        when(&fleet, "the parent is seen to have no DS", |zone| zone.parent.state == Delegation::Insecure)
            .await;
    assert!(first.parent.says.contains(&first.keys[0].ds), "{}", first.parent.says);
    parent.publish(&first.keys[0].ds);
    when(&fleet, "the parent is seen to have our DS", |zone| zone.parent.state == Delegation::Secure).await;

    let stubs: [(&str, &[SocketAddr]); 2] = [("dev", &[parent.address]), ("mashine.dev", &ours)];
    let by_parent = Unbound::start(&at("by-parent"), &[&short[..], &[&anchor]].concat(), &stubs);
    // RFC 5011: it begins with our key of today, and believes a new one that it has seen for two seconds in place of thirty days.
    std::fs::create_dir_all(at("by-itself")).unwrap();
    let file = at("by-itself").join("mashine.dev.key");
    std::fs::write(&file, format!("mashine.dev. IN DNSKEY {}\n", first.keys[0].dnskey)).unwrap();
    let auto = format!("auto-trust-anchor-file: \"{}\"", file.display());
    let timers =
        ["permit-small-holddown: yes", "add-holddown: 2", "del-holddown: 2", "keep-missing: 60", &auto];
    let by_itself = Unbound::start(&at("by-itself"), &[&short[..], &timers].concat(), &stubs[1..]);
    for unbound in [&by_parent, &by_itself] {
        eventually("unbound validates", || {
            let reply = ask(unbound.at, "a.wild.mashine.dev.", RecordType::TXT, Duration::from_secs(1))?;
            reply.metadata.authentic_data.then_some(())
        });
    }
    let watchers = [Watcher::start("p", by_parent.at), Watcher::start("i", by_itself.at)];
    let check = |when: &str| watchers.iter().for_each(|watcher| watcher.check(when));
    check("before");

    let mut old = first.keys[0].clone();
    for _rollover in 0..2 {
        let begun: Zone = fleet.api.post("/v1/fleet/zones/mashine.dev/rollover", &json!({})).await.unwrap();
        let new = begun.keys[1].clone();
        let is = |zone: &Zone, state| zone.keys.iter().any(|key| key.tag == new.tag && key.state == state);
        let announced =
            when(&fleet, "the new key is announced", |zone| is(zone, ZoneKeyState::Announced)).await;
        assert_eq!(announced.parent.state, Delegation::Secure, "by the old key");
        eventually("RFC 5011 believes the new key", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let line = text.lines().find(|line| line.contains(&format!("id = {} ", new.tag)))?;
            line.contains("[  VALID  ]").then_some(())
        });
        check("announced");
        // Who says too early that the parent has it is told that it has not.
        let early =
            fleet.api.post::<_, Zone>("/v1/fleet/zones/mashine.dev/ds-seen", &json!({})).await.unwrap_err();
        assert!(early.message().contains(&format!("it shows key {}", old.tag)), "{early}");
        parent.publish(&new.ds);
        when(&fleet, "the new key signs", |zone| is(zone, ZoneKeyState::Active)).await;
        check("the new key signs");
        when(&fleet, "the old key is gone", |zone| zone.keys.len() == 1).await;
        check("the old key is gone");
        // The change is real: who trusts the old key alone takes nothing any more.
        let stale = format!("trust-anchor: \"mashine.dev. DS {}\"", old.ds);
        let stale = Unbound::start(
            &at(&format!("stale-{}", old.tag)),
            &[&short[..], &[&stale]].concat(),
            &stubs[1..],
        );
        eventually("who has the old key fails", || {
            let reply = ask(stale.at, "b.wild.mashine.dev.", RecordType::TXT, Duration::from_secs(5))?;
            assert!(!reply.metadata.authentic_data);
            (reply.metadata.response_code == ResponseCode::ServFail).then_some(())
        });
        old = new;
    }
    check("after");
}
