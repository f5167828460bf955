//! The first message of TLS: read whole, within limits, and kept, so that it can go on to the machine untouched.
//!
//! rustls reads it; there is no parser of our own.

use std::io;

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest beginning that is read. A ClientHello with post-quantum keys takes 2 KB, one with a large ticket 4.
const LONGEST: usize = 32 * 1024;

/// Read at once.
const CHUNK: usize = 4096;

/// A client's first message.
pub struct Hello {
    /// What it says, ready to go on with a handshake.
    pub accepted: Accepted,
    /// Its bytes as they came.
    pub bytes: Vec<u8>,
    /// The name that it is for: lower case.
    pub name: Option<String>,
    /// Whether it offers `acme-tls/1` (RFC 8737).
    pub validates: bool,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("name", &self.name)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Reads the first message. What is none is answered with the alert that TLS has for it.
///
/// # Errors
/// The stream's; [`io::ErrorKind::InvalidData`] for what is no ClientHello.
pub async fn read(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fresh = &chunk[..length];
        bytes.extend_from_slice(fresh);
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
                let validates =
                    hello.alpn().is_some_and(|mut names| names.any(|name| name == super::tls::ACME_TLS_1));
                return Ok(Hello { accepted, bytes, name, validates });
            }
            Ok(None) if bytes.len() >= LONGEST => {
                refuse(stream, Alert::RecordOverflow).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
            }
            Ok(None) => (),
            Err((error, alert)) => {
                send(stream, alert).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), mut alert: AcceptedAlert) -> io::Result<()> {
    let mut bytes = Vec::new();
    alert.write_all(&mut bytes)?;
    stream.write_all(&bytes).await
}

/// What a client is told that gets no handshake (RFC 8446 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// More than is read.
    RecordOverflow = 22,
    /// There is a reason on our side.
    InternalError = 80,
    /// No name, or one that leads nowhere (RFC 6066 §3).
    UnrecognizedName = 112,
}

/// Tells it, in a record before any key is agreed on. The client may have gone.
pub async fn refuse(stream: &mut (impl AsyncWrite + Unpin), alert: Alert) {
    let record = [0x15, 3, 3, 0, 2, 2, alert as u8];
    if stream.write_all(&record).await.is_ok() {
        let _gone = stream.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::duplex;

    use super::*;

    pub fn client_hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(name).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn heard(bytes: &[u8], piece: usize) -> (io::Result<Hello>, Vec<u8>) {
        let (mut client, mut ours) = duplex(1 << 20);
        for piece in bytes.chunks(piece) {
            client.write_all(piece).await.unwrap();
        }
        client.shutdown().await.unwrap();
        let hello = read(&mut ours).await;
        drop(ours);
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        (hello, told)
    }

    #[tokio::test]
    async fn the_name_is_read_and_the_bytes_are_kept_however_they_come() {
        let bytes = client_hello("Web.Mashine.DEV", &[b"h2"]);
        for piece in [1, 7, 5000] {
            let hello = heard(&bytes, piece).await.0.unwrap();
            assert_eq!(hello.name.as_deref(), Some("web.mashine.dev"));
            assert!(hello.bytes == bytes && !hello.validates);
        }
        assert!(heard(&client_hello("a.example", &[b"acme-tls/1"]), 5000).await.0.unwrap().validates);
        assert_eq!(
            heard(&client_hello("192.0.2.1", &[]), 5000).await.0.unwrap().name,
            None,
            "an address is no name"
        );
    }

    #[tokio::test]
    async fn what_is_no_client_hello_gets_an_alert() {
        let (hello, told) = heard(b"\x16\x03\x01\x00\x05\x02\0\0\x01\0", 100).await;
        assert_eq!(hello.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(told.first(), Some(&0x15), "{told:?}");
        // A message that promises 16 MB, a record at a time.
        let mut endless = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff".to_vec();
        endless.extend([0; 0x3ffc]);
        for _ in 0..8 {
            endless.extend(b"\x16\x03\x01\x40\x00");
            endless.extend([0; 0x4000]);
        }
        assert!(heard(&endless, 100_000).await.0.is_err());
    }
}
