//! Numbered streams: every byte can be checked at the other end, and every stall is seen.
//!
//! A stream is the numbers 0, 1, 2, … as 64-bit little-endian integers. The client's first line says what it wants:
//!
//! ```text
//! send BYTES_PER_S\n    the machine sends, paced, until the client shuts its sending side; then END
//! recv\n                the machine receives and verifies, until the client shuts its sending side
//! both BYTES_PER_S\n    both at once
//! ```
//!
//! At the end the machine sends [`END`] (all ones; always, even when it sent no numbers) and one JSON line:
//! `{"received": bytes, "sent": bytes, "mismatches": n, "longest_gap_us": n}`. `longest_gap_us` is the longest time between two
//! arrivals, by the machine's own clock: what the machine saw of a blackout.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Stands behind the last number of the machine.
pub const END: u64 = u64::MAX;

/// How often a paced sender sends.
const TICK: Duration = Duration::from_millis(2);

/// Serves one stream.
pub fn serve(connection: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 * 1024, connection.try_clone()?);
    let mut line = String::new();
    (&mut reader).take(64).read_line(&mut line)?;
    let wish = match parse(&line) {
        Ok(wish) => wish,
        Err(why) => return (&connection).write_all(format!("{{\"error\": \"{why}\"}}\n").as_bytes()),
    };
    let over = Arc::new(AtomicBool::new(false));
    let sender = wish.bytes_per_s.map(|rate| {
        let (over, connection) = (Arc::clone(&over), connection.try_clone());
        thread::spawn(move || send(connection?, rate, &over))
    });
    let received = receive(&mut reader, wish.verify);
    over.store(true, Ordering::SeqCst);
    let sent = match sender.map(thread::JoinHandle::join) {
        Some(Ok(sent)) => sent?,
        Some(Err(_)) => return Err(io::Error::other("the sending thread failed")),
        None => 0,
    };
    let received = received?;
    let report = format!(
        "{{\"received\": {}, \"sent\": {sent}, \"mismatches\": {}, \"longest_gap_us\": {}}}\n",
        received.bytes,
        received.mismatches,
        received.longest_gap.as_micros()
    );
    (&connection).write_all(&END.to_le_bytes())?;
    (&connection).write_all(report.as_bytes())?;
    connection.shutdown(Shutdown::Write)
}

#[derive(Debug, PartialEq, Eq)]
struct Wish {
    bytes_per_s: Option<u64>,
    verify: bool,
}

fn parse(line: &str) -> Result<Wish, &'static str> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let rate = |text: &str| {
        text.parse().ok().filter(|&rate| rate > 0).map(Some).ok_or("BYTES_PER_S is a positive number")
    };
    match words.as_slice() {
        ["recv"] => Ok(Wish { bytes_per_s: None, verify: true }),
        ["send", text] => Ok(Wish { bytes_per_s: rate(text)?, verify: false }),
        ["both", text] => Ok(Wish { bytes_per_s: rate(text)?, verify: true }),
        _ => Err("the first line is: recv, send BYTES_PER_S or both BYTES_PER_S"),
    }
}

/// Sends numbers at this rate until `over`; returns the bytes sent.
fn send(mut connection: TcpStream, bytes_per_s: u64, over: &AtomicBool) -> io::Result<u64> {
    let start = Instant::now();
    let mut number = 0_u64;
    while !over.load(Ordering::SeqCst) {
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let due = bytes_per_s.saturating_mul(micros) / 8_000_000;
        // At most 64 KiB a write: after a stall the stream catches up in steps.
        let upto = due.min(number + 8192);
        let chunk: Vec<u8> = (number..upto).flat_map(u64::to_le_bytes).collect();
        connection.write_all(&chunk)?;
        number = upto;
        if number >= due {
            thread::sleep(TICK);
        }
    }
    Ok(number * 8)
}

#[derive(Default)]
struct Received {
    bytes: u64,
    mismatches: u64,
    longest_gap: Duration,
}

fn receive(reader: &mut impl BufRead, verify: bool) -> io::Result<Received> {
    let mut seen = Received::default();
    let (mut number, mut filled) = ([0; 8], 0);
    let mut last = None;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(seen);
        }
        let now = Instant::now();
        seen.longest_gap = seen.longest_gap.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
        for &byte in bytes {
            number[filled] = byte;
            filled += 1;
            seen.bytes += 1;
            if filled == number.len() {
                filled = 0;
                let expected = seen.bytes / 8 - 1;
                seen.mismatches += u64::from(verify && u64::from_le_bytes(number) != expected);
            }
        }
        let length = bytes.len();
        reader.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn connect() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(listener.accept().unwrap().0));
        TcpStream::connect(address).unwrap()
    }

    fn rest(mut connection: TcpStream) -> (Vec<u8>, serde_json::Value) {
        let mut all = Vec::new();
        connection.read_to_end(&mut all).unwrap();
        let end = all.windows(8).position(|window| window == END.to_le_bytes()).unwrap();
        let report = serde_json::from_slice(&all[end + 8..]).unwrap();
        all.truncate(end);
        (all, report)
    }

    #[test]
    fn both_ways_every_number_arrives_once_and_in_order() {
        let mut connection = connect();
        connection.write_all(b"both 1000000\n").unwrap();
        let numbers: Vec<u8> = (0..10_000_u64).flat_map(u64::to_le_bytes).collect();
        connection.write_all(&numbers).unwrap();
        thread::sleep(Duration::from_millis(50));
        connection.shutdown(Shutdown::Write).unwrap();
        let (sent, report) = rest(connection);
        assert_eq!((report["received"].as_u64(), report["mismatches"].as_u64()), (Some(80_000), Some(0)));
        assert_eq!(report["sent"].as_u64().unwrap(), u64::try_from(sent.len()).unwrap());
        let expected: Vec<u8> =
            (0..u64::try_from(sent.len()).unwrap() / 8).flat_map(u64::to_le_bytes).collect();
        assert!(!sent.is_empty() && sent == expected);
    }

    #[test]
    fn a_lost_number_is_counted() {
        let mut connection = connect();
        connection.write_all(b"recv\n").unwrap();
        for number in [0_u64, 1, 3] {
            connection.write_all(&number.to_le_bytes()).unwrap();
        }
        connection.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(connection).1["mismatches"], 1);
    }

    #[test]
    fn a_wish_that_is_not_understood_is_answered() {
        assert!(parse("dance\n").is_err());
        assert!(parse("send 0\n").is_err());
        assert_eq!(parse("both 5\n"), Ok(Wish { bytes_per_s: Some(5), verify: true }));
    }
}
