//! Echo, as of RFC 862.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpStream, UdpSocket};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::log;

/// Bytes of datagrams that may wait.
const ROOM: usize = 16 << 20;

/// Sends each datagram back to its sender.
pub fn start_udp(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("listening on UDP port {port}"))?;
    // What the network delivered is not to be lost here, however late the echo gets its turn.
    setsockopt(&socket, RcvBufForce, &ROOM).with_context(|| format!("room for UDP port {port}"))?;
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
