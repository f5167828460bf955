//! `mashines-echo PORT`: echoes UDP packets and TCP streams. The tests copy it into a machine.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};

fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    let mut packet = [0; 2048];
    loop {
        // Errors here are ICMP answers to earlier echoes; the next packet is another matter.
        if let Ok((length, from)) = udp.recv_from(&mut packet) {
            let _ = udp.send_to(packet.get(..length).unwrap_or_default(), from);
        }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}
