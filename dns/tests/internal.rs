//! The resolver for machines: their own account's names, and everything else from a real resolver behind it (unbound).

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod programs;

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use common::{config, machine, put};
use mashines_dns::internal::Sockets;
use mashines_fleet::view::View;
use programs::{Peer, eventually, free_port, kdig, short};
use serde_json::json;
use tokio::sync::watch;

struct Ours {
    /// Questions come from an address of ann's.
    anns: SocketAddr,
    /// Questions come from nobody's.
    nobodys: SocketAddr,
    // Ends before the facts do.
    _runtime: tokio::runtime::Runtime,
    _view: watch::Sender<Arc<View>>,
}

fn ours(forward: Vec<SocketAddr>) -> Ours {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Whoever asks from ::1 asks from this prefix.
    let account = |id: &str, prefix: &str| {
        put(format!("accounts/{id}"), json!({"id": id, "ssh_keys": [], "private_prefix": prefix}))
    };
    let mut changes = vec![config("2001:db8:160::/48"), account("ann", "::"), account("bob", "fd00:2::")];
    changes.push(machine(0xa, "web", "2001:db8:160::1", json!({})));
    changes.push(machine(0xb, "db", "2001:db8:160::2", json!({"account": "bob", "app": "db"})));
    let many = (0x100..0x180).map(|n| {
        let net = json!({"ipv6": format!("2001:db8:160::{n:x}"), "private6": format!("fd00:1::{n:x}"), "mac": "02:00:00:00:00:01", "ssh_port": null});
        machine(n, &format!("m{n}"), "::", json!({"app": "many", "net": net}))
    });
    changes.extend(many);
    let (view, views) = watch::channel(common::view(changes));
    let [anns, nobodys] = ["[::1]:0", "127.0.0.1:0"].map(|at| {
        let _within = runtime.enter();
        let sockets =
            eventually("a port that is free for UDP and TCP", || Sockets::bind(at.parse().unwrap()).ok());
        let address = sockets.address().unwrap();
        let (views, forward) = (views.clone(), forward.clone());
        runtime.spawn(async move { sockets.serve(views, forward).await.unwrap() });
        address
    });
    Ours { anns, nobodys, _view: view, _runtime: runtime }
}

fn unbound() -> Peer {
    let port = free_port();
    let peer = Peer::start("unbound", port, |directory| {
        let here = directory.display();
        let big =
            (0..40).map(|n| format!("    local-data: 'big.example. TXT \"{n} {}\"'\n", "x".repeat(100)));
        let text = format!(
            "server:\n    interface: 127.0.0.1@{port}\n    directory: \"{here}\"\n    chroot: \"\"\n    username: \"\"\n    pidfile: \"\"\n    use-syslog: no\n\
             \x20   do-daemonize: no\n    num-threads: 1\n    local-zone: \"example.\" static\n    local-data: \"www.example. A 192.0.2.80\"\n{}\
             remote-control:\n    control-enable: no\n",
            big.collect::<String>()
        );
        std::fs::write(directory.join("unbound.conf"), text).unwrap();
        vec!["-d".into(), "-c".into(), directory.join("unbound.conf").display().to_string()]
    });
    eventually("unbound answers", || {
        (short(peer.address(), &["www.example", "A"]) == ["192.0.2.80"]).then_some(())
    });
    peer
}

#[test]
fn a_machine_asks_for_its_accounts_names_and_for_everybody_elses() {
    let unbound = unbound();
    // The first resolver of the list does not answer.
    let dead: SocketAddr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let ours = ours(vec![dead, unbound.address()]);
    let web = eventually("the directory is there", || {
        Some(short(ours.anns, &["0000000000000a.vm.web.internal", "AAAA"])).filter(|said| !said.is_empty())
    });
    assert_eq!(web, ["fd00::9"]);
    assert!(kdig(ours.anns, &["db.internal", "AAAA"]).contains("NXDOMAIN"), "bob's");
    let nothing = kdig(ours.anns, &["web.internal", "A"]);
    assert!(nothing.contains("NOERROR") && nothing.contains("SOA"), "{nothing}");

    for transport in ["+notcp", "+tcp"] {
        assert_eq!(short(ours.anns, &["www.example", "A", transport]), ["192.0.2.80"], "{transport}");
        let said = kdig(ours.anns, &["web.internal", "AAAA", transport]);
        assert!(said.contains("flags: qr aa rd ra") || said.contains("qr aa rd ra"), "{said}");
    }
    assert!(kdig(ours.anns, &["nope.example", "A"]).contains("NXDOMAIN"), "the other's answer is passed on");
    // What does not fit comes by TCP, ours and the other's.
    assert_eq!(short(ours.anns, &["big.example", "TXT"]).len(), 40);
    assert_eq!(short(ours.anns, &["many.internal", "AAAA"]).len(), 64);
    assert!(kdig(ours.anns, &["many.internal", "AAAA", "+ignore", "+noedns"]).contains("tc"));
    assert!(kdig(ours.anns, &["example", "AXFR"]).contains("REFUSED"));
}

#[test]
fn whoever_is_no_machine_is_refused_and_a_dead_resolver_is_told() {
    let dead: SocketAddr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let ours = ours(vec![dead]);
    eventually("the directory is there", || {
        (!short(ours.anns, &["web.internal", "AAAA"]).is_empty()).then_some(())
    });
    for name in ["web.internal", "www.example"] {
        assert!(kdig(ours.nobodys, &[name, "AAAA", "+notcp"]).contains("REFUSED"), "{name}");
    }
    assert!(kdig(ours.anns, &["www.example", "A"]).contains("SERVFAIL"));
}

/// A resolver that takes questions and never answers any.
fn silent() -> (UdpSocket, TcpListener, SocketAddr) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    let address = udp.local_addr().unwrap();
    (udp, tcp, address)
}

#[test]
fn whoever_asks_and_asks_has_a_bounded_number_of_questions_and_connections_open() {
    let (udp, _tcp, address) = silent();
    let ours = ours(vec![address]);
    eventually("the directory is there", || {
        (!short(ours.anns, &["web.internal", "AAAA"]).is_empty()).then_some(())
    });
    // A hundred at once: sixteen of them reach the other, the rest is told at once that it will not do.
    let asking = UdpSocket::bind("[::1]:0").unwrap();
    asking.connect(ours.anns).unwrap();
    let question =
        |id: u16| [&id.to_be_bytes()[..], b"\x01\0\0\x01\0\0\0\0\0\0\x07example\0\0\x01\0\x01"].concat();
    for id in 0..100 {
        asking.send(&question(id)).unwrap();
    }
    for socket in [&udp, &asking] {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let mut buffer = [0; 512];
    for _ in 0..16 {
        udp.recv(&mut buffer).unwrap();
    }
    assert_eq!(
        short(ours.anns, &["web.internal", "AAAA"]),
        ["fd00::9"],
        "what is ours is answered all the while"
    );
    for _ in 0..100 {
        asking.recv(&mut buffer).unwrap();
        assert_eq!(buffer[3] & 0x0f, 2, "SERVFAIL, to some when the other was silent for long enough");
    }
    udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(udp.recv(&mut buffer).is_err(), "nothing but those sixteen came here");

    let connected: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(ours.anns).unwrap()).collect();
    let open = || {
        connected.iter().filter(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut byte = [0];
            let mut stream = *stream;
            stream.read(&mut byte).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        })
    };
    eventually("the connections above the share are closed", || (open().count() == 8).then_some(()));
}
