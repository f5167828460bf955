//! Bytes that nobody looks into: TLS that the machine ends itself, and what is in TLS that is ended here for other protocols than HTTP.

use std::io;
use std::sync::Arc;

use mashines_fleet::record::services::{Handler, ProxyVersion, Service, ServicePort};
use proxy_header::{ProxiedAddress, ProxyHeader};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::hello::{Alert, Hello, refuse};
use super::places::Place;
use super::sites::{Port, Site};
use super::{Edge, Visit};
use crate::metered::Metered;

/// What is held of each direction of what is decrypted here.
const BUFFER: usize = 16 * 1024;

impl Edge {
    /// TLS goes to the machine as it came, through the kernel.
    pub(super) async fn pass_untouched(
        &self,
        mut stream: TcpStream,
        hello: Hello,
        visit: &Visit,
        site: &Arc<Site>,
    ) -> io::Result<()> {
        let (mut machine, _place) = match self.open(visit, site).await {
            Ok(opened) => opened,
            Err(error) => {
                refuse(&mut stream, Alert::InternalError).await;
                return Err(error);
            }
        };
        machine.write_all(&hello.bytes).await?;
        drop(hello);
        tokio::select! {
            moved = machine.join(&mut stream) => moved.map(drop),
            () = self.ending.cancelled() => Err(io::Error::other("the edge ends")),
        }
    }

    /// What was in TLS goes to the machine.
    pub(super) async fn pass_ended(
        &self,
        mut stream: Box<TlsStream<TcpStream>>,
        visit: &Visit,
        site: &Arc<Site>,
    ) -> io::Result<()> {
        let (mut machine, _place) = self.open(visit, site).await?;
        tokio::select! {
            moved = copy_bidirectional_with_sizes(&mut stream, &mut machine, BUFFER, BUFFER) => moved.map(drop),
            () = self.ending.cancelled() => Err(io::Error::other("the edge ends")),
        }
    }

    /// A connection to the machine, with the header that its owner wants.
    async fn open(&self, visit: &Visit, site: &Arc<Site>) -> io::Result<(Metered, Place)> {
        let Port { service, port } = site.at(visit.port).ok_or(io::ErrorKind::NotFound)?;
        let Service { internal_port, checks, .. } = service.as_ref();
        if let Some(complaint) = self.health.complaint(&site.machine.id, *internal_port, checks.len()) {
            return Err(io::Error::other(format!("the health check fails: {complaint}")));
        }
        let place = self.places.enter(&site.machine.id, service, self.settings.per_service).await;
        let place = place.map_err(io::Error::other)?;
        let mut machine = self.reach(site, service).await.map_err(|page| io::Error::other(page.what))?;
        if port.has(Handler::ProxyProto) {
            machine.write_all(&header(visit, port)?).await?;
        }
        Ok((machine, place))
    }
}

/// A PROXY header that says whose connection it is.
fn header(visit: &Visit, port: &ServicePort) -> io::Result<Vec<u8>> {
    let source = canonical(visit.arrival.peer.ip(), visit.arrival.peer.port());
    let destination = canonical(visit.arrival.at, visit.port);
    let header = if source.is_ipv4() == destination.is_ipv4() {
        ProxyHeader::with_address(ProxiedAddress::stream(source, destination))
    } else {
        // A balancer that came by one family for a client of the other: no version has a form for both.
        ProxyHeader::with_local()
    };
    let version = port.proxy_proto_options.as_ref().map(|options| options.version).unwrap_or_default();
    let mut bytes = Vec::new();
    let written = match version {
        ProxyVersion::V1 => header.encode_v1(&mut bytes),
        ProxyVersion::V2 => header.encode_v2(&mut bytes),
    };
    written.map_err(|error| io::Error::other(format!("the PROXY header: {error}")))?;
    Ok(bytes)
}

fn canonical(ip: std::net::IpAddr, port: u16) -> std::net::SocketAddr {
    (ip.to_canonical(), port).into()
}
