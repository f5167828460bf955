//! A machine's /128 moves between hosts while packets flow; topology in `common`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::net::{SocketAddrV6, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Fleet, GUEST, MACHINE, Tap, port, probe};
use netd::api::{Instance, Request, tap_name};
use netd::config::{Ingress, Underlay};

#[test]
fn netd_process() {
    common::netd_process();
}

fn at(epoch: u64) -> Instance {
    Instance { machine: MACHINE.into(), epoch }
}

/// Sends numbered probes at 1,000 a second until told to stop; answers how many.
fn sender(fleet: &Fleet, stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    fleet.client.within(move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddrV6::new(GUEST, 4000, 0, 0);
        let mut due = Instant::now();
        let mut sent = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A sender that was kept from running does not make up for it: a burst would overflow queues that are not netd's.
            due = due.max(Instant::now() - Duration::from_millis(1)) + Duration::from_millis(1);
            socket.send_to(&sent.to_be_bytes(), to).unwrap();
            sent += 1;
        }
        sent
    })
}

/// A guest that reads its tap all the time and remembers the probes.
struct Guest {
    stop: Arc<AtomicBool>,
    reader: thread::JoinHandle<()>,
}

type Seen = Arc<Mutex<BTreeSet<u64>>>;

impl Guest {
    fn start(mut tap: Tap, seen: &Seen) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(seen));
        let reader = thread::spawn(move || {
            // Once more after the order to stop: what the queue still holds goes along, as the monitor does it.
            let mut last = false;
            while !last {
                last = stopped.load(Ordering::Relaxed);
                while let Some(frame) = tap.read() {
                    seen.lock().unwrap().extend(probe(&frame));
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, reader }
    }

    /// Reads what is left and lets the tap go.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().unwrap();
    }
}

/// What a migration does to the network, step for step; answers how long the redirect took.
fn flip(fleet: &mut Fleet, from: &str, to: &str, epoch: u64, old: Guest, seen: &Seen) -> (Guest, Duration) {
    let next = epoch + 1;
    let mut source = fleet.node(from).connect();
    fleet.node(to).ok(&Request::Prepare(port(next)));
    let new = Guest::start(Tap::open(&fleet.node(to).ns, &tap_name(MACHINE)), seen);
    fleet.node(to).ok(&Request::Activate(at(next)));
    let begun = Instant::now();
    source.call(&Request::Redirect { machine: MACHINE.into(), epoch: next, to_host: to.into() }).unwrap();
    let took = begun.elapsed();
    fleet.node(to).ok(&Request::Announce(at(next)));
    fleet.place(Some(to), next);
    old.end();
    fleet.node(from).ok(&Request::Remove(at(epoch)));
    (new, took)
}

fn moves(underlay: Underlay, flips: u64) {
    let mut fleet = Fleet::new(underlay, Ingress::Anchored);
    fleet.place(Some("a"), 1);
    fleet.a.ok(&Request::Prepare(port(1)));
    let seen = Seen::default();
    let mut guest = Guest::start(Tap::open(&fleet.a.ns, &tap_name(MACHINE)), &seen);
    fleet.a.ok(&Request::Activate(at(1)));
    // A tunnel's first packets wait for its first handshake; begin when the way is warm.
    let stop = Arc::new(AtomicBool::new(false));
    let warm = sender(&fleet, Arc::clone(&stop));
    common::wait_for("the first probe to arrive", || !seen.lock().unwrap().is_empty());
    stop.store(true, Ordering::Relaxed);
    let last = warm.join().unwrap() - 1;
    common::wait_for("the last probe to arrive", || seen.lock().unwrap().contains(&last));
    seen.lock().unwrap().clear();

    stop.store(false, Ordering::Relaxed);
    let sending = sender(&fleet, Arc::clone(&stop));
    let mut latencies = Vec::new();
    for epoch in 1..=flips {
        let (from, to) = if epoch % 2 == 1 { ("a", "b") } else { ("b", "a") };
        let took;
        (guest, took) = flip(&mut fleet, from, to, epoch, guest, &seen);
        latencies.push(took);
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sending.join().unwrap();
    thread::sleep(Duration::from_millis(500));
    guest.end();
    latencies.sort();
    let seen = seen.lock().unwrap();
    let missing: Vec<u64> = (0..sent).filter(|n| !seen.contains(n)).collect();
    fleet.print_logs();
    println!(
        "{underlay:?}: {flips} moves, {sent} probes, {} lost; redirect: median {:?}, 99th {:?}, worst {:?}",
        missing.len(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        latencies[latencies.len() - 1]
    );
    assert!(
        missing.is_empty(),
        "{} of {sent} lost, the first: {:?}",
        missing.len(),
        &missing[..missing.len().min(20)]
    );
}

#[test]
fn no_probe_is_lost_over_200_moves() {
    moves(Underlay::Plain, 200);
}

#[test]
fn no_probe_is_lost_over_20_moves_inside_wireguard() {
    moves(Underlay::Wireguard, 20);
}
