//! Copies at other people's servers: Knot and NSD fetch the zone whole, hear of a change and fetch that; `ldns-verify-zone` accepts what
//! each of them wrote. Keys, addresses and clocks that are wrong get nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod programs;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{ZONES, every_shape, machine, put, zone_keys};
use mashines_dns::transfer::secondary::{KeyConfig, SecondaryConfig};
use mashines_dns::tsig::Algorithm;
use mashines_dns::{Config, Server};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, Change, View};
use programs::{Peer, eventually, kdig, run, short};
use serde_json::json;
use tokio::sync::watch;

/// A server whose facts a test changes.
struct Ours {
    address: SocketAddr,
    // Ends before the facts do.
    _runtime: tokio::runtime::Runtime,
    view: watch::Sender<Arc<View>>,
    _secret: watch::Sender<Option<EntrySecret>>,
}

impl Ours {
    fn start(secondaries: Vec<SecondaryConfig>, changes: Vec<Change>, secret: EntrySecret) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            threads: 1,
            secondaries,
            ..Config::default()
        };
        let server = runtime.block_on(Server::bind(&config)).unwrap();
        let address = server.addresses().unwrap()[0];
        let (view, views) = watch::channel(common::view(changes));
        let (secret, secrets) = watch::channel(Some(secret));
        runtime.spawn(async move { server.serve(views, secrets, std::future::pending()).await.unwrap() });
        Self { address, view, _runtime: runtime, _secret: secret }
    }

    fn change(&self, changes: Vec<Change>) {
        let mut view = View::clone(&self.view.borrow());
        let revision = view.revision + 1;
        assert_eq!(view.apply(&Batch { revision, changes }), []);
        self.view.send_replace(Arc::new(view));
    }
}

/// Names of every shape: aliases, wildcards, empty non-terminals, delegations with and without DS, glue, a zone below a zone, large sets.
fn fleet(secret: &EntrySecret) -> Vec<Change> {
    let mut changes = every_shape();
    changes.extend(ZONES.map(|zone| zone_keys(zone, &["active"], secret)));
    changes
}

fn secret_file(directory: &Path, name: &str, secret: &[u8]) -> KeyConfig {
    let file = directory.join(name);
    std::fs::write(&file, STANDARD.encode(secret)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    KeyConfig { name: name.to_owned(), algorithm: Algorithm::Sha256, secret_file: file }
}

fn knot(primary: SocketAddr, port: u16, secret: &str) -> Peer {
    Peer::start("knotd", port, |directory| {
        let here = directory.display();
        let (zones, listen): (String, _) = (
            ZONES.map(|zone| format!("  - domain: {zone}\n    master: primary\n    acl: notify\n")).concat(),
            format!("127.0.0.1@{port}"),
        );
        let conf = format!(
            "server:\n    rundir: \"{here}\"\n    listen: {listen}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{here}\"\n\
             key:\n  - id: knot\n    algorithm: hmac-sha256\n    secret: {secret}\n\
             remote:\n  - id: primary\n    address: {}@{}\n    key: knot\n\
             acl:\n  - id: notify\n    key: knot\n    action: notify\n\
             template:\n  - id: default\n    storage: \"{here}\"\n    file: \"%s.zone\"\n    zonefile-sync: 0\n\
             zone:\n{zones}",
            primary.ip(),
            primary.port()
        );
        std::fs::write(directory.join("knot.conf"), conf).unwrap();
        vec!["-c".into(), directory.join("knot.conf").display().to_string()]
    })
}

fn nsd(primary: SocketAddr, port: u16, secret: &str) -> Peer {
    Peer::start("nsd", port, |directory| {
        let here = directory.display();
        let at = format!("{}@{}", primary.ip(), primary.port());
        let zones = ZONES
            .map(|zone| {
                format!(
                    "zone:\n    name: {zone}\n    zonefile: {zone}.zone\n    allow-notify: 127.0.0.1 nsd\n    request-xfr: {at} nsd\n"
                )
            })
            .concat();
        let conf = format!(
            "server:\n    port: {port}\n    ip-address: 127.0.0.1\n    username: \"\"\n    chroot: \"\"\n    database: \"\"\n    zonesdir: \"{here}\"\n\
             \x20   pidfile: \"{here}/nsd.pid\"\n    xfrdfile: \"{here}/xfrd.state\"\n    zonelistfile: \"{here}/zone.list\"\n    xfrdir: \"{here}\"\n\
             \x20   server-count: 1\n    zonefiles-write: 1\n    verbosity: 2\n\
             remote-control:\n    control-enable: no\n\
             key:\n    name: nsd\n    algorithm: hmac-sha256\n    secret: \"{secret}\"\n{zones}"
        );
        std::fs::write(directory.join("nsd.conf"), conf).unwrap();
        vec!["-d".into(), "-c".into(), directory.join("nsd.conf").display().to_string()]
    })
}

/// The copy that a secondary wrote is complete, signed by the key, and its chain goes all the way around.
fn verify(secondary: &Peer, anchors: &Path, holds: &str) {
    for zone in ZONES {
        let file = secondary.directory.path().join(format!("{zone}.zone"));
        let holds = if zone == "mashine.dev" { holds } else { "" };
        eventually(&format!("{} is written", file.display()), || {
            std::fs::read_to_string(&file).ok().filter(|text| text.contains("NSEC") && text.contains(holds))
        });
        let (content, said) =
            run("ldns-verify-zone", &["-k", &anchors.display().to_string(), &file.display().to_string()]);
        assert!(content, "{}: {said}", file.display());
    }
}

#[test]
fn knot_and_nsd_fetch_the_zone_and_then_its_changes_and_both_copies_verify() {
    let directory = tempfile::tempdir().unwrap();
    let secret = EntrySecret::random();
    let key = |n: u8| STANDARD.encode([n; 32]);
    let ports = [programs::free_port(), programs::free_port()];
    let secondary = |name: &str, n: u8, port: u16| SecondaryConfig {
        name: name.into(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        from: vec![],
        key: Some(secret_file(directory.path(), name, &[n; 32])),
    };
    let secondaries = vec![secondary("knot", 1, ports[0]), secondary("nsd", 2, ports[1])];
    let ours = Ours::start(secondaries, fleet(&secret), secret.clone());
    let (knot, nsd) = (knot(ours.address, ports[0], &key(1)), nsd(ours.address, ports[1], &key(2)));
    for peer in [&knot, &nsd] {
        let asked = ["web.mashine.dev", "AAAA"];
        eventually("the zone is fetched", || {
            (short(peer.address(), &asked) == ["2001:db8:160::1"]).then_some(())
        });
        let pointer = eventually("so is the reverse zone", || {
            Some(short(peer.address(), &["-x", "2001:db8:160::2"])).filter(|said| !said.is_empty())
        });
        assert_eq!(pointer, ["db.mashine.dev."]);
    }
    // What is signed on line and what is in the copies is signed by the same key.
    let anchors = directory.path().join("anchors");
    let keys = ZONES.map(|zone| kdig(ours.address, &[zone, "DNSKEY", "+noall", "+answer"]));
    std::fs::write(&anchors, keys.concat()).unwrap();
    for peer in [&knot, &nsd] {
        verify(peer, &anchors, "web.mashine.dev.");
    }

    ours.change(vec![machine(3, "newcomer", "2001:db8:160::3", json!({}))]);
    for peer in [&knot, &nsd] {
        let asked = ["newcomer.mashine.dev", "AAAA"];
        eventually("the change is fetched", || {
            (short(peer.address(), &asked) == ["2001:db8:160::3"]).then_some(())
        });
    }
    eventually("Knot speaks of IXFR", || knot.log().contains("IXFR, incoming").then_some(()));
    for peer in [&knot, &nsd] {
        verify(peer, &anchors, "newcomer");
        // A stock secondary denies with what it was given.
        let denied = kdig(peer.address(), &["nope.mashine.dev", "A", "+dnssec"]);
        assert!(denied.contains("NXDOMAIN") && denied.contains("NSEC"), "{denied}");
    }

    let mut gone = machine(3, "newcomer", "2001:db8:160::3", json!({}));
    gone.value = None;
    ours.change(vec![gone, put("kinds-to-come/x".into(), json!({}))]);
    for peer in [&knot, &nsd] {
        let asked = ["newcomer.mashine.dev", "AAAA"];
        eventually("what is gone is gone", || {
            kdig(peer.address(), &asked).contains("NXDOMAIN").then_some(())
        });
        verify(peer, &anchors, "db.mashine.dev.");
    }
}

#[test]
fn who_lacks_key_address_or_clock_gets_no_zone() {
    let directory = tempfile::tempdir().unwrap();
    let secret = EntrySecret::random();
    let secondary = |name: &str, from: &str| SecondaryConfig {
        name: name.into(),
        address: "127.0.0.1:9".parse().unwrap(),
        from: vec![from.parse().unwrap()],
        key: Some(secret_file(directory.path(), name, &[1; 32])),
    };
    let ours = Ours::start(
        vec![secondary("here", "127.0.0.1"), secondary("elsewhere", "127.0.0.2")],
        fleet(&secret),
        secret.clone(),
    );
    let axfr = |key: &str| kdig(ours.address, &["-y", key, "mashine.dev", "AXFR"]);
    let (good, bad) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
    let whole = eventually("the copy is made", || {
        Some(axfr(&format!("hmac-sha256:here:{good}"))).filter(|said| said.contains("web.mashine.dev."))
    });
    assert_eq!(whole.lines().filter(|line| line.contains("\tSOA\t")).count(), 2, "{whole}");
    assert!(kdig(ours.address, &["mashine.dev", "AXFR"]).contains("REFUSED"));
    for (key, says) in [
        (format!("hmac-sha256:here:{bad}"), "BADSIG"),
        (format!("hmac-sha512:here:{good}"), "BADKEY"),
        (format!("hmac-sha256:nobody:{good}"), "BADKEY"),
        (format!("hmac-sha256:elsewhere:{good}"), "REFUSED"),
    ] {
        let said = axfr(&key);
        assert!(said.contains(says) || said.contains("NOTAUTH") && says.starts_with("BAD"), "{key}: {said}");
        assert!(!said.contains("web.mashine.dev."), "{said}");
    }
    // A signed question that is no transfer gets a signed answer.
    let signed = kdig(ours.address, &["-y", &format!("hmac-sha256:here:{good}"), "web.mashine.dev", "AAAA"]);
    assert!(signed.contains("2001:db8:160::1") && signed.contains("TSIG"), "{signed}");
    let over_udp =
        kdig(ours.address, &["-y", &format!("hmac-sha256:here:{good}"), "mashine.dev", "IXFR=1", "+notcp"]);
    assert_eq!(
        over_udp.lines().filter(|line| line.contains("SOA") && !line.starts_with(';')).count(),
        1,
        "{over_udp}"
    );
}
