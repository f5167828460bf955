//! Do all our servers show a challenge? Each is asked as the issuer will ask it; nobody sleeps and hopes.
//!
//! A server that answers and does not show it yet is waited for. One that does not answer at all is gone on without, once another
//! shows it: issuers ask several too.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use mashines_fleet::id::DomainName;
use mashines_fleet::record::{HostRole, Show};
use mashines_fleet::view::View;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use crate::config::Ports;
use crate::fault::Fault;

/// How long servers have to show it all.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long one that does not answer is asked again and again; twice that when none answers.
const SILENCE: Duration = Duration::from_secs(5);

/// One question.
const ONE: Duration = Duration::from_secs(2);

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(150);

/// RFC 8737 §3.
const ALPN: &[u8] = b"acme-tls/1";

/// What one server said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Shows,
    NotYet(String),
    Silent(String),
}

/// Waits until the fleet shows a challenge.
///
/// # Errors
/// [`Fault::NotShown`]: who does not.
pub async fn wait(view: &View, ports: Ports, name: &DomainName, show: &Show) -> Result<(), Fault> {
    let servers: Vec<SocketAddr> = match show {
        Show::Dns01 { .. } => {
            name_servers(view).into_iter().map(|ip| SocketAddr::new(ip, ports.dns)).collect()
        }
        Show::Http01 { .. } => edges(view).into_iter().map(|ip| SocketAddr::new(ip, ports.http)).collect(),
        Show::TlsAlpn01 { .. } => edges(view).into_iter().map(|ip| SocketAddr::new(ip, ports.tls)).collect(),
    };
    if servers.is_empty() {
        let which = match show {
            Show::Dns01 { .. } => "the fleet's configuration names no name server with an address",
            Show::Http01 { .. } | Show::TlsAlpn01 { .. } => "no entry has a public address",
        };
        return Err(Fault::NotShown(which.to_owned()));
    }
    let begun = Instant::now();
    loop {
        let round = join_all(servers.iter().map(|server| look(*server, name, show))).await;
        tracing::debug!(%name, ?round, "a look at the fleet's own servers");
        if is_ready(&round, begun.elapsed()) {
            return Ok(());
        }
        let patience =
            if round.iter().all(|seen| matches!(seen, Seen::Silent(_))) { SILENCE * 2 } else { PATIENCE };
        if begun.elapsed() >= patience {
            let why = servers.iter().zip(round).filter_map(|(server, seen)| match seen {
                Seen::Shows => None,
                Seen::NotYet(why) | Seen::Silent(why) => Some(format!("{server}: {why}")),
            });
            return Err(Fault::NotShown(format!(
                "{name} after {patience:?}: {}",
                why.collect::<Vec<_>>().join("; ")
            )));
        }
        tokio::time::sleep(ROUND).await;
    }
}

fn is_ready(round: &[Seen], elapsed: Duration) -> bool {
    let count = |fits: fn(&Seen) -> bool| round.iter().filter(|seen| fits(seen)).count();
    let (shows, not_yet) = (count(|s| matches!(s, Seen::Shows)), count(|s| matches!(s, Seen::NotYet(_))));
    shows == round.len() || (shows > 0 && not_yet == 0 && elapsed >= SILENCE)
}

fn name_servers(view: &View) -> BTreeSet<IpAddr> {
    let servers = view.config.iter().flat_map(|config| &config.name_servers);
    servers.flat_map(|server| server.addresses.iter().copied()).collect()
}

fn edges(view: &View) -> BTreeSet<IpAddr> {
    let entries = view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry));
    entries
        .flat_map(|host| {
            let v4 = host.public_ipv4.iter().copied().map(IpAddr::V4);
            v4.chain(host.public_ipv6.iter().copied().map(IpAddr::V6))
        })
        .collect()
}

async fn look(server: SocketAddr, name: &DomainName, show: &Show) -> Seen {
    let looked = async {
        match show {
            Show::Dns01 { value } => dns(server, name, value).await,
            Show::Http01 { token, authorization } => web(server, name, token, authorization).await,
            Show::TlsAlpn01 { digest } => tls(server, name, digest).await,
        }
    };
    tokio::time::timeout(ONE, looked)
        .await
        .unwrap_or_else(|_| Seen::Silent(format!("no answer within {ONE:?}")))
}

fn silent(error: impl std::fmt::Display) -> Seen {
    Seen::Silent(error.to_string())
}

async fn dns(server: SocketAddr, name: &DomainName, value: &str) -> Seen {
    let Ok(mut asked) = Name::from_ascii(format!("_acme-challenge.{name}")) else {
        return Seen::NotYet("the name is too long for a challenge".to_owned());
    };
    asked.set_fqdn(true);
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.add_query(Query::query(asked, RecordType::TXT));
    let bytes = match question.to_vec() {
        Ok(bytes) => bytes,
        Err(error) => return silent(error),
    };
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let asked = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(&bytes).await?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer).await?;
        buffer.truncate(length);
        Ok::<_, std::io::Error>(buffer)
    };
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(error) => return silent(error),
    };
    let Ok(answer) = Message::from_vec(&answer) else {
        return Seen::NotYet("an answer that is no DNS".to_owned());
    };
    if answer.metadata.id != question.metadata.id {
        return Seen::NotYet("an answer to another question".to_owned());
    }
    let shows = answer.answers.iter().any(|record| match &record.data {
        RData::TXT(txt) => txt.txt_data.concat() == value.as_bytes(),
        _ => false,
    });
    match shows {
        true => Seen::Shows,
        false if answer.metadata.truncation => Seen::NotYet("too many values for UDP".to_owned()),
        false => Seen::NotYet(format!("{}, without the value", answer.metadata.response_code)),
    }
}

async fn web(server: SocketAddr, name: &DomainName, token: &str, authorization: &str) -> Seen {
    let stream = match TcpStream::connect(server).await {
        Ok(stream) => stream,
        Err(error) => return silent(error),
    };
    let asked = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let request = http::Request::get(format!("/.well-known/acme-challenge/{token}"))
            .header(http::header::HOST, name.as_str())
            .body(Empty::<bytes::Bytes>::new());
        let answer = sender.send_request(request.map_err(std::io::Error::other)?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 4096).collect().await.map_err(std::io::Error::other)?;
        driving.abort();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body.to_bytes()))
    };
    match asked.await {
        Ok((status, body)) if status.is_success() && body == authorization.as_bytes() => Seen::Shows,
        Ok((status, _)) => Seen::NotYet(format!("{status}, without the token")),
        Err(error) => Seen::NotYet(error.to_string()),
    }
}

async fn tls(server: SocketAddr, name: &DomainName, digest: &str) -> Seen {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let Ok(config) = config else { return Seen::NotYet("no TLS".to_owned()) };
    let verifier = ShownIn { digest: digest.to_owned(), provider };
    let mut config =
        config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let Ok(server_name) = ServerName::try_from(name.to_string()) else {
        return Seen::NotYet("no name for TLS".to_owned());
    };
    let stream = match TcpStream::connect(server).await {
        Ok(stream) => stream,
        Err(error) => return silent(error),
    };
    match tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server_name, stream).await {
        Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN) => Seen::Shows,
        Ok(_) => Seen::NotYet("it does not speak acme-tls/1".to_owned()),
        Err(error) => Seen::NotYet(error.to_string()),
    }
}

/// Accepts exactly the certificate that an issuer would: self-signed or not, it holds the digest (RFC 8737 §3).
#[derive(Debug)]
struct ShownIn {
    digest: String,
    provider: Arc<CryptoProvider>,
}

/// `id-pe-acmeIdentifier`.
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

impl ShownIn {
    fn holds(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let extension = certificate.extensions().iter().find(|e| e.oid.to_id_string() == ACME_IDENTIFIER);
        // An OCTET STRING of 32 bytes.
        let digest = extension.and_then(|extension| extension.value.strip_prefix(&[4, 32]));
        digest.is_some_and(|digest| hex::encode(digest) == self.digest)
    }
}

impl ServerCertVerifier for ShownIn {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.holds(end_entity) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General("its certificate does not show the challenge".to_owned())),
        }
    }

    // What is shown is looked at, not who shows it: nothing is sent over the connection. (webpki would refuse the certificate for its
    // critical extension, which it does not know.)
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_gone_on_without_and_one_that_lags_is_not() {
        let (shows, lags, silent) = (Seen::Shows, Seen::NotYet(String::new()), Seen::Silent(String::new()));
        let ready = |round: &[Seen], s| is_ready(round, Duration::from_secs(s));
        assert!(ready(&[shows.clone(), shows.clone()], 0));
        assert!(!ready(&[shows.clone(), lags.clone()], 59));
        assert!(!ready(&[shows.clone(), silent.clone()], 1) && ready(&[shows.clone(), silent.clone()], 5));
        assert!(!ready(&[silent.clone(), silent], 59));
        assert!(!ready(&[shows, lags, Seen::Silent(String::new())], 59));
    }
}
