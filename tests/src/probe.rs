//! A UDP probe at a fixed rate: which packets came back, and how long nothing did.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::netns::{Place, Topology};

/// What a probe saw.
#[derive(Clone, Debug, Default)]
pub struct ProbeReport {
    /// Packets sent.
    pub sent: u64,
    /// Packets that came back, each counted once.
    pub received: u64,
    /// The longest time between two arrivals.
    pub largest_gap: Duration,
    /// From the time at which a packet was due to its arrival: half of all were back in this time …
    pub usual_delay: Duration,
    /// … and all within this. Long before and after a gap it tells of a machine that falls behind.
    pub largest_delay: Duration,
    /// Sequence numbers that never came back, the first few.
    pub missing: Vec<u64>,
}

impl ProbeReport {
    /// Packets that never came back.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl std::fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [gap, usual, largest] =
            [self.largest_gap, self.usual_delay, self.largest_delay].map(|time| time.as_secs_f64() * 1e3);
        write!(
            f,
            "largest gap {gap:.1} ms, delay {usual:.1} to {largest:.1} ms, lost {} of {}",
            self.lost(),
            self.sent
        )
    }
}

/// A probe at work.
pub struct Probe {
    every: Duration,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Arrivals>>,
}

struct Arrivals {
    /// By sequence number: when it came, since the probe's start.
    at: Vec<Option<Duration>>,
    largest_gap: Duration,
}

/// The sending is over and nothing has come back for this long: what has not come back is lost. What comes late is not.
const GRACE: Duration = Duration::from_secs(2);

impl Probe {
    /// Sends a numbered packet to a UDP echo every `every`, from a place.
    pub fn start(topology: &Topology, from: Place, to: SocketAddr, every: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let socket = open(topology.clone(), from, to)?;
        let receiver = socket.try_clone()?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (stop_sending, stop_receiving) = (stop.clone(), stop.clone());
        let begun = Instant::now();
        let sender = std::thread::spawn(move || send(&socket, begun, every, &stop_sending));
        let receiver = std::thread::spawn(move || receive(&receiver, begun, &stop_receiving));
        Ok(Self { every, stop, sender, receiver })
    }

    /// Stops sending, waits for stragglers, reports.
    pub fn finish(self) -> Result<ProbeReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the probe's sender died"))??;
        let arrivals = self.receiver.join().map_err(|_| anyhow::anyhow!("the probe's receiver died"))??;
        let mut missing = Vec::new();
        let mut delays = Vec::new();
        for number in 0..sent {
            match arrivals.at.get(usize::try_from(number)?).copied().flatten() {
                Some(at) => delays.push(at.saturating_sub(due(number, self.every))),
                None => missing.push(number),
            }
        }
        delays.sort_unstable();
        let received = u64::try_from(delays.len())?;
        missing.truncate(16);
        Ok(ProbeReport {
            sent,
            received,
            largest_gap: arrivals.largest_gap,
            usual_delay: delays.get(delays.len() / 2).copied().unwrap_or_default(),
            largest_delay: delays.last().copied().unwrap_or_default(),
            missing,
        })
    }
}

/// A connected socket of a namespace: opened by a thread that lives there.
fn open(topology: Topology, from: Place, to: SocketAddr) -> Result<UdpSocket> {
    let opened = std::thread::spawn(move || -> Result<UdpSocket> {
        topology.enter(from)?;
        let any: SocketAddr = if to.is_ipv6() { ([0; 8], 0).into() } else { ([0; 4], 0).into() };
        let socket = UdpSocket::bind(any)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
        socket.connect(to).with_context(|| format!("cannot send to {to}"))?;
        Ok(socket)
    });
    opened.join().map_err(|_| anyhow::anyhow!("the thread that opens the socket died"))?
}

/// When a packet is sent, since the probe's start.
fn due(number: u64, every: Duration) -> Duration {
    Duration::from_nanos(u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).saturating_mul(number))
}

fn send(socket: &UdpSocket, begun: Instant, every: Duration, stop: &AtomicBool) -> Result<u64> {
    let mut number: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        // A full queue of our own or an ICMP error is a lost packet, which the count of arrivals shows.
        let _ = socket.send(&number.to_le_bytes());
        number += 1;
        if let Some(wait) = due(number, every).checked_sub(begun.elapsed()) {
            std::thread::sleep(wait);
        }
    }
    Ok(number)
}

fn receive(socket: &UdpSocket, begun: Instant, stop: &AtomicBool) -> Result<Arrivals> {
    let mut arrivals = Arrivals { at: Vec::new(), largest_gap: Duration::ZERO };
    let mut last: Option<Instant> = None;
    let mut stopped_at: Option<Instant> = None;
    let mut packet = [0_u8; 64];
    loop {
        if stop.load(Ordering::Relaxed) {
            let stopped = *stopped_at.get_or_insert_with(Instant::now);
            if last.map_or(stopped, |last| last.max(stopped)).elapsed() > GRACE {
                return Ok(arrivals);
            }
        }
        let Ok(length) = socket.recv(&mut packet) else { continue };
        let Some(number) = packet.get(..length).and_then(|p| p.try_into().ok()).map(u64::from_le_bytes)
        else {
            continue;
        };
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            arrivals.largest_gap = arrivals.largest_gap.max(now - last);
        }
        let index = usize::try_from(number)?;
        if arrivals.at.len() <= index {
            arrivals.at.resize(index + 1, None);
        }
        if let Some(at) = arrivals.at.get_mut(index) {
            at.get_or_insert(now - begun);
        }
    }
}
