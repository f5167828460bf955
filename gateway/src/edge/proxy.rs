//! One request: from the client's head to the machine's answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, LOCATION, TE, UPGRADE,
};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use mashines_fleet::record::UnixMs;
use mashines_fleet::record::services::{Handler, HttpOptions, Service, ServicePort};
use tokio::time::timeout;
use tracing::debug;

use super::body::{Answer, Cut, Fate, Upload};
use super::headers::{self, Client};
use super::page::Page;
use super::places::{NoPlace, Place};
use super::request::{self as checked, Name};
use super::sites::{Port, Site, literal};
use super::{Edge, Visit, upgrade};

/// How long a machine may take to begin with an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(300);

/// How long a request's body may pause when its service says nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Where issuers look (RFC 8555 §8.3).
const HTTP_01: &str = "/.well-known/acme-challenge/";

/// Milliseconds since the Unix epoch.
pub(super) fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs::try_from(since.as_millis()).unwrap_or(UnixMs::MAX)
}

/// Answers a request, in the edge's own words where the machine cannot.
pub(super) async fn answer(
    edge: Arc<Edge>,
    visit: Arc<Visit>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    // All that a page is made by.
    let accept = request.headers().get(ACCEPT).cloned();
    // The path without its query, which may hold a secret.
    let said = tracing::enabled!(tracing::Level::DEBUG)
        .then(|| format!("{} {}", request.method(), request.uri().path()));
    let h1 = request.version() < Version::HTTP_2;
    let upgrade = h1 && request.headers().contains_key(UPGRADE);
    let answer = edge.proxied(&visit, request).await;
    let bad = answer.as_ref().is_err_and(|page| page.status == StatusCode::BAD_REQUEST);
    let mut answer = answer.unwrap_or_else(|page| {
        debug!(peer = %visit.arrival.peer, status = page.status.as_u16(), what = %page.what, "edge: answered by itself");
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(ACCEPT, accept);
        }
        page.render(&headers).map(Answer::own)
    });
    // Where the next request begins is not to be trusted: a bad one came before, or what follows was meant for another protocol.
    let last = bad || (upgrade && answer.status() != StatusCode::SWITCHING_PROTOCOLS);
    if let Some(said) = said {
        let (peer, name) = (visit.arrival.peer, visit.sni.as_deref());
        debug!(%peer, port = visit.port, name, said, status = answer.status().as_u16(), "edge: request");
    }
    if h1 && last {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(answer)
}

/// A request that has found its place.
pub(super) struct Found {
    pub(super) site: Arc<Site>,
    pub(super) service: Arc<Service>,
    pub(super) port: Arc<ServicePort>,
    pub(super) name: Name,
}

impl Edge {
    async fn proxied(
        self: &Arc<Self>,
        visit: &Visit,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Page> {
        let (mut parts, body) = request.into_parts();
        let name = checked::name(&parts, visit.sni.as_deref())?;
        if visit.sni.is_none()
            && let Some(shown) = self.challenge(&name, parts.uri.path())
        {
            return Ok(shown);
        }
        let found = self.find(visit, name)?;
        // No certificate names an address, so who asks for one is served as they came.
        if visit.sni.is_none() && found.port.force_https && literal(&found.name.host).is_none() {
            return Ok(redirect(&found.name, &parts.uri));
        }
        if !found.port.has(Handler::Http) || (visit.sni.is_none() && found.port.has(Handler::Tls)) {
            return Err(Page::yours(
                StatusCode::BAD_REQUEST,
                format!("Port {} of {} speaks TLS, and this is HTTP without it", visit.port, found.name.host),
                "Use https:// in place of http://.",
            ));
        }
        self.check_health(&found)?;
        let place = self.place(&found).await?;
        let (upload, fate) = upload(&parts, body, found.port.http_options.as_ref())?;
        let wanted = upgrade::wanted(&mut parts);
        self.onward_headers(visit, &found.name, &mut parts);
        // What is seldom stands in a box: room for it would be made, and moved about, with each request.
        let answered = match wanted {
            Some(wanted) => Box::pin(self.upgraded(&found, parts, upload, wanted, place)).await,
            None if found.port.http_options.as_ref().is_some_and(|http| http.h2_backend) => {
                Box::pin(self.over_h2(&found, parts, upload, place)).await
            }
            None => self.over_h1(&found, parts, upload, place).await,
        };
        answered.map_err(|page| fate.cut().map_or(page, cut))
    }

    /// What an issuer wants to read, if that is what is asked for.
    fn challenge(&self, name: &Name, path: &str) -> Option<Response<Answer>> {
        let token = path.strip_prefix(HTTP_01)?;
        let sites = self.sites();
        let text = sites.http_01(&name.host, token, now())?;
        let mut response = Response::new(Answer::own(Bytes::copy_from_slice(text.as_bytes())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Some(response)
    }

    fn find(&self, visit: &Visit, name: Name) -> Result<Found, Page> {
        let sites = self.sites.borrow();
        let site = sites.find(&name.host).ok_or_else(|| {
            Page::yours(
                StatusCode::NOT_FOUND,
                format!("No machine is called {}", name.host),
                "Check the name; a custom domain works once its owner has proved it (mashines certs).",
            )
        })?;
        let Some(Port { service, port }) = site.at(visit.port) else {
            return Err(Page::machines(
                StatusCode::NOT_FOUND,
                format!("Machine {} has nothing at port {}", site.machine.slug, visit.port),
                "Its owner can add the port to the services in its configuration.",
            ));
        };
        Ok(Found { site: Arc::clone(site), service: Arc::clone(service), port: Arc::clone(port), name })
    }

    /// Whether the service's own checks pass.
    fn check_health(&self, found: &Found) -> Result<(), Page> {
        let Found { site, service, .. } = found;
        let complaint = self.health.complaint(&site.machine.id, service.internal_port, service.checks.len());
        complaint.map_or(Ok(()), |complaint| {
            Err(Page::machines(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Machine {} fails its health check: {complaint}", site.machine.slug),
                "Its owner can see to what the check asks for; it is tried again all the time.",
            )
            .again_after(15))
        })
    }

    async fn place(&self, found: &Found) -> Result<Place, Page> {
        let Found { site, service, .. } = found;
        let place = self.places.enter(&site.machine.id, service, self.settings.per_service).await;
        place.map_err(|full| {
            let seconds = match full {
                NoPlace::Full(_) => 1,
                NoPlace::Late(_) => 5,
            };
            Page::machines(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Machine {} is busy: {full}", site.machine.slug),
                "Come again in a moment; its owner can raise the limits of the service's concurrency.",
            )
            .again_after(seconds)
        })
    }

    /// The head as the machine gets it.
    fn onward_headers(&self, visit: &Visit, name: &Name, parts: &mut request::Parts) {
        let trailers = headers::takes_trailers(&parts.headers);
        headers::strip_hop_by_hop(&mut parts.headers);
        if trailers {
            parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        // The client's body is asked for when the machine takes it, so there is nothing for the machine to expect.
        parts.headers.remove(EXPECT);
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        if let Ok(host) = HeaderValue::from_str(&name.written) {
            parts.headers.insert(HOST, host);
        }
        let peer = visit.arrival.peer.ip();
        let scheme = if visit.sni.is_some() { "https" } else { "http" };
        let client =
            Client { ip: peer, trusted: self.trusts(peer), scheme, host: &name.written, port: visit.port };
        headers::tell_client(&mut parts.headers, client);
    }

    async fn over_h1(
        self: &Arc<Self>,
        found: &Found,
        parts: request::Parts,
        upload: Upload,
        place: Place,
    ) -> Result<Response<Answer>, Page> {
        let address = address(found);
        let mut request = onward(parts, upload);
        *request.version_mut() = Version::HTTP_11;
        let mut upstream = match self.upstreams.resting(address).await {
            Some(resting) => resting,
            None => Box::pin(self.fresh(found)).await?,
        };
        // What may be sent again when a connection turns out to be closed: nothing changes by it, and nothing of a body is lost.
        let again = (upstream.reused && is_repeatable(&request)).then(|| head_of(&request));
        let mut sent = timeout(ANSWER, upstream.send(request)).await.map_err(|_late| late(found))?;
        if upstream.reused
            && let Err(mut failed) = sent
        {
            let Some(request) = failed.take_message().or(again) else {
                return Err(broken(found, &failed.into_error()));
            };
            upstream = Box::pin(self.fresh(found)).await?;
            sent = Box::pin(timeout(ANSWER, upstream.send(request))).await.map_err(|_late| late(found))?;
        }
        let response = sent.map_err(|failed| broken(found, &failed.into_error()))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(unasked(found));
        }
        let (parts, body) = response.into_parts();
        Ok(back(parts, Answer::machines(body, Some(upstream), place)))
    }

    async fn fresh(self: &Arc<Self>, found: &Found) -> Result<super::upstream::Checkout, Page> {
        let stream = self.reach(&found.site, &found.service).await?;
        let begun = self.upstreams.begin(stream, address(found)).await;
        begun.map_err(|error| broken(found, &error))
    }

    async fn over_h2(
        self: &Arc<Self>,
        found: &Found,
        mut parts: request::Parts,
        upload: Upload,
        place: Place,
    ) -> Result<Response<Answer>, Page> {
        let address = address(found);
        // HTTP/2 has `:authority` in place of it.
        parts.headers.remove(HOST);
        let mut request = onward(parts, upload);
        *request.version_mut() = Version::HTTP_2;
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = found.name.written.parse().ok();
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        let (mut sender, reused) = match self.upstreams.shared(address) {
            Some(sender) => (sender, true),
            None => (self.fresh_shared(found).await?, false),
        };
        let mut sent =
            timeout(ANSWER, sender.try_send_request(request)).await.map_err(|_late| late(found))?;
        if reused
            && let Err(failed) = &mut sent
            && let Some(request) = failed.take_message()
        {
            sender = self.fresh_shared(found).await?;
            sent = timeout(ANSWER, sender.try_send_request(request)).await.map_err(|_late| late(found))?;
        }
        let response = sent.map_err(|failed| broken(found, &failed.into_error()))?;
        let (parts, body) = response.into_parts();
        Ok(back(parts, Answer::machines(body, None, place)))
    }

    async fn fresh_shared(
        &self,
        found: &Found,
    ) -> Result<hyper::client::conn::http2::SendRequest<Upload>, Page> {
        let stream = self.reach(&found.site, &found.service).await?;
        let begun = self.upstreams.begin_shared(stream, address(found)).await;
        begun.map_err(|error| broken(found, &error))
    }
}

fn address(found: &Found) -> SocketAddr {
    SocketAddr::new(found.site.machine.net.ipv6.into(), found.service.internal_port)
}

/// The body on its way, within the service's limits.
fn upload(
    parts: &request::Parts,
    body: Incoming,
    options: Option<&HttpOptions>,
) -> Result<(Upload, Fate), Page> {
    let most = options.and_then(|http| http.max_body_bytes).unwrap_or(u64::MAX);
    let idle = options.and_then(|http| http.idle_timeout).map_or(IDLE, |idle| idle.duration());
    let told = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > most) {
        return Err(cut(Cut::TooLong));
    }
    let fate = Fate::default();
    Ok((Upload::new(body, most, idle, fate.clone()), fate))
}

fn cut(cut: Cut) -> Page {
    let (status, hint) = match cut {
        Cut::TooLong => {
            (StatusCode::PAYLOAD_TOO_LARGE, "Send less; the machine's owner sets the limit (max_body_bytes).")
        }
        Cut::Idle => (StatusCode::REQUEST_TIMEOUT, "Send it without long pauses."),
        Cut::Broken => (StatusCode::BAD_REQUEST, "Send it whole."),
    };
    let mut what = cut.to_string();
    what.replace_range(..1, "T");
    Page::yours(status, what, hint)
}

/// The request to the machine: a path, no host (RFC 9112 §3.2.1).
pub(super) fn onward(mut parts: request::Parts, upload: Upload) -> Request<Upload> {
    let mut target = std::mem::take(&mut parts.uri).into_parts();
    target.scheme = None;
    target.authority = None;
    let path = target.path_and_query.take().filter(|path| !path.as_str().is_empty());
    target.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(target).unwrap_or_default();
    parts.extensions.clear();
    Request::from_parts(parts, upload)
}

/// The answer to the client.
pub(super) fn back(mut parts: http::response::Parts, answer: Answer) -> Response<Answer> {
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Response::from_parts(parts, answer)
}

/// RFC 9110 §9.2.2, without a body.
fn is_repeatable(request: &Request<Upload>) -> bool {
    use hyper::body::Body as _;
    let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE];
    idempotent.contains(request.method()) && request.body().is_end_stream()
}

fn head_of(request: &Request<Upload>) -> Request<Upload> {
    let mut again = Request::new(Upload::none());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    again
}

/// HTTP/2 lets a client part them; HTTP/1 does not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

fn redirect(name: &Name, uri: &Uri) -> Response<Answer> {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut response = Response::new(Answer::own(Bytes::new()));
    match HeaderValue::from_str(&format!("https://{}{path}", name.host)) {
        Ok(location) => {
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(LOCATION, location);
        }
        Err(_no_header) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

pub(super) fn broken(found: &Found, error: &hyper::Error) -> Page {
    let what = if error.is_parse() {
        "answers with something that is no HTTP"
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "closed the connection before it answered"
    } else {
        "broke off"
    };
    debug!(machine = %found.site.machine.slug, %error, "edge: no answer");
    Page::machines(
        StatusCode::BAD_GATEWAY,
        format!("Machine {} {what} (port {})", found.site.machine.slug, found.service.internal_port),
        "Its owner can look at the server's log.",
    )
}

pub(super) fn late(found: &Found) -> Page {
    Page::machines(
        StatusCode::GATEWAY_TIMEOUT,
        format!("Machine {} did not begin to answer within {ANSWER:?}", found.site.machine.slug),
        "Its owner can look at the server's log.",
    )
}

fn unasked(found: &Found) -> Page {
    Page::machines(
        StatusCode::BAD_GATEWAY,
        format!("Machine {} changes to another protocol, which nobody asked for", found.site.machine.slug),
        "Its owner can look at the server's log.",
    )
}
