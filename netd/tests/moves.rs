//! A machine's /128 moves between hosts while packets flow; topology in `common`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::net::{SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
        let begun = Instant::now();
        let mut sent = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let due = begun + Duration::from_millis(sent);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            socket.send_to(&sent.to_be_bytes(), to).unwrap();
            sent += 1;
        }
        sent
    })
}

fn drain(tap: &mut Tap, seen: &mut BTreeSet<u64>) {
    while let Some(frame) = tap.read() {
        seen.extend(probe(&frame));
    }
}

/// What a migration does to the network, step for step; answers how long the redirect took.
fn flip(
    fleet: &mut Fleet,
    from: &str,
    to: &str,
    epoch: u64,
    old: Tap,
    seen: &mut BTreeSet<u64>,
) -> (Tap, Duration) {
    let next = epoch + 1;
    let mut old = old;
    let mut source = fleet.node(from).connect();
    fleet.node(to).ok(&Request::Prepare(port(next)));
    let mut new = Tap::open(&fleet.node(to).ns, &tap_name(MACHINE));
    drain(&mut old, seen);
    fleet.node(to).ok(&Request::Activate(at(next)));
    let begun = Instant::now();
    source.call(&Request::Redirect { machine: MACHINE.into(), epoch: next, to_host: to.into() }).unwrap();
    let took = begun.elapsed();
    fleet.node(to).ok(&Request::Announce(at(next)));
    drain(&mut new, seen);
    fleet.place(Some(to), next);
    // What the source's queue still held goes along, as the monitor does it.
    drain(&mut old, seen);
    drop(old);
    fleet.node(from).ok(&Request::Remove(at(epoch)));
    drain(&mut new, seen);
    (new, took)
}

fn moves(underlay: Underlay, flips: u64) {
    let mut fleet = Fleet::new(underlay, Ingress::Anchored);
    fleet.place(Some("a"), 1);
    fleet.a.ok(&Request::Prepare(port(1)));
    let mut tap = Tap::open(&fleet.a.ns, &tap_name(MACHINE));
    fleet.a.ok(&Request::Activate(at(1)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut seen = BTreeSet::new();
    // A tunnel's first packets may go before its first handshake is done; wait until the way is warm.
    let warm = sender(&fleet, Arc::clone(&stop));
    common::wait_for("the first probe to arrive", || {
        drain(&mut tap, &mut seen);
        !seen.is_empty()
    });
    stop.store(true, Ordering::Relaxed);
    let last = warm.join().unwrap() - 1;
    common::wait_for("the last probe to arrive", || {
        drain(&mut tap, &mut seen);
        seen.contains(&last)
    });
    seen.clear();

    stop.store(false, Ordering::Relaxed);
    let sending = sender(&fleet, Arc::clone(&stop));
    let mut latencies = Vec::new();
    for epoch in 1..=flips {
        let (from, to) = if epoch % 2 == 1 { ("a", "b") } else { ("b", "a") };
        let took;
        (tap, took) = flip(&mut fleet, from, to, epoch, tap, &mut seen);
        latencies.push(took);
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sending.join().unwrap();
    thread::sleep(Duration::from_millis(200));
    drain(&mut tap, &mut seen);
    latencies.sort();
    let received = u64::try_from(seen.len()).unwrap();
    println!(
        "{underlay:?}: {flips} flips, {sent} probes, {} lost; redirect: median {:?}, 99th {:?}, worst {:?}",
        sent - received,
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
        latencies[latencies.len() - 1]
    );
    let missing: Vec<u64> = (0..sent).filter(|n| !seen.contains(n)).take(20).collect();
    assert_eq!(received, sent, "lost, the first: {missing:?}");
}

#[test]
fn no_probe_is_lost_over_200_moves() {
    moves(Underlay::Plain, 200);
}

#[test]
fn no_probe_is_lost_over_20_moves_inside_wireguard() {
    moves(Underlay::Wireguard, 20);
}
