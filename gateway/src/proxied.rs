//! The PROXY protocol, versions 1 and 2: a load balancer's first bytes say who its client is.
//!
//! Only balancers that the configuration names are believed, and from them a header is demanded: a port that takes both, with and
//! without, lets anybody claim to be anybody. The header's grammar is that of HAProxy's `proxy-protocol.txt`, sections 2.1 and 2.2.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::arrival::Arrival;

/// The header follows the connection at once; a balancer has no reason to wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Both versions are at least this long.
const PREFIX: usize = 16;
/// The longest line of version 1, with its CR and LF.
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is read. Addresses take 52 bytes; the rest is for what balancers add.
const LONGEST: usize = 2048;

/// Whose headers are believed.
#[derive(Debug, Clone, Default)]
pub struct Balancers(Vec<IpNetwork>);

impl Balancers {
    /// Those networks.
    pub fn new(networks: Vec<IpNetwork>) -> Self {
        Self(networks)
    }

    /// Whether a connection from there begins with a header.
    pub fn include(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(peer))
    }
}

/// Reads the header, and not a byte more. Both ends of the client's connection, or of the balancer's own when it speaks for itself
/// (health checks).
///
/// # Errors
/// What is no header, is too long, or does not come in time.
pub async fn arrival(stream: &mut (impl AsyncRead + Unpin), balancer: Arrival) -> io::Result<Arrival> {
    let header = timeout(PATIENCE, read(stream)).await;
    let header =
        header.map_err(|_late| io::Error::new(io::ErrorKind::TimedOut, "no PROXY header came"))??;
    told(&header, balancer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no PROXY header"))
}

/// What a whole header tells.
pub fn told(header: &[u8], balancer: Arrival) -> Option<Arrival> {
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default()).ok()?;
    let whole = length == header.len();
    whole.then(|| {
        let ends = parsed.proxied_address();
        ends.map_or(balancer, |ends| Arrival { peer: ends.source, at: ends.destination.ip() })
    })
}

/// Reads the header, and not a byte more.
///
/// # Errors
/// The stream ends within it, or it is too long.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut header = vec![0; PREFIX];
    // "PROXY UNKNOWN\r\n" is one byte shorter, and nothing may be read that is not the header's.
    stream.read_exact(&mut header[..PREFIX - 1]).await?;
    header.truncate(PREFIX - 1);
    if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") && header.len() < LONGEST_LINE {
            header.push(stream.read_u8().await?);
        }
        return Ok(header);
    }
    header.push(stream.read_u8().await?);
    let rest = usize::from(u16::from_be_bytes([header[PREFIX - 2], header[PREFIX - 1]]));
    if PREFIX + rest > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the PROXY header is too long, or none"));
    }
    header.resize(PREFIX + rest, 0);
    stream.read_exact(&mut header[PREFIX..]).await?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_header::ProxiedAddress;

    use super::*;

    fn balancer() -> Arrival {
        Arrival { peer: "192.0.2.9:40000".parse().unwrap(), at: "192.0.2.10".parse().unwrap() }
    }

    async fn heard(bytes: &[u8]) -> Result<(Arrival, Vec<u8>), io::ErrorKind> {
        let mut stream = bytes;
        let client = arrival(&mut stream, balancer()).await.map_err(|error| error.kind())?;
        Ok((client, stream.to_vec()))
    }

    fn version_2(source: &str, destination: &str) -> Vec<u8> {
        let address = ProxiedAddress::stream(source.parse().unwrap(), destination.parse().unwrap());
        let mut bytes = Vec::new();
        ProxyHeader::with_address(address).encode_v2(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_client_is_told_and_what_follows_is_left() {
        let ours = ("192.0.2.9:40000", "192.0.2.10");
        let (v4, v6) = (("198.51.100.7:5000", "192.0.2.1"), ("[2001:db8::7]:5000", "2001:db8::1"));
        for (header, (peer, at)) in [
            (b"PROXY TCP4 198.51.100.7 192.0.2.1 5000 22\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 22\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), ours),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), ours),
            (version_2("198.51.100.7:5000", "192.0.2.1:22"), v4),
            (version_2("[2001:db8::7]:5000", "[2001:db8::1]:22"), v6),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), ours),
        ] {
            let followed = [&header[..], b"SSH-2.0-x\r\n"].concat();
            let arrival = Arrival { peer: peer.parse().unwrap(), at: at.parse().unwrap() };
            assert_eq!(heard(&followed).await, Ok((arrival, b"SSH-2.0-x\r\n".to_vec())), "{peer}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
            b"PROXY TCP4 198.51.100.7\r\n",
            b"PROXY TCP4 999.51.100.7 192.0.2.1 5000 22\r\n",
            b"PROXY TCP4 198.51.100.7 192.0.2.1 70000 22\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff and so on",
            b"",
        ] {
            assert!(heard(bytes).await.is_err(), "{}", bytes.escape_ascii());
        }
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 4000]].concat();
        assert_eq!(heard(&endless).await, Err(io::ErrorKind::InvalidData));
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_says_nothing_is_not_waited_for() {
        let (_silent, mut ours) = tokio::io::duplex(64);
        let error = arrival(&mut ours, balancer()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_named_networks_are_believed() {
        let balancers =
            Balancers::new(vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
        for (ip, believed) in [
            ("192.0.2.7", true),
            ("::ffff:192.0.2.7", true),
            ("198.51.100.1", false),
            ("2001:db8::1", true),
            ("::1", false),
        ] {
            assert_eq!(balancers.include(ip.parse().unwrap()), believed, "{ip}");
        }
        assert!(!Balancers::default().include("192.0.2.7".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_address_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), version in 0usize..3) {
            let begin: &[u8] = [&b""[..], b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"][version];
            let _ = told(&[begin, &bytes].concat(), balancer());
        }
    }
}
