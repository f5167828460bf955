//! What must hold when a guest lies, netd dies or somebody sends nonsense; topology in `common`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{CLIENT, Fleet, GUEST, GUEST_MAC, MACHINE, Tap, port, udp_frame, wait_for};
use netd::api::{Instance, Mac, Phase, Port, Request, tap_name};
use netd::config::{Ingress, Underlay};

#[test]
fn netd_process() {
    common::netd_process();
}

fn at(epoch: u64) -> Instance {
    Instance { machine: MACHINE.into(), epoch }
}

/// A fleet with the machine running at `a`.
fn running(ingress: Ingress) -> (Fleet, Tap) {
    let mut fleet = Fleet::new(Underlay::Plain, ingress);
    fleet.place(Some("a"), 1);
    fleet.a.ok(&Request::Prepare(port(1)));
    let tap = Tap::open(&fleet.a.ns, &tap_name(MACHINE));
    fleet.a.ok(&Request::Activate(at(1)));
    (fleet, tap)
}

fn redirect_to_b() -> Request {
    Request::Redirect { machine: MACHINE.into(), epoch: 2, to_host: "b".into() }
}

/// What arrives at the client within a moment.
fn heard(fleet: &Fleet, send: impl FnOnce()) -> Vec<String> {
    let socket = fleet.client.within(|| UdpSocket::bind("[::]:4000").unwrap()).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    send();
    let mut all = Vec::new();
    let mut buffer = [0; 64];
    while let Ok((count, _)) = socket.recv_from(&mut buffer) {
        all.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
    }
    all
}

#[test]
fn a_guest_speaks_only_with_its_own_addresses() {
    let (fleet, mut tap) = running(Ingress::Anchored);
    let other: Ipv6Addr = "2001:db8:1::99".parse().unwrap();
    let all = heard(&fleet, || {
        tap.write(&udp_frame(GUEST_MAC, other, CLIENT, b"another machine's address"));
        tap.write(&udp_frame(Mac([2, 0, 0, 0, 0, 9]), GUEST, CLIENT, b"another MAC"));
        tap.write(&udp_frame(GUEST_MAC, "fe80::1".parse().unwrap(), CLIENT, b"the gateway's address"));
        tap.write(&udp_frame(
            GUEST_MAC,
            "fd12:3456:789a::2".parse().unwrap(),
            CLIENT,
            b"a neighbour's address",
        ));
        tap.write(&udp_frame(GUEST_MAC, GUEST, CLIENT, b"its own"));
    });
    assert_eq!(all, ["its own"]);
}

#[test]
fn accounts_do_not_reach_each_other_on_private_addresses() {
    let (fleet, mut tap) = running(Ingress::Anchored);
    let neighbour = |id: &str, account: &str, n: u16| Port {
        machine_id: id.into(),
        tap: tap_name(id),
        mac: Mac([2, 0, 0, 0, 1, u8::try_from(n).unwrap()]),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n),
        private6: Some(format!("{account}::{n}").parse().unwrap()),
        ipv4: None,
        account: format!("{account}::/48").parse().unwrap(),
        ..port(1)
    };
    let friend = neighbour("friend", "fd12:3456:789a", 2);
    let stranger = neighbour("stranger", "fd99:9999:9999", 3);
    let mut taps = Vec::new();
    for port in [&friend, &stranger] {
        fleet.a.ok(&Request::Prepare(port.clone()));
        taps.push(Tap::open(&fleet.a.ns, &port.tap));
        fleet.a.ok(&Request::Activate(Instance { machine: port.machine_id.clone(), epoch: 1 }));
    }
    let mine = port(1).private6.unwrap();
    for (from, to) in [
        (mine, friend.private6.unwrap()),
        (mine, stranger.private6.unwrap()),
        (GUEST, stranger.private6.unwrap()),
        (GUEST, stranger.ipv6),
        (mine, stranger.ipv6),
    ] {
        tap.write(&udp_frame(GUEST_MAC, from, to, format!("{from}>{to}").as_bytes()));
    }
    std::thread::sleep(Duration::from_millis(200));
    let got = |tap: &mut Tap| -> Vec<String> {
        let frames = std::iter::from_fn(|| tap.read());
        let udp = frames.filter(|f| f.len() > 62 && f[12..14] == [0x86, 0xdd] && f[20] == 17);
        udp.map(|f| String::from_utf8_lossy(&f[62..]).into_owned()).collect()
    };
    assert_eq!(got(&mut taps[0]), [format!("{mine}>{}", friend.private6.unwrap())]);
    assert_eq!(
        got(&mut taps[1]),
        [format!("{GUEST}>{}", stranger.ipv6)],
        "public addresses alone cross accounts"
    );
}

#[test]
fn a_machine_does_not_reach_the_hosts_below_it() {
    let (fleet, mut tap) = running(Ingress::Anchored);
    for to in ["fd00:a::2", "fd00:b::2", "fd6d::a"] {
        tap.write(&udp_frame(GUEST_MAC, GUEST, to.parse().unwrap(), b"let me in"));
    }
    std::thread::sleep(Duration::from_millis(100));
    let rules = fleet.a.ns.exec("nft list table inet mashines");
    let dropped: u64 = rules
        .lines()
        .filter_map(|line| line.split_once("counter packets "))
        .filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!(dropped >= 3, "{rules}");
}

#[test]
fn a_killed_netd_finds_everything_again() {
    let (mut fleet, tap) = running(Ingress::Anchored);
    let before = (fleet.a.route(GUEST), fleet.a.status().ports);
    fleet.a.kill();
    fleet.a.ns.ip(&format!("-6 route del {GUEST} table 109"));
    fleet.a.ns.ip("-6 route add 2001:db8:1::dead table 109 dev lo");
    fleet.a.ns.ip("tuntap add mt-nobody mode tap");
    fleet.a.start();
    assert_eq!((fleet.a.route(GUEST), fleet.a.status().ports), before);
    assert_eq!(fleet.a.route("2001:db8:1::dead".parse().unwrap()), "", "nobody owns that route");
    assert!(!fleet.a.ns.ip("link").contains("mt-nobody"), "nobody owns that tap");

    // A redirect outlives netd, its port, and the ignorance of the records.
    fleet.a.ok(&redirect_to_b());
    fleet.a.kill();
    drop(tap);
    fleet.a.start();
    assert!(fleet.a.route(GUEST).contains("dst fd00:b::2"), "{}", fleet.a.route(GUEST));
    fleet.a.ok(&Request::Remove(at(1)));
    fleet.a.kill();
    fleet.a.start();
    assert!(fleet.a.route(GUEST).contains("dst fd00:b::2"), "{}", fleet.a.route(GUEST));
    assert_eq!(fleet.a.status().redirects.len(), 1);
    fleet.place(Some("b"), 2);
    assert_eq!(fleet.a.status().redirects.len(), 0);
    assert!(fleet.a.route(GUEST).contains("dst fd00:b::2"));
}

#[test]
fn a_restart_tells_the_kernel_nothing_that_it_knows() {
    let (mut fleet, _tap) = running(Ingress::Anchored);
    fleet.entry.kill();
    fleet.a.kill();
    let log = |node: &common::Node| {
        let path = std::env::temp_dir().join(format!("{}.monitor", node.ns.name));
        let file = std::fs::File::create(&path).unwrap();
        let child = std::process::Command::new("ip")
            .args(["-n", &node.ns.name, "-6", "monitor", "route"])
            .stdout(file)
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        (child, path)
    };
    let monitors = [log(&fleet.entry), log(&fleet.a)];
    fleet.entry.start();
    fleet.a.start();
    std::thread::sleep(Duration::from_millis(200));
    for (mut child, path) in monitors {
        child.kill().unwrap();
        child.wait().unwrap();
        let said = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for known in ["2001:db8:1:", "table 110", "fdaa::3"] {
            assert!(!said.contains(known), "{known}: {said}");
        }
    }
}

#[test]
fn orders_out_of_date_are_refused_and_change_nothing() {
    let (fleet, _tap) = running(Ingress::Anchored);
    fleet.a.ok(&redirect_to_b());
    for (request, word) in [
        (Request::Activate(at(1)), "moved to host b"),
        (Request::Prepare(port(2)), "moved to host b"),
        (Request::Announce(at(1)), "moved to host b"),
        (Request::Redirect { machine: MACHINE.into(), epoch: 1, to_host: "b".into() }, "epoch"),
        (Request::Redirect { machine: MACHINE.into(), epoch: 2, to_host: "entry".into() }, "out of date"),
        (Request::Redirect { machine: MACHINE.into(), epoch: 3, to_host: "a".into() }, "this host"),
        (Request::Redirect { machine: MACHINE.into(), epoch: 3, to_host: "z".into() }, "no host"),
        (Request::Redirect { machine: "unknown".into(), epoch: 3, to_host: "b".into() }, "no machine"),
        (Request::Activate(Instance { machine: "unknown".into(), epoch: 1 }), "prepare"),
    ] {
        let error = fleet.a.call(&request).unwrap_err().to_string();
        assert!(error.contains(word), "{request:?}: {error}");
    }
    assert!(fleet.a.route(GUEST).contains("dst fd00:b::2"));
    fleet.a.ok(&redirect_to_b());
    assert!(
        fleet.entry.call(&Request::Prepare(port(9))).unwrap_err().to_string().contains("runs no machines")
    );
}

#[test]
fn a_tap_that_a_monitor_holds_is_not_removed() {
    let (fleet, tap) = running(Ingress::Anchored);
    let error = fleet.a.call(&Request::Remove(at(1))).unwrap_err().to_string();
    assert!(error.contains("held by process"), "{error}");
    assert_eq!(fleet.a.status().ports[MACHINE].phase, Phase::Active);
    assert!(fleet.a.route(GUEST).contains("dev mt-"));
    drop(tap);
    fleet.a.ok(&Request::Remove(at(1)));
    fleet.a.ok(&Request::Remove(at(1)));
    assert!(!fleet.a.ns.ip("link").contains("mt-"));
    assert!(!fleet.a.ns.exec("nft list table inet mashines").contains(&GUEST.to_string()));
}

#[test]
fn an_abandoned_move_leaves_no_trace_at_the_destination() {
    let (fleet, _tap) = running(Ingress::Anchored);
    let before = fleet.b.route(GUEST);
    fleet.b.ok(&Request::Prepare(port(2)));
    assert_eq!(fleet.b.route(GUEST), before, "a tap alone leads nowhere");
    let tap = Tap::open(&fleet.b.ns, &tap_name(MACHINE));
    fleet.b.ok(&Request::Activate(at(2)));
    assert!(fleet.b.route(GUEST).contains("dev mt-"));
    fleet.b.ok(&Request::Suppress(at(2)));
    assert_eq!(fleet.b.route(GUEST), before);
    drop(tap);
    fleet.b.ok(&Request::Remove(at(2)));
    assert_eq!(fleet.b.status().ports.len(), 0);
    assert_eq!(fleet.b.route(GUEST), before);
}

#[test]
fn nonsense_on_the_socket_is_answered_and_survived() {
    let (fleet, _tap) = running(Ingress::Anchored);
    for bytes in
        [&b"{}\n"[..], b"\n", b"\xff\xfe\n", b"{\"op\":\"prepare\",\"epoch\":-1}\n", b"{\"op\":\"dance\"}\n"]
    {
        let mut stream = UnixStream::connect(&fleet.a.config.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"ok\":false,");
    }
    let mut endless = UnixStream::connect(&fleet.a.config.socket).unwrap();
    let _ = endless.write_all(&vec![b'x'; 1 << 20]);
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&fleet.a.config.socket)).collect();
    drop(silent);
    wait_for("netd to answer again", || fleet.a.call(&Request::Status).is_ok());
}

#[test]
fn the_host_that_announces_answers_for_the_address_on_a_shared_l2() {
    let (fleet, _tap) = running(Ingress::Ndp { interface: "wan".into() });
    let proxies = || fleet.a.ns.ip("-6 neigh show proxy");
    fleet.a.ok(&Request::Announce(at(1)));
    assert!(proxies().contains(&GUEST.to_string()), "{}", proxies());
    assert_eq!(fleet.a.ns.exec("sysctl -n net.ipv6.neigh.wan.proxy_delay").trim(), "0");
    fleet.a.ok(&redirect_to_b());
    assert!(
        proxies().contains(&GUEST.to_string()),
        "until the records follow, packets that come here are forwarded"
    );
    let mut fleet = fleet;
    fleet.place(Some("b"), 2);
    assert!(!fleet.a.ns.ip("-6 neigh show proxy").contains(&GUEST.to_string()));
}

#[test]
fn teardown_removes_everything_and_says_what_it_could_not() {
    let (mut fleet, tap) = running(Ingress::Anchored);
    fleet.a.kill();
    let config = fleet.a.config.clone();
    let teardown = |config: netd::NetdConfig| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(netd::teardown(&config)).map_err(|error| error.to_string())
    };
    let again = config.clone();
    let held = fleet.a.ns.within(move || teardown(config)).join().unwrap();
    assert!(held.unwrap_err().contains("is still held by"), "the tap is the one thing that stays");
    let links = fleet.a.ns.ip("link");
    assert!(!links.contains("gx") && links.contains("mt-"), "{links}");
    assert!(!fleet.a.ns.ip("-6 rule").contains("109"));
    let routes = fleet.a.ns.ip("-6 route show table all");
    assert!(!routes.contains("proto 109"), "{routes}");
    assert_eq!(fleet.a.ns.exec("nft list tables").trim(), "");
    drop(tap);
    fleet.a.ns.within(move || teardown(again)).join().unwrap().unwrap();
    assert!(!fleet.a.ns.ip("link").contains("mt-"));
}

/// Frames that arrive at the tap within a moment and go to that TCP port.
fn knocks(tap: &mut Tap, port: u16, knock: impl FnOnce()) -> usize {
    knock();
    std::iter::from_fn(|| tap.read())
        .filter(|frame| {
            frame.get(12..14) == Some(&[0x86, 0xdd])
                && frame.get(20) == Some(&6)
                && frame.get(56..58) == Some(&port.to_be_bytes()[..])
        })
        .count()
}

fn connects(from: &common::Namespace, port: u16) -> bool {
    let to = std::net::SocketAddr::new(GUEST.into(), port);
    from.within(move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
        .join()
        .unwrap()
}

#[test]
fn an_entry_answers_machines_web_ports_and_reaches_them_itself() {
    let (mut fleet, mut tap) = running(Ingress::Anchored);
    let door = fleet.entry.ns.within(|| std::net::TcpListener::bind("[::]:443").unwrap()).join().unwrap();
    let place = std::thread::spawn(move || door.accept().unwrap().0.local_addr().unwrap());
    assert!(connects(&fleet.client, 443), "the entry answers in the machine's place");
    assert_eq!(place.join().unwrap().ip(), GUEST, "and knows which machine was meant");
    assert!(
        knocks(&mut tap, 8443, || assert!(!connects(&fleet.client, 8443))) > 0,
        "other ports are the machine's"
    );
    assert!(
        knocks(&mut tap, 443, || assert!(!connects(&fleet.entry.ns, 443))) > 0,
        "what the entry sends reaches the machine"
    );
    fleet.entry.kill();
    fleet.entry.config.web_ports = vec![443];
    fleet.entry.start();
    let rules = fleet.entry.ns.ip("-6 rule show");
    assert_eq!(rules.matches("lookup 111").count(), 1, "a rule that is wanted no more goes: {rules}");
    fleet.entry.kill();
    fleet.entry.config.web_ports = vec![];
    fleet.entry.start();
    assert!(!fleet.entry.ns.ip("-6 route show table all").contains("table 111"), "and so does the route");
}
