//! Echo, as of RFC 862.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use crate::log;

/// Sends each datagram back to its sender.
pub fn start_udp(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("listening on UDP port {port}"))?;
    super::spawn(format!("udp-{port}"), move || {
        let mut datagram = [0; 65536];
        loop {
            let echoed = socket
                .recv_from(&mut datagram)
                .and_then(|(length, from)| socket.send_to(&datagram[..length], from));
            if let Err(error) = echoed {
                log::note(format_args!("bench: UDP port {port}: {error}"));
            }
        }
    })
}

/// Sends all bytes back.
pub fn tcp(mut connection: TcpStream) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        match connection.read(&mut bytes)? {
            0 => return Ok(()),
            length => connection.write_all(&bytes[..length])?,
        }
    }
}
