//! A box answers its machines' questions for names from its own copy of the records, whatever becomes of control: real processes in a network
//! namespace of the test's own, where the resolver's address and port 53 are nobody else's.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fleet;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fleet::{Fleet, Node, eventually, free_port};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mashines_fleet::api::{self, DEFAULT_APP};
use mashines_fleet::resolver::RESOLVER;
use serde_json::{Value, json};

/// How long one answer may take.
const WAIT: Duration = Duration::from_secs(5);

const INSIDE: &str = "MASHINES_TEST_INSIDE";

const BOBS_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR";

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs this test once more where the network is its own, as that network's root; whether this is that run.
fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        ip(&format!("-6 route add local {RESOLVER} dev lo"));
        return true;
    }
    let mut unshare = Command::new("unshare");
    unshare.arg("--net");
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    assert!(unshare.status().unwrap().success(), "see above");
    false
}

/// A question as a machine asks it: over UDP from that address, and again by TCP when told to.
fn ask(from: IpAddr, name: &str, kind: RecordType, by_tcp: bool) -> Option<Message> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question.metadata.recursion_desired = true;
    let bytes = question.to_vec().unwrap();
    let to = SocketAddr::new(RESOLVER.into(), 53);
    let reply = if by_tcp { over_tcp(from, to, &bytes) } else { over_udp(from, to, &bytes) }.ok()?;
    let reply = Message::from_vec(&reply).ok()?;
    (reply.metadata.id == question.metadata.id).then_some(reply)
}

fn over_udp(from: IpAddr, to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.send(question)?;
    let mut reply = [0; 4096];
    socket.recv(&mut reply).map(|length| reply[..length].to_vec())
}

fn over_tcp(from: IpAddr, to: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), WAIT)?;
    socket.set_read_timeout(Some(WAIT))?;
    let mut stream = std::net::TcpStream::from(socket);
    let length = u16::try_from(question.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).map(|()| reply)
}

/// An image of nothing: a machine that is recorded and never started needs no more.
fn write_image(images: &Path) {
    let image = images.join("tiny");
    std::fs::create_dir_all(&image).unwrap();
    for file in ["kernel", "initrd"] {
        std::fs::write(image.join(file), b"x").unwrap();
    }
    let manifest = json!({"name": "tiny", "digest": "sha256:00", "kernel": "kernel", "initrd": "initrd"});
    std::fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
}

/// A box that runs machines and is an entry. netd, which leads its machines' packets to the resolver, is tested where it has a kernel of its own.
fn join(fleet: &Fleet, at: &Path) -> Node {
    let images = at.join("images");
    write_image(&images);
    let sections = format!(
        "[host]\nlisten = \"127.0.0.1:{}\"\nimages_dir = \"{}\"\nvmm_binary = \"/bin/false\"\nguest_dns = [\"127.0.0.1\"]\n\
         [netd]\nunderlay = \"plain\"\n[gateway]\nssh_listen = [\"127.0.0.1:0\"]\n[dns]\nlisten = [\"127.0.0.1:53\"]\nthreads = 1\n",
        free_port(),
        images.display()
    );
    fleet.join(at, "box", "\"host\", \"entry\"", &sections)
}

async fn launch(fleet: &Fleet) -> api::Machine {
    let body = json!({"name": "web", "config": {"image": "tiny"}, "skip_launch": true});
    let path = format!("/v1/apps/{DEFAULT_APP}/machines");
    let until = tokio::time::Instant::now() + fleet::PATIENCE;
    loop {
        match fleet.api.post(&path, &body).await {
            Ok(machine) => return machine,
            // The host has not reported yet.
            Err(error) => assert!(tokio::time::Instant::now() < until, "no machine: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An address of the account's network, which this box gets.
fn address_of(node: &Node, account: &str) -> IpAddr {
    let prefix: Ipv6Addr = eventually("the copy has the account", || {
        node.kept()["accounts"][account]["private_prefix"].as_str()?.parse().ok()
    });
    let address = Ipv6Addr::from(u128::from(prefix) | 0x77);
    ip(&format!("addr add {address}/128 dev lo nodad"));
    address.into()
}

/// Everything that machines of two accounts, and nobody's, are told.
fn check(ann: IpAddr, bob: IpAddr, machine: &api::Machine) {
    let name = format!("web.vm.{DEFAULT_APP}.internal.");
    for by_tcp in [false, true] {
        let ask = |from, name: &str, kind| eventually("an answer", || ask(from, name, kind, by_tcp));
        // The resolver may be a moment behind the copy that was looked into.
        let own = eventually("the machine is found", || {
            let reply = ask(ann, &name, RecordType::AAAA);
            (!reply.answers.is_empty()).then_some(reply)
        });
        let data: Vec<String> = own.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(data, [machine.private_ip.to_string()], "{own}");
        let others = ask(bob, &name, RecordType::AAAA);
        assert_eq!(others.metadata.response_code, ResponseCode::NXDomain, "{others}");
        // The box's own name server, which is the world here, may be a moment behind its resolver.
        eventually("the world's names are found", || {
            let reply = ask(bob, "mashine.dev.", RecordType::SOA);
            (reply.metadata.response_code == ResponseCode::NoError && reply.answers.len() == 1).then_some(())
        });
    }
    let strangers = ask(Ipv6Addr::LOCALHOST.into(), &name, RecordType::AAAA, false).unwrap();
    assert_eq!(strangers.metadata.response_code, ResponseCode::Refused, "{strangers}");
}

#[test]
fn a_box_answers_its_machines_from_its_copy_while_control_is_dead() {
    if !in_a_network_of_its_own("a_box_answers_its_machines_from_its_copy_while_control_is_dead") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (mut fleet, mut node, machine) = runtime.block_on(async {
        let fleet = Fleet::found(at, &[], "sign_up = \"open\"", "").await;
        let mut node = join(&fleet, at);
        node.start();
        let machine = launch(&fleet).await;
        let newcomer = json!({"public_key": BOBS_KEY, "name": "bob", "source": "192.0.2.1"});
        let _: Value = node.client(&fleet.url).post("/internal/v1/sign-up", &newcomer).await.unwrap();
        (fleet, node, machine)
    });
    let machine_id = machine.id.to_string();
    eventually("the copy on disk has the machine", || node.kept()["machines"].get(&machine_id).map(drop));
    let [ann, bob] = ["admin", "bob"].map(|account| address_of(&node, account));
    eventually("the box has all that it answers from", || node.has_secret().then_some(()));
    check(ann, bob, &machine);

    // From its copy alone.
    fleet.control.kill();
    check(ann, bob, &machine);
    node.kill();
    assert!(ask(ann, "_apps.internal.", RecordType::TXT, false).is_none(), "nobody answers");
    node.start();
    let back =
        || ask(ann, "_apps.internal.", RecordType::TXT, false).filter(|reply| !reply.answers.is_empty());
    eventually("the box is back without control", back);
    check(ann, bob, &machine);
}
