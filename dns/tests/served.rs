//! Over real sockets, asked with `dig` (package `bind9-dnsutils`).

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{config, entry, fleet, view, web};
use mashines_dns::{Config, Server};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};

async fn start(
    views: watch::Receiver<Arc<mashines_fleet::view::View>>,
) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<anyhow::Result<()>>) {
    // On a slow machine somebody asks the same more than 200 times until the answer changes, and would not be answered.
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let config = Config { listen, responses_per_second: 0, ..Config::default() };
    let server = Server::bind(&config).await.unwrap();
    let address = server.addresses().unwrap()[0];
    let (stop, stopped) = oneshot::channel::<()>();
    let (_, secrets) = watch::channel(None);
    let task = tokio::spawn(server.serve(views, secrets, async move {
        let _ = stopped.await;
    }));
    (address, stop, task)
}

async fn dig(server: SocketAddr, arguments: &'static [&'static str]) -> String {
    let output = tokio::task::spawn_blocking(move || {
        Command::new("dig")
            .args(["@127.0.0.1", "-p", &server.port().to_string(), "+time=3", "+tries=1"])
            .args(arguments)
            .output()
            .expect("dig is not installed: apt-get install bind9-dnsutils")
    })
    .await
    .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_gets_answers_over_udp_and_tcp() {
    let (_views, receiver) = watch::channel(fleet());
    let (at, stop, task) = start(receiver).await;
    assert_eq!(dig(at, &["+short", "web.mashine.dev", "AAAA"]).await, "2001:db8:160::1\n");
    assert_eq!(dig(at, &["+short", "+tcp", "web.mashine.dev", "A"]).await, "198.51.100.160\n");
    assert_eq!(dig(at, &["+short", "-x", "2001:db8:160::1"]).await, "web.mashine.dev.\n");
    assert!(dig(at, &["+short", "web.mashine.dev", "SSHFP"]).await.starts_with("4 2 045940BB"));
    let missing = dig(at, &["nope.mashine.dev", "AAAA"]).await;
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");
    let two =
        dig(at, &["+tcp", "+keepopen", "+short", "web.mashine.dev", "AAAA", "db.mashine.dev", "AAAA"]).await;
    assert_eq!(two, "2001:db8:160::1\n2001:db8:160::2\n", "two questions on one connection");
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_machine_is_named_within_a_tenth_of_a_second() {
    let (views, receiver) = watch::channel(view(vec![config("2001:db8:160::/48"), entry()]));
    let (at, _stop, _task) = start(receiver).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    let question =
        b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07mashine\x03dev\x00\x00\x1c\x00\x01";
    let mut reply = [0u8; 512];
    let mut answers = async || {
        socket.send(question).await.unwrap();
        socket.recv(&mut reply).await.unwrap();
        reply[7]
    };
    let mut took = Vec::new();
    for _launch in 0..5 {
        views.send_replace(view(vec![config("2001:db8:160::/48"), entry()]));
        while answers().await > 0 {}
        views.send_replace(view(vec![config("2001:db8:160::/48"), entry(), web()]));
        let since = Instant::now();
        while answers().await == 0 {}
        took.push(since.elapsed());
    }
    took.sort_unstable();
    assert!(took[2] < Duration::from_millis(100), "the median of {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_does_not_keep_others_out() {
    let (_views, receiver) = watch::channel(fleet());
    let (at, _stop, _task) = start(receiver).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(at).await.unwrap());
    }
    // This source has its 32; those above were closed at once, and UDP is not concerned.
    let mut last = silent.pop().unwrap();
    let _ = last.write_all(b"\x00").await;
    let read = tokio::time::timeout(Duration::from_secs(2), last.read(&mut [0u8; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "closed, not left hanging: {read:?}");
    assert_eq!(dig(at, &["+short", "db.mashine.dev", "AAAA"]).await, "2001:db8:160::2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_that_say_nothing_leave_others_unharmed() {
    // Both ends are in this process, and 1,024 files are what many systems begin with.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (_views, receiver) = watch::channel(fleet());
    let (at, _stop, _task) = start(receiver).await;
    // Each from another address of the loopback network, so that only the total counts.
    let mut silent = Vec::new();
    for n in 0..2000u32 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let [_, a, b, c] = (0x7f01_0000 + n).to_be_bytes();
        socket.bind(SocketAddr::from(([127, a, b, c], 0))).unwrap();
        silent.push(socket.connect(at).await.unwrap());
    }
    let since = Instant::now();
    assert_eq!(dig(at, &["+short", "+tcp", "web.mashine.dev", "AAAA"]).await, "2001:db8:160::1\n");
    assert_eq!(dig(at, &["+short", "web.mashine.dev", "AAAA"]).await, "2001:db8:160::1\n");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_much_is_told_to_come_by_tcp_and_a_cookie_lifts_the_limit() {
    let (_views, receiver) = watch::channel(fleet());
    let config =
        Config { listen: vec!["127.0.0.1:0".parse().unwrap()], responses_per_second: 5, ..Config::default() };
    let server = Server::bind(&config).await.unwrap();
    let at = server.addresses().unwrap()[0];
    let (_, secrets) = watch::channel(None);
    tokio::spawn(server.serve(receiver, secrets, std::future::pending()));
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    let plain =
        b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07mashine\x03dev\x00\x00\x1c\x00\x01"
            .to_vec();
    let with_cookie = |cookie: &[u8]| {
        let length = u8::try_from(cookie.len()).unwrap();
        let opt = [b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00", &[length + 4, 0, 10, 0, length][..], cookie]
            .concat();
        let mut packet = [plain.as_slice(), &opt].concat();
        packet[11] = 1;
        packet
    };
    // Answers within a moment: how many were whole, how many empty and truncated.
    let burst = async |packet: &[u8]| {
        for _ in 0..40 {
            socket.send(packet).await.unwrap();
        }
        let (mut whole, mut cut, mut last) = (0, 0, Vec::new());
        let mut reply = [0u8; 512];
        while let Ok(Ok(length)) =
            tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut reply)).await
        {
            let is_cut = reply[2] & 0x02 != 0;
            assert_eq!(reply[7], u8::from(!is_cut));
            whole += usize::from(!is_cut);
            cut += usize::from(is_cut);
            last = reply[..length].to_vec();
        }
        (whole, cut, last)
    };
    let (whole, cut, _) = burst(&plain).await;
    assert!((5..30).contains(&whole) && cut > 0 && whole + cut < 40, "{whole} whole, {cut} truncated");
    let (_, _, last) = burst(&with_cookie(b"12345678")).await;
    // The option is the last of the answer, truncated or not: 8 bytes of ours, 16 of the server's.
    let cookie = &last[last.len() - 24..];
    let (whole, cut, _) = burst(&with_cookie(cookie)).await;
    assert_eq!((whole, cut), (40, 0), "with a good cookie");
}
