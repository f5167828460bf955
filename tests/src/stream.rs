//! A TCP stream of numbered blocks to an echo and back: order, content and the longest silence.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::netns::{Place, Topology};

const BLOCK: usize = 1024;

/// What a stream saw.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Blocks that came back, each checked byte by byte.
    pub blocks: u64,
    /// The longest time between two arrivals.
    pub largest_gap: Duration,
}

/// A stream at work.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<StreamReport>>,
}

impl Stream {
    /// Connects once and sends a block every `every`. There is no reconnect: a broken connection is the report's error.
    pub fn start(topology: &Topology, from: Place, to: SocketAddr, every: Duration) -> Result<Self> {
        let topology = topology.clone();
        let connect = std::thread::spawn(move || -> Result<TcpStream> {
            topology.enter(from)?;
            TcpStream::connect_timeout(&to, Duration::from_secs(10))
                .with_context(|| format!("cannot connect to {to}"))
        });
        let socket = connect.join().map_err(|_| anyhow::anyhow!("the connecting thread died"))??;
        socket.set_nodelay(true)?;
        let reader = socket.try_clone()?;
        reader.set_read_timeout(Some(Duration::from_secs(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stop_sending = stop.clone();
        let sender = std::thread::spawn(move || send(socket, every, &stop_sending));
        let receiver = std::thread::spawn(move || receive(reader));
        Ok(Self { stop, sender, receiver })
    }

    /// Stops sending; every block must come back.
    pub fn finish(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the stream's sender died"))??;
        let report = self.receiver.join().map_err(|_| anyhow::anyhow!("the stream's receiver died"))??;
        if sent != report.blocks {
            bail!("{sent} blocks went out, {} came back", report.blocks);
        }
        Ok(report)
    }
}

/// The block of a number: the number, then bytes that depend on it.
fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (index, chunk) in (0_u64..).zip(block.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&number.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    }
    block
}

fn send(mut socket: TcpStream, every: Duration, stop: &AtomicBool) -> Result<u64> {
    let begun = Instant::now();
    let mut number: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(&block(number)).with_context(|| format!("block {number} could not be sent"))?;
        number += 1;
        let due = every * u32::try_from(number)?;
        if let Some(wait) = due.checked_sub(begun.elapsed()) {
            std::thread::sleep(wait);
        }
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    Ok(number)
}

fn receive(mut socket: TcpStream) -> Result<StreamReport> {
    let mut report = StreamReport::default();
    let mut last: Option<Instant> = None;
    let mut got = [0; BLOCK];
    loop {
        match read_block(&mut socket, &mut got)
            .with_context(|| format!("block {} did not come", report.blocks))?
        {
            0 => return Ok(report),
            BLOCK if got == block(report.blocks) => {}
            BLOCK => bail!("block {} came back with other bytes", report.blocks),
            part => bail!("the stream ended after {part} bytes of block {}", report.blocks),
        }
        report.blocks += 1;
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            report.largest_gap = report.largest_gap.max(now - last);
        }
    }
}

fn read_block(socket: &mut TcpStream, block: &mut [u8; BLOCK]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|r| !r.is_empty()) {
        match socket.read(rest)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_different_numbers_differ() {
        assert_ne!(block(1), block(2));
        assert_eq!(block(7), block(7));
    }
}
