//! Is a new release ready for requests? One GET, or one connection where no path is configured.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);

/// Connects to a port of the loopback, by IPv4 or IPv6: programs listen on one or the other, or both.
pub fn connect(port: u16) -> std::io::Result<TcpStream> {
    let at = |ip| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT);
    at(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .or_else(|first| at(IpAddr::V6(Ipv6Addr::LOCALHOST)).map_err(|_| first))
}

/// Asks once: what it said, when that is good; why not, when it is not.
pub fn check(port: u16, path: Option<&str>) -> Result<String, String> {
    let mut stream = connect(port).map_err(|error| format!("port {port}: {error}"))?;
    let Some(path) = path else { return Ok(format!("port {port} accepts connections")) };
    let status = ask(&mut stream, path).map_err(|error| format!("GET {path}: {error}"))?;
    let said = format!("GET {path} answered {status}");
    if (200..400).contains(&status) { Ok(said) } else { Err(said) }
}

fn ask(stream: &mut TcpStream, path: &str) -> std::io::Result<u16> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: mashines-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut buffer = [0; 64];
    while head.len() < 12 {
        match stream.read(&mut buffer)? {
            0 => break,
            length => head.extend_from_slice(&buffer[..length]),
        }
    }
    status(&head).ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

/// The status of `HTTP/1.x NNN` (RFC 9112, 4).
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
    std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_status_line_reads() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        for bad in [&b""[..], b"HTTP/1.1", b"HTTP/1.1 2", b"SSH-2.0-x", b"HTTP/1.1 xyz"] {
            assert_eq!(status(bad), None);
        }
    }

    #[test]
    fn two_and_three_hundreds_are_healthy_and_others_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 302 Found", "HTTP/1.1 503 Busy", "nothing"] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 512]).unwrap();
                stream.write_all(format!("{answer}\r\n\r\n").as_bytes()).unwrap();
            }
        });
        assert!(check(port, Some("/up")).is_ok());
        assert_eq!(check(port, Some("/up")).unwrap_err(), "GET /up answered 503");
        assert!(check(port, Some("/up")).unwrap_err().contains("no HTTP answer"));
        server.join().unwrap();
        assert!(check(port, None).is_err());
    }
}
