//! Who reaches a host's resolver, and how fast; topology in `common`, and machines with network stacks of their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{
    CLIENT, Fleet, GUEST, GUEST_MAC, MACHINE, Namespace, RESOLVER, Tap, port, udp_frame_to_port, wait_for,
};
use netd::api::{GATEWAY_V6, Instance, Mac, Port, Request, tap_name};
use netd::config::{Ingress, Underlay};
use socket2::{Domain, Protocol, Socket, Type};

/// How long one answer may take. Most questions here must stay without one, so it is waited for often.
const PATIENCE: Duration = Duration::from_millis(400);

/// How long it may take on a busy machine, where it must come.
const LONG: Duration = Duration::from_secs(5);

/// How often a question is asked that must be answered: the first one meets a neighbour that is not known yet.
const TRIES: usize = 50;

#[test]
fn netd_process() {
    common::netd_process();
}

/// A machine: a namespace whose interface is joined to its tap.
struct Machine {
    ns: Namespace,
    stop: Arc<AtomicBool>,
    wire: Option<JoinHandle<()>>,
}

impl Machine {
    fn start(fleet: &Fleet, port: &Port, addresses: &[Ipv6Addr]) -> Self {
        let at = Instance { machine: port.machine_id.clone(), epoch: port.epoch };
        fleet.a.ok(&Request::Prepare(port.clone()));
        let mut host = Tap::open(&fleet.a.ns, &port.tap);
        fleet.a.ok(&Request::Activate(at));
        let ns =
            Namespace::new(format!("{}-{}", fleet.a.ns.name, &port.machine_id[port.machine_id.len() - 2..]));
        let mut own = Tap::open(&ns, "eth0");
        ns.ip(&format!("link set eth0 address {} mtu {} up", port.mac, port.mtu));
        for address in addresses {
            ns.ip(&format!("addr add {address}/128 dev eth0 nodad"));
        }
        ns.ip(&format!("-6 route add default via {GATEWAY_V6} dev eth0"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let wire = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                while let Some(frame) = own.read() {
                    host.write(&frame);
                }
                while let Some(frame) = host.read() {
                    own.write(&frame);
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self { ns, stop, wire: Some(wire) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.wire.take().map(JoinHandle::join);
    }
}

/// Sockets at an address that no interface has, as the resolver's are.
fn bind(at: SocketAddr, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).unwrap();
    socket.set_freebind_v6(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    // As the resolver's: on a busy machine it is not read for a while.
    socket.set_recv_buffer_size(1 << 20).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}

/// Answers everything at `port` with what was asked, for as long as the test runs.
fn answer(ns: &Namespace, port: u16) {
    let at = SocketAddr::new(RESOLVER.into(), port);
    ns.within(move || {
        let udp: UdpSocket = bind(at, Type::DGRAM, Protocol::UDP).into();
        let tcp = bind(at, Type::STREAM, Protocol::TCP);
        tcp.listen(16).unwrap();
        let tcp: TcpListener = tcp.into();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..count], from);
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 512];
                let count = stream.read(&mut buffer).unwrap_or_default();
                let _ = stream.write_all(&buffer[..count]);
            }
        });
    })
    .join()
    .unwrap();
}

/// Whether a question over UDP is answered, by whom it was asked.
fn answers_udp(ns: &Namespace, from: Ipv6Addr, port: u16) -> bool {
    answers_within(ns, from, port, PATIENCE)
}

fn answers_within(ns: &Namespace, from: Ipv6Addr, port: u16, patience: Duration) -> bool {
    ns.within(move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect((RESOLVER, port)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 16];
        let asked = socket.send(b"who?").and_then(|_| socket.recv(&mut buffer));
        asked.is_ok_and(|count| &buffer[..count] == b"who?")
    })
    .join()
    .unwrap()
}

fn answers_tcp(ns: &Namespace, port: u16) -> bool {
    ns.within(move || {
        let to = SocketAddr::new(RESOLVER.into(), port);
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"who?")?;
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).map(|()| buffer)
        };
        ask().is_ok_and(|buffer: [u8; 4]| &buffer == b"who?")
    })
    .join()
    .unwrap()
}

fn sooner_or_later(what: &str, ask: impl FnMut() -> bool) {
    assert!(std::iter::repeat_with(ask).take(TRIES).any(|answered| answered), "{what}");
}

/// The packets that the first rule of `input` with these words has counted.
fn counted(fleet: &Fleet, words: &str) -> u64 {
    let rules = fleet.a.ns.exec("nft list chain inet mashines input");
    let rule = rules.lines().find(|line| line.contains(words) && line.contains("counter packets "));
    let rest = rule.and_then(|rule| rule.split_once("counter packets ")).map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{words}: {rules}"))
}

const CLOSED: &str = "iifname != \"lo\" ip6 daddr fdaa::3";

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(Underlay::Plain, Ingress::Anchored);
    fleet.place(Some("a"), 1);
    answer(&fleet.a.ns, 53);
    fleet
}

#[test]
fn a_machine_reaches_port_53_of_its_resolver_and_nothing_else_of_it() {
    let mut fleet = fleet();
    answer(&fleet.a.ns, 54);
    let port = port(1);
    let private = port.private6.unwrap();
    let machine = Machine::start(&fleet, &port, &[GUEST, private]);
    for from in [GUEST, private] {
        sooner_or_later("a question over UDP", || answers_udp(&machine.ns, from, 53));
    }
    sooner_or_later("a question over TCP", || answers_tcp(&machine.ns, 53));
    machine.ns.ip("addr add fd12:3456:789a::2/128 dev eth0 nodad");
    let neighbours = "fd12:3456:789a::2".parse().unwrap();
    assert!(!answers_udp(&machine.ns, neighbours, 53), "from an address that is not its own");
    machine.ns.ip("addr del fd12:3456:789a::2/128 dev eth0");
    assert!(!answers_udp(&machine.ns, GUEST, 54) && !answers_tcp(&machine.ns, 54), "at another port");

    // A netd that died and came back: what it finds it keeps, what is missing it makes.
    fleet.a.kill();
    assert!(answers_within(&machine.ns, GUEST, 53, LONG), "it does not depend on a living netd");
    fleet.a.ns.ip("-6 route del local fdaa::3 table 109");
    assert!(!answers_udp(&machine.ns, GUEST, 53));
    fleet.a.start();
    sooner_or_later("after a restart", || {
        answers_udp(&machine.ns, GUEST, 53) && answers_tcp(&machine.ns, 53)
    });
    let status = fleet.a.status();
    assert_eq!(status.routes.get("fdaa::3/128").map(String::as_str), Some("this host"), "{status:?}");
    assert!(!fleet.entry.status().routes.contains_key("fdaa::3/128"), "an entry runs no machines");
}

#[test]
fn nobody_outside_reaches_a_hosts_resolver() {
    let fleet = fleet();
    let machine = Machine::start(&fleet, &port(1), &[GUEST]);
    sooner_or_later("its machine does", || answers_udp(&machine.ns, GUEST, 53));
    // From the network between the hosts, and from the world behind it, by whoever would send such packets there.
    fleet.entry.ns.ip("-6 route add fdaa::3 via fd00:a::2");
    fleet.client.ip("-6 route add fdaa::3 via 2001:db8:c::1");
    for (ns, from) in [(&fleet.entry.ns, "fd00:e::1".parse().unwrap()), (&fleet.client, CLIENT)] {
        let before = counted(&fleet, CLOSED);
        assert!(!answers_udp(ns, from, 53) && !answers_tcp(ns, 53), "{from}");
        wait_for("what it sent to be there and dropped", || counted(&fleet, CLOSED) >= before + 2);
    }
    // From another host, through the overlay.
    fleet.entry.ns.ip("-6 route replace fdaa::3 encap ip6 id 7 src fd00:e::1 dst fd00:a::2 dev gx");
    let before = counted(&fleet, CLOSED);
    assert!(
        !answers_udp(&fleet.entry.ns, "fd00:e::1".parse().unwrap(), 53) && !answers_tcp(&fleet.entry.ns, 53)
    );
    wait_for("what came by the overlay to be dropped", || counted(&fleet, CLOSED) >= before + 2);
}

#[test]
fn an_answer_to_a_question_of_before_a_move_follows_the_machine() {
    let mut fleet = Fleet::new(Underlay::Plain, Ingress::Anchored);
    fleet.place(Some("a"), 1);
    let at = SocketAddr::new(RESOLVER.into(), 53);
    let resolver =
        fleet.a.ns.within(move || UdpSocket::from(bind(at, Type::DGRAM, Protocol::UDP))).join().unwrap();
    resolver.set_read_timeout(Some(LONG)).unwrap();
    fleet.a.ok(&Request::Prepare(port(1)));
    let mut before = Tap::open(&fleet.a.ns, &tap_name(MACHINE));
    fleet.a.ok(&Request::Activate(Instance { machine: MACHINE.into(), epoch: 1 }));
    let private = port(1).private6.unwrap();
    before.write(&udp_frame_to_port(GUEST_MAC, private, RESOLVER, 53, b"who?"));
    let mut question = [0; 16];
    let (_, machine) = resolver.recv_from(&mut question).unwrap();
    assert_eq!(machine, SocketAddr::new(private.into(), 4000));

    fleet.b.ok(&Request::Prepare(port(2)));
    let mut after = Tap::open(&fleet.b.ns, &tap_name(MACHINE));
    fleet.b.ok(&Request::Activate(Instance { machine: MACHINE.into(), epoch: 2 }));
    fleet.a.ok(&Request::Redirect { machine: MACHINE.into(), epoch: 2, to_host: "b".into() });
    resolver.send_to(b"it is me", machine).unwrap();
    let is_the_answer = |frame: &Vec<u8>| {
        frame.get(22..38) == Some(&RESOLVER.octets()[..]) && frame.get(62..) == Some(&b"it is me"[..])
    };
    wait_for("the answer at the other host", || {
        std::iter::from_fn(|| after.read()).any(|frame| is_the_answer(&frame))
    });
}

#[test]
fn a_machine_that_asks_at_full_speed_takes_no_answer_from_another() {
    let fleet = fleet();
    let loud = Port {
        machine_id: "loud02".into(),
        tap: tap_name("loud02"),
        mac: Mac([2, 0, 0, 0, 0, 9]),
        ipv6: "2001:db8:1::9".parse().unwrap(),
        private6: None,
        ipv4: None,
        ..port(1)
    };
    let quiet = Machine::start(&fleet, &port(1), &[GUEST]);
    let flood = Machine::start(&fleet, &loud, &[loud.ipv6]);
    sooner_or_later("before", || answers_udp(&quiet.ns, GUEST, 53) && answers_udp(&flood.ns, loud.ipv6, 53));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sender = flood.ns.within(move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        while !stopped.load(Ordering::Relaxed) {
            let _ = socket.send_to(b"flood", (RESOLVER, 53));
        }
    });
    let limit = "limit rate over";
    wait_for("the flood to be limited", || counted(&fleet, limit) > 1000);
    let answered = (0..20).filter(|_| answers_within(&quiet.ns, GUEST, 53, LONG)).count();
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    assert_eq!(answered, 20, "every question of the other is answered");
}
