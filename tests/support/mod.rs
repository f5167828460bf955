//! What tests of several crates need. They include it by its path: it is a file, and no crate that all would wait for.

// Each test program uses a part of it, and a test that cannot go on panics.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long anything may take on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The ports that are given out lie below those that Linux takes for outgoing connections (32,768 and more).
const FIRST: u16 = 10_000;
/// The ports of one share, and the shares.
const SHARE: u16 = 250;
const SHARES: u16 = 80;

/// A process's share: nobody else has it while this lives, by a socket's name that only one can have.
struct Share {
    _name: UnixListener,
    next: u16,
    end: u16,
}

impl Share {
    fn take() -> Self {
        (0..SHARES)
            .find_map(|n| {
                let address = SocketAddr::from_abstract_name(format!("mashines-test-ports-{n}")).unwrap();
                let name = UnixListener::bind_addr(&address).ok()?;
                let next = FIRST + n * SHARE;
                Some(Self { _name: name, next, end: next + SHARE })
            })
            .expect("all shares of ports are taken: fewer test programs at once")
    }
}

/// A port that nothing listens on, by TCP or UDP, until whoever asked does: no other test's process is given it while this one lives, and this one
/// is given it once.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// So many in a row; the first of them.
pub fn free_ports(count: u16) -> u16 {
    static SHARES_HELD: Mutex<Vec<Share>> = Mutex::new(Vec::new());
    let mut held = SHARES_HELD.lock().unwrap();
    loop {
        match held.last_mut().filter(|share| share.next + count <= share.end) {
            None => held.push(Share::take()),
            Some(share) => {
                let first = share.next;
                share.next += count;
                if (first..first + count).all(is_free) {
                    return first;
                }
            }
        }
    }
}

/// A program that no test of ours started may have it.
fn is_free(port: u16) -> bool {
    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
        .into_iter()
        .all(|local| TcpListener::bind((local, port)).is_ok() && UdpSocket::bind((local, port)).is_ok())
}
