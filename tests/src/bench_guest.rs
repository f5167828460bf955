//! The guest of the bench image: its echo and its memory writer, as `mashines-guest` serves them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::netns::{Place, Topology};

/// UDP echo.
pub const UDP_ECHO: u16 = 7;
/// Commands, one line each.
const CONTROL: u16 = 10;

/// Asks the guest from a place: `status`, `write MIB MIB_PER_S`, `stop`. The answer is its state.
pub fn ask(topology: &Topology, from: Place, guest: Ipv6Addr, line: &str) -> Result<Value> {
    let (topology, line) = (topology.clone(), line.to_owned());
    let asked = std::thread::spawn(move || -> Result<Value> {
        topology.enter(from)?;
        let address = SocketAddr::from((guest, CONTROL));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{line}: {answer:?}"))?;
        if let Some(error) = answer.get("error") {
            bail!("the guest refused {line}: {error}");
        }
        Ok(answer)
    });
    asked.join().map_err(|_| anyhow::anyhow!("the asking thread died"))?
}

/// The guest's boot id.
pub fn boot_id(topology: &Topology, guest: Ipv6Addr) -> Result<String> {
    let state = ask(topology, Place::Client, guest, "status")?;
    Ok(state.get("boot_id").and_then(Value::as_str).context("no boot id")?.to_owned())
}
