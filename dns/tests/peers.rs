//! What other people's programs make of our answers: dig, kdig, drill and delv against each shape of answer, and unbound, which validates all of
//! it with our key as its trust anchor and the letter case of its questions mixed.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ZONES, signed};
use mashines_dns::zone::Projector;
use mashines_dns::{Config, Server};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use tokio::sync::watch;

/// A shape of answer: name, type, code for who asks without DNSSEC, what the answer section has to have, in any order.
type Shape = (&'static str, &'static str, &'static str, &'static [&'static str]);

const SHAPES: &[Shape] = &[
    ("web.mashine.dev", "AAAA", "NOERROR", &["2001:db8:160::1"]),
    ("web.mashine.dev", "A", "NOERROR", &["198.51.100.160"]),
    (
        "web.mashine.dev",
        "SSHFP",
        "NOERROR",
        &["4 2 045940BB46B82110DE3C16404E9BF36DE5AB8F38DDF61DBFB4AA9DFF F1167754"],
    ),
    ("web.mashine.dev", "MX", "NOERROR", &["10 mail.example.org."]),
    ("_https._tcp.web.mashine.dev", "SRV", "NOERROR", &["1 2 443 web.mashine.dev."]),
    ("txt.web.mashine.dev", "TXT", "NOERROR", &["\"hello world\""]),
    ("mashine.dev", "CAA", "NOERROR", &["0 issue \"letsencrypt.org\""]),
    ("edge.mashine.dev", "AAAA", "NOERROR", &["2001:db8:160::fff1"]),
    ("_acme-challenge.mashine.dev", "TXT", "NOERROR", &["\"platform\""]),
    ("_acme-challenge.web.mashine.dev", "TXT", "NOERROR", &["\"machine\""]),
    ("shop.example.org._acme.mashine.dev", "TXT", "NOERROR", &["\"elsewhere\""]),
    (
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa",
        "PTR",
        "NOERROR",
        &["web.mashine.dev."],
    ),
    // No such name, no such type, an empty non-terminal.
    ("nope.mashine.dev", "A", "NXDOMAIN", &[]),
    ("a.b.nope.mashine.dev", "A", "NXDOMAIN", &[]),
    ("web.mashine.dev", "TXT", "NOERROR", &[]),
    ("mashine.dev", "MX", "NOERROR", &[]),
    ("below.web.mashine.dev", "TXT", "NOERROR", &[]),
    ("0.0.0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa", "PTR", "NOERROR", &[]),
    // Wildcards.
    ("any.web.mashine.dev", "AAAA", "NOERROR", &["2001:db8:160::1"]),
    ("a.b.any.web.mashine.dev", "AAAA", "NOERROR", &["2001:db8:160::1"]),
    ("any.web.mashine.dev", "MX", "NOERROR", &[]),
    ("x.y.wild.web.mashine.dev", "TXT", "NOERROR", &["\"any\""]),
    ("x.txt.web.mashine.dev", "TXT", "NXDOMAIN", &[]),
    ("other.example.net", "TXT", "NOERROR", &["\"star\""]),
    // Aliases.
    (
        "www2.web.mashine.dev",
        "AAAA",
        "NOERROR",
        &["www.web.mashine.dev.", "web.mashine.dev.", "2001:db8:160::1"],
    ),
    ("gone.web.mashine.dev", "A", "NXDOMAIN", &["nope.mashine.dev."]),
    ("www.web.mashine.dev", "CNAME", "NOERROR", &["web.mashine.dev."]),
    // Another zone of ours, with its own key; at a delegation, what the parent has to say.
    ("host.lab.mashine.dev", "A", "NOERROR", &["192.0.2.9"]),
    ("unsigned.mashine.dev", "DS", "NOERROR", &[]),
    (
        "signed.mashine.dev",
        "DS",
        "NOERROR",
        &["4711 13 2 ABABABABABABABABABABABABABABABABABABABABABABABABABABABAB ABABABAB"],
    ),
];

struct Peer {
    at: SocketAddr,
    tls: SocketAddr,
    view: Arc<View>,
    secret: EntrySecret,
    _views: watch::Sender<Arc<View>>,
    _secrets: watch::Sender<Option<EntrySecret>>,
}

async fn start() -> Peer {
    let secret = EntrySecret::random();
    let view = signed(&secret);
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        listen: vec![local],
        tls_listen: vec![local],
        identity: "entry160".into(),
        // All of the tests' questions come from one network.
        responses_per_second: 0,
        ..Config::default()
    };
    let server = Server::bind(&config).await.unwrap();
    let (at, tls) = (server.addresses().unwrap()[0], server.tls_addresses().unwrap()[0]);
    let (views, view_receiver) = watch::channel(Arc::clone(&view));
    let (secrets, secret_receiver) = watch::channel(Some(secret.clone()));
    tokio::spawn(server.serve(view_receiver, secret_receiver, std::future::pending()));
    Peer { at, tls, view, secret, _views: views, _secrets: secrets }
}

/// DS records of all zones, as text.
fn anchors(peer: &Peer) -> Vec<(String, String)> {
    let mut projector = Projector::default();
    projector.apply(&peer.view, Some(&peer.secret));
    let zones = projector.zones();
    ZONES
        .iter()
        .map(|zone| {
            let keys = zones.zone(&zone.parse().unwrap()).unwrap().keys().expect("signed").ds_set();
            let data = &keys.data()[0];
            let tag = u16::from_be_bytes([data[0], data[1]]);
            let digest: String = data[4..].iter().map(|byte| format!("{byte:02X}")).collect();
            ((*zone).to_owned(), format!("{tag} {} {} {digest}", data[2], data[3]))
        })
        .collect()
}

async fn run(program: &'static str, arguments: Vec<String>) -> String {
    let output = tokio::task::spawn_blocking(move || {
        let output = Command::new(program).args(&arguments).stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{program} (bind9-dnsutils, knot-dnsutils, ldnsutils): {error}"))
    });
    let output = output.await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(ToOwned::to_owned).collect()
}

async fn dig(at: SocketAddr, arguments: &str) -> String {
    let mut all = words(&format!("@127.0.0.1 -p {} +time=5 +tries=2", at.port()));
    all.extend(words(arguments));
    run("dig", all).await
}

async fn kdig(at: SocketAddr, arguments: &str) -> String {
    let mut all = words(&format!("@127.0.0.1 -p {} +time=5", at.port()));
    all.extend(words(arguments));
    run("kdig", all).await
}

/// The data of the records in the answer section that are not signatures.
fn answers(text: &str) -> Vec<String> {
    let section = text.split("ANSWER SECTION").nth(1).unwrap_or_default();
    let records =
        section.lines().skip(1).take_while(|line| !line.trim().is_empty() && !line.starts_with(";;"));
    let data = records.filter_map(|line| {
        let mut fields = line.split_whitespace();
        let kind = fields.by_ref().nth(3)?;
        (kind != "RRSIG").then(|| fields.collect::<Vec<_>>().join(" "))
    });
    data.collect()
}

fn sorted<'a>(data: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    // Programs break long hex at different places, and in different case.
    let mut all: Vec<String> =
        data.into_iter()
            .map(|text| {
                if text.contains('"') { text.to_owned() } else { text.replace(' ', "").to_ascii_lowercase() }
            })
            .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_kdig_and_drill_see_what_is_expected_of_each_shape() {
    let peer = start().await;
    for (name, kind, code, data) in SHAPES {
        let expected = sorted(data.iter().copied());
        let text = dig(peer.at, &format!("{name} {kind}")).await;
        assert!(text.contains(&format!("status: {code}")), "dig {name} {kind}: {text}");
        assert_eq!(sorted(answers(&text).iter().map(String::as_str)), expected, "dig {name} {kind}");
        assert!(!text.contains("RRSIG") && text.contains("flags: qr aa"), "dig {name} {kind}: {text}");
        if data.is_empty() || *code == "NXDOMAIN" {
            assert!(text.contains("AUTHORITY SECTION") && text.contains("SOA"), "dig {name} {kind}: {text}");
        }
        let text = kdig(peer.at, &format!("{name} {kind}")).await;
        assert!(text.contains(&format!("status: {code}")), "kdig {name} {kind}: {text}");
        assert_eq!(sorted(answers(&text).iter().map(String::as_str)), expected, "kdig {name} {kind}");
        let text = run("drill", words(&format!("-p {} @127.0.0.1 {name} {kind}", peer.at.port()))).await;
        assert!(text.contains(&format!("rcode: {code}")), "drill {name} {kind}: {text}");
        assert_eq!(sorted(answers(&text).iter().map(String::as_str)), expected, "drill {name} {kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delv_validates_each_shape_with_our_key() {
    let peer = start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("anchors");
    for (zone, ds) in anchors(&peer) {
        let mut fields = ds.split(' ');
        let numbers = [fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap()].join(" ");
        let anchor =
            format!("trust-anchors {{ {zone}. static-ds {numbers} \"{}\"; }};\n", fields.next().unwrap());
        std::fs::write(&file, anchor).unwrap();
        // delv asks one server: names of other zones and the parent's side of a delegation are unbound's part.
        let in_zone = |name: &&Shape| {
            let nearest = ZONES.iter().filter(|zone| name.0.ends_with(*zone)).max_by_key(|zone| zone.len());
            nearest == Some(&zone.as_str())
        };
        for (name, kind, _, data) in SHAPES.iter().filter(in_zone) {
            let arguments =
                format!("@127.0.0.1 -p {} -a {} +root={zone} {name} {kind}", peer.at.port(), file.display());
            let text = run("delv", words(&arguments)).await;
            assert!(text.contains("fully validated"), "{name} {kind}: {text}");
            for data in *data {
                let plain = |text: &str| text.replace([' ', '\n'], "").to_ascii_lowercase();
                assert!(plain(&text).contains(&plain(data)), "{name} {kind}: {text}");
            }
        }
    }
}

struct Unbound {
    child: Child,
    at: SocketAddr,
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// unbound as a validator that knows nothing but our keys and where we are.
async fn unbound(peer: &Peer, folder: &Path) -> Unbound {
    let at = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut text = format!(
        "server:\n interface: 127.0.0.1@{port}\n port: {port}\n username: \"\"\n chroot: \"\"\n directory: \"{folder}\"\n \
         pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n do-daemonize: no\n do-not-query-localhost: no\n use-caps-for-id: yes\n \
         module-config: \"validator iterator\"\n target-fetch-policy: \"0 0 0 0 0\"\n verbosity: 1\n val-log-level: 2\n \
         local-zone: \"8.b.d.0.1.0.0.2.ip6.arpa.\" nodefault\n",
        port = at.port(),
        folder = folder.display(),
    );
    let anchors = anchors(peer);
    for (zone, ds) in &anchors {
        writeln!(text, " trust-anchor: \"{zone}. DS {ds}\"").unwrap();
    }
    text.push_str("remote-control:\n control-enable: no\n");
    for (zone, _) in &anchors {
        let port = peer.at.port();
        writeln!(text, "stub-zone:\n name: \"{zone}\"\n stub-addr: 127.0.0.1@{port}\n stub-prime: no")
            .unwrap();
    }
    let file = folder.join("unbound.conf");
    std::fs::write(&file, text).unwrap();
    let log = std::fs::File::create(folder.join("unbound.log")).unwrap();
    let child = Command::new("unbound")
        .arg("-d")
        .arg("-c")
        .arg(&file)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("unbound is not installed: apt-get install unbound");
    let unbound = Unbound { child, at };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !dig(at, "web.mashine.dev AAAA").await.contains("status: NOERROR") {
        let log = std::fs::read_to_string(folder.join("unbound.log")).unwrap();
        assert!(Instant::now() < deadline, "unbound does not answer: {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unbound
}

#[tokio::test(flavor = "multi_thread")]
async fn unbound_validates_each_shape_with_mixed_letter_case() {
    let peer = start().await;
    let folder = tempfile::tempdir().unwrap();
    let unbound = unbound(&peer, folder.path()).await;
    let log = || std::fs::read_to_string(folder.path().join("unbound.log")).unwrap();
    for (name, kind, _, data) in SHAPES {
        let text = dig(unbound.at, &format!("+dnssec {name} {kind}")).await;
        // A compact denial is NOERROR to who asks for signatures: its NSEC tells that the name is not there (RFC 9824).
        assert!(text.contains("status: NOERROR"), "{name} {kind}: {text} {}", log());
        assert!(text.contains(" ad;"), "not validated: {name} {kind}: {text} {}", log());
        assert_eq!(
            sorted(answers(&text).iter().map(String::as_str)),
            sorted(data.iter().copied()),
            "{name} {kind}"
        );
    }
    let large = dig(unbound.at, "+dnssec +tcp big.web.mashine.dev TXT").await;
    assert!(large.contains(" ad;") && answers(&large).len() == 20, "{large} {}", log());
    let any = dig(unbound.at, "+dnssec +tcp db.mashine.dev ANY").await;
    assert!(any.contains(" ad;") && answers(&any).contains(&"2001:db8:160::2".to_owned()), "{any} {}", log());
    // It proves to be ours, without signatures below it.
    let keys = dig(unbound.at, "+dnssec mashine.dev DNSKEY").await;
    assert!(keys.contains(" ad;") && keys.contains("257 3 13"), "{keys}");
    for kind in ["CDS", "CDNSKEY", "NSEC"] {
        let text = dig(unbound.at, &format!("+dnssec mashine.dev {kind}")).await;
        assert!(text.contains(" ad;") && !answers(&text).is_empty(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_fit_are_truncated_and_whole_over_tcp_and_tls() {
    let peer = start().await;
    let cut = dig(peer.at, "+ignore +bufsize=4096 big.web.mashine.dev TXT").await;
    assert!(cut.contains("flags: qr aa tc") || cut.contains("flags: qr tc"), "{cut}");
    assert!(answers(&cut).is_empty());
    assert_eq!(answers(&dig(peer.at, "big.web.mashine.dev TXT").await).len(), 20, "dig goes on by TCP");
    assert_eq!(answers(&kdig(peer.at, "+tcp big.web.mashine.dev TXT").await).len(), 20);
    let padded = kdig(peer.tls, "+tls +padding +ednsopt=11 web.mashine.dev AAAA").await;
    assert_eq!(answers(&padded), ["2001:db8:160::1"], "{padded}");
    assert!(padded.contains("PADDING") && padded.contains("(TLS1.3)"), "{padded}");
    let received = padded.split("Received ").nth(1).and_then(|text| text.split(' ').next());
    assert_eq!(received.unwrap().parse::<usize>().unwrap() % 468, 0, "RFC 8467: {padded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_learns_who_answered_and_gets_a_cookie() {
    let peer = start().await;
    let nsid = dig(peer.at, "+nsid +nocookie web.mashine.dev AAAA").await;
    assert!(nsid.contains("(\"entry160\")"), "{nsid}");
    let first = dig(peer.at, "+cookie=0123456789abcdef web.mashine.dev AAAA").await;
    let cookie = first.lines().find_map(|line| line.strip_prefix("; COOKIE: ")).expect("a cookie");
    assert!(cookie.contains("(good)") && cookie.starts_with("0123456789abcdef01000000"), "{first}");
    let no_question = dig(peer.at, "+cookie +header-only web.mashine.dev").await;
    assert!(no_question.contains("status: NOERROR") && no_question.contains("(good)"), "{no_question}");
    let bad = dig(peer.at, "+edns=1 +noednsneg web.mashine.dev AAAA").await;
    assert!(bad.contains("status: BADVERS") && bad.contains("EDNS: version: 0"), "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegation_is_told_with_glue_and_whether_it_is_signed() {
    let peer = start().await;
    let referral = dig(peer.at, "+norec x.unsigned.mashine.dev A").await;
    assert!(referral.contains("status: NOERROR") && !referral.contains("qr aa"), "{referral}");
    assert!(referral.contains("ns.unsigned.mashine.dev.") && referral.contains("192.0.2.53"), "{referral}");
    let unsigned = dig(peer.at, "+norec +dnssec x.unsigned.mashine.dev A").await;
    assert!(unsigned.contains("NSEC\t\\000.unsigned.mashine.dev. NS RRSIG NSEC"), "{unsigned}");
    let signed = dig(peer.at, "+norec +dnssec x.signed.mashine.dev A").await;
    assert!(signed.contains("DS\t4711 13 2") && signed.contains("RRSIG\tDS 13"), "{signed}");
    let away = dig(peer.at, "away.web.mashine.dev A").await;
    assert_eq!(answers(&away), ["www.example.org."], "the rest is somebody else's to tell");
    let circle = dig(peer.at, "loop.web.mashine.dev A").await;
    assert!(circle.contains("status: NOERROR") && answers(&circle).len() < 20, "bounded: {circle}");
}
