//! Dynamic updates from end to end: the owner's key from the API, real clients, our name server, control, and back by the change stream.
//!
//! nsupdate says what a client is told in each case; certbot and lego get certificates from Pebble, which asks our name server.

#[path = "../../../dns/tests/programs/mod.rs"]
mod programs;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::MACHINES;
use crate::support::people::{People, launch};
use mashines_dns::{Config, Server};
use mashines_fleet::api::{self, DnsRecords, UpdateKeyMade};
use mashines_fleet::host_api::{ENTRY_SECRET, EntrySecretAnswer};
use mashines_fleet::pki::{Ca, PeerName};
use mashines_fleet::replica::{ReplicaConfig, follow};
use mashines_fleet::rpc::Client;
use mashines_fleet::sealed::EntrySecret;
use programs::{Peer, eventually, free_port, kdig, run, short};
use serde_json::json;
use tokio::sync::watch;

/// A fleet with machines `web` and `other` of bob's, and an entry's name server that follows it.
struct World {
    people: People,
    dns: SocketAddr,
    key: UpdateKeyMade,
    directory: tempfile::TempDir,
    _secret: watch::Sender<Option<EntrySecret>>,
}

impl World {
    async fn up() -> Self {
        let people = People::up(&["hosta"]).await;
        let bob = people.of("bob");
        for name in ["web", "other"] {
            bob.post::<_, api::Machine>(MACHINES, &launch(name)).await.unwrap();
        }
        let path = format!("{MACHINES}/web/dns/update-key");
        let key: UpdateKeyMade = bob.post(&path, &json!({})).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let control = Client::to_control(&people.entry, &people.fleet.url).unwrap();
        let secret: EntrySecretAnswer = control.get(ENTRY_SECRET).await.unwrap();
        let (views, _following) = follow(ReplicaConfig {
            control: vec![people.fleet.url.clone()],
            tls: people.entry.clone(),
            file: directory.path().join("replica.json"),
        });
        let config = Config { listen: vec!["127.0.0.1:0".parse().unwrap()], threads: 1, ..Config::default() };
        let server = Server::bind(&config).await.unwrap().with_control(vec![control]);
        let dns = server.addresses().unwrap()[0];
        let (sender, secrets) = watch::channel(EntrySecret::from_hex(&secret.secret));
        tokio::spawn(async move { server.serve(views, secrets, std::future::pending()).await.unwrap() });
        let world = Self { people, dns, key, directory, _secret: sender };
        world
            .blocking(|dns| {
                eventually("the key's machine is known", || {
                    (!short(dns, &["web.mashine.test", "AAAA"]).is_empty()).then_some(())
                })
            })
            .await;
        world
    }

    /// Other people's programs block.
    async fn blocking<T: Send + 'static>(&self, with: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let dns = self.dns;
        tokio::task::spawn_blocking(move || with(dns)).await.unwrap()
    }

    fn tsig(&self) -> String {
        format!("{}:{}:{}", self.key.algorithm, self.key.name, self.key.secret)
    }

    /// What nsupdate says: nothing when it went well.
    async fn nsupdate(&self, tsig: &str, lines: &str) -> String {
        let (tsig, script) = (
            tsig.to_owned(),
            format!(
                "check-names off\nserver {} {}\nzone mashine.test\n{lines}\nsend\n",
                self.dns.ip(),
                self.dns.port()
            ),
        );
        self.blocking(move |_| nsupdate(&tsig, &script)).await
    }

    async fn challenge(&self) -> Vec<String> {
        self.blocking(|dns| short(dns, &["_acme-challenge.web.mashine.test", "TXT"])).await
    }
}

fn nsupdate(tsig: &str, script: &str) -> String {
    let mut child = Command::new("nsupdate")
        .args(["-t", "15", "-y", tsig])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

const AT: &str = "_acme-challenge.web.mashine.test.";

#[tokio::test(flavor = "multi_thread")]
async fn nsupdate_changes_the_challenge_at_once_and_nothing_else() {
    let world = World::up().await;
    let tsig = world.tsig();
    assert_eq!(
        world
            .nsupdate(&tsig, &format!("update add {AT} 60 TXT one\nupdate add {AT} 60 TXT \"two words\""))
            .await,
        ""
    );
    // No wait: an update that was answered is served.
    assert_eq!(world.challenge().await, ["\"one\"", "\"two words\""]);
    let records: DnsRecords =
        world.people.of("bob").get(&format!("{MACHINES}/web/dns/records")).await.unwrap();
    assert_eq!(records.records.len(), 2, "the owner sees them as their own");
    assert_eq!(world.nsupdate(&tsig, &format!("prereq yxrrset {AT} TXT one\nprereq yxrrset {AT} TXT \"two words\"\nupdate delete {AT} TXT one")).await, "");
    assert_eq!(world.challenge().await, ["\"two words\""]);
    for (lines, says) in [
        (format!("prereq nxdomain {AT}\nupdate add {AT} 60 TXT x"), "YXDOMAIN"),
        (format!("prereq nxrrset {AT} TXT\nupdate add {AT} 60 TXT x"), "YXRRSET"),
        (format!("prereq yxrrset {AT} TXT one\nupdate add {AT} 60 TXT x"), "NXRRSET"),
        (format!("prereq yxdomain below.{AT}\nupdate add {AT} 60 TXT x"), "NXDOMAIN"),
        ("update add web.mashine.test. 60 TXT x".to_owned(), "REFUSED"),
        ("update add www.web.mashine.test. 60 A 192.0.2.1".to_owned(), "REFUSED"),
        (format!("update add {AT} 60 MX 10 mail.example.org."), "REFUSED"),
        ("update add _acme-challenge.other.mashine.test. 60 TXT x".to_owned(), "REFUSED"),
        ("update delete other.mashine.test. AAAA".to_owned(), "REFUSED"),
    ] {
        let said = world.nsupdate(&tsig, &lines).await;
        assert!(said.contains(says), "{lines}: {said:?}");
    }
    assert_eq!(world.challenge().await, ["\"two words\""], "what was refused changed nothing");
    assert_eq!(world.nsupdate(&tsig, &format!("update delete {AT}")).await, "");
    assert_eq!(world.challenge().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_told_apart_and_a_revoked_one_is_no_key() {
    let world = World::up().await;
    let add = format!("update add {AT} 60 TXT x");
    let other = format!("hmac-sha256:{}:{}", world.key.name, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert!(world.nsupdate(&other, &add).await.contains("BADSIG"));
    let nobody = format!("hmac-sha256:other.mashine.test.:{}", world.key.secret);
    assert!(world.nsupdate(&nobody, &add).await.contains("BADKEY"));
    let zone = world.blocking({
        let tsig = world.tsig();
        move |dns| {
            nsupdate(
                &tsig,
                &format!(
                    "server {} {}\nzone example.org\nupdate add x.example.org. 60 TXT x\nsend\n",
                    dns.ip(),
                    dns.port()
                ),
            )
        }
    });
    assert!(zone.await.contains("NOTAUTH"));
    let bob = world.people.of("bob");
    bob.delete::<api::Done>(&format!("{MACHINES}/web/dns/update-key")).await.unwrap();
    let tsig = world.tsig();
    let until = tokio::time::Instant::now() + programs::PATIENCE;
    while !world.nsupdate(&tsig, &add).await.contains("BADKEY") {
        assert!(tokio::time::Instant::now() < until, "the key is still taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_fails_while_control_is_down_and_works_again_after() {
    let mut world = World::up().await;
    let tsig = world.tsig();
    assert_eq!(world.nsupdate(&tsig, &format!("update add {AT} 60 TXT before")).await, "");
    world.people.fleet.stop_control();
    assert!(world.nsupdate(&tsig, &format!("update add {AT} 60 TXT meanwhile")).await.contains("SERVFAIL"));
    assert_eq!(world.challenge().await, ["\"before\""], "answers go on");
    world.people.fleet.restart_control().await;
    assert_eq!(world.nsupdate(&tsig, &format!("update add {AT} 60 TXT after")).await, "");
    assert_eq!(world.challenge().await, ["\"after\"", "\"before\""]);
}

/// Pebble, with its random refusals on, which asks our name server.
fn pebble(dns: SocketAddr, directory: &Path) -> (Peer, String) {
    let ca = Ca::create("pebble").unwrap();
    let identity = ca.issue(&PeerName::control(), &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    identity.save(&directory.join("pebble")).unwrap();
    std::fs::write(directory.join("ca.pem"), ca.certificate_pem()).unwrap();
    let (port, management) = (free_port(), free_port());
    let files = directory.join("pebble");
    let find = |contains: &str| {
        let all = std::fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path());
        let mut fits =
            all.filter(|path| std::fs::read_to_string(path).unwrap_or_default().contains(contains));
        fits.find(|path| !path.ends_with("ca.pem")).unwrap().display().to_string()
    };
    let (certificate, key) = (find("BEGIN CERTIFICATE"), find("PRIVATE KEY"));
    let peer = Peer::start("env", port, |here| {
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"), "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": certificate, "privateKey": key, "httpPort": 5002, "tlsPort": 5001,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        std::fs::write(here.join("config.json"), config.to_string()).unwrap();
        vec![
            // Else it waits for up to fifteen seconds before each look.
            "PEBBLE_VA_NOSLEEP=1".into(),
            // certbot gives up when a nonce is refused twice in a row, which here is nobody's fault.
            "PEBBLE_WFE_NONCEREJECT=0".into(),
            "pebble".into(),
            "-config".into(),
            here.join("config.json").display().to_string(),
            "-dnsserver".into(),
            dns.to_string(),
        ]
    });
    eventually("pebble listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (peer, format!("https://localhost:{port}/dir"))
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_and_lego_get_certificates_with_the_owners_key() {
    let world = World::up().await;
    let (here, key, dns) = (world.directory.path().to_owned(), world.key.clone(), world.dns);
    world
        .blocking(move |_| {
            let (_pebble, url) = pebble(dns, &here);
            let ca = here.join("ca.pem").display().to_string();
            certbot(&here, &key, dns, &url, &ca);
            lego(&here, &key, dns, &url, &ca);
        })
        .await;
    assert_eq!(world.challenge().await, Vec::<String>::new(), "both put away what they had put");
}

fn certbot(here: &Path, key: &UpdateKeyMade, dns: SocketAddr, url: &str, ca: &str) {
    let ini = here.join("rfc2136.ini");
    let text = format!(
        "dns_rfc2136_server = {}\ndns_rfc2136_port = {}\ndns_rfc2136_name = {}\ndns_rfc2136_secret = {}\ndns_rfc2136_algorithm = HMAC-SHA256\n",
        dns.ip(),
        dns.port(),
        key.name,
        key.secret
    );
    std::fs::write(&ini, text).unwrap();
    let file = |name: &str| here.join(name).display().to_string();
    let arguments = [
        // Debian's certbot wants Debian's modules, and no others that a test's clients may need.
        "--unset=PYTHONPATH".into(),
        "REQUESTS_CA_BUNDLE=".to_owned() + ca,
        "certbot".into(),
        "certonly".into(),
        "--non-interactive".into(),
        "--agree-tos".into(),
        "--register-unsafely-without-email".into(),
        "--server".into(),
        url.into(),
        "--authenticator".into(),
        "dns-rfc2136".into(),
        "--dns-rfc2136-credentials".into(),
        ini.display().to_string(),
        "--dns-rfc2136-propagation-seconds".into(),
        "0".into(),
        "--config-dir".into(),
        file("certbot"),
        "--work-dir".into(),
        file("certbot-work"),
        "--logs-dir".into(),
        file("certbot-logs"),
        "-d".into(),
        "web.mashine.test".into(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (content, said) = run("env", &arguments);
    assert!(content && here.join("certbot/live/web.mashine.test/fullchain.pem").exists(), "{said}");
}

fn lego(here: &Path, key: &UpdateKeyMade, dns: SocketAddr, url: &str, ca: &str) {
    let path = here.join("lego").display().to_string();
    let arguments = [
        format!("LEGO_CA_CERTIFICATES={ca}"),
        format!("RFC2136_NAMESERVER={dns}"),
        format!("RFC2136_TSIG_KEY={}", key.name),
        format!("RFC2136_TSIG_SECRET={}", key.secret),
        "RFC2136_TSIG_ALGORITHM=hmac-sha256.".into(),
        "RFC2136_POLLING_INTERVAL=1".into(),
        "RFC2136_SEQUENCE_INTERVAL=1".into(),
        "lego".into(),
        "--accept-tos".into(),
        "--email".into(),
        "a@example.org".into(),
        "--server".into(),
        url.into(),
        "--path".into(),
        path.clone(),
        "--dns".into(),
        "rfc2136".into(),
        "--dns.resolvers".into(),
        dns.to_string(),
        "--dns.disable-cp".into(),
        "-d".into(),
        "web.mashine.test".into(),
        "-d".into(),
        "*.web.mashine.test".into(),
        "run".into(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (content, said) = run("env", &arguments);
    assert!(content && here.join("lego/certificates/web.mashine.test.crt").exists(), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_signed_with_an_owners_key_is_answered_signed() {
    let world = World::up().await;
    let tsig = world.tsig();
    let said = world.blocking(move |dns| kdig(dns, &["-y", &tsig, "web.mashine.test", "AAAA"])).await;
    assert!(said.contains("TSIG") && said.contains("NOERROR"), "{said}");
}
