//! A request's name and form, checked the same way for HTTP/1 and HTTP/2 (RFC 9110 §7, RFC 9113 §8).
//!
//! The name in the request line, the `Host` header, `:authority` and the name of the TLS handshake must be one. A name of its own inside
//! of another's connection is domain fronting, and also what a browser does that finds one certificate for two names: 421 tells
//! it to come again in a connection for that name.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Method, StatusCode, Version, request};

use super::page::Page;

/// The longest target. Beyond it, caches and servers begin to cut.
const LONGEST_TARGET: usize = 16 * 1024;

/// For whom a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Lower case, without port, without a dot at the end.
    pub host: String,
    /// As the client wrote it, with its port: for `X-Forwarded-Host`.
    pub written: String,
}

/// The request's name.
///
/// # Errors
/// The answer to who sends such a request: 400, 421.
pub fn name(parts: &request::Parts, sni: Option<&str>) -> Result<Name, Page> {
    if parts.method == Method::CONNECT && parts.extensions.get::<hyper::ext::Protocol>().is_none() {
        return Err(bad("CONNECT is for proxies, which this is not"));
    }
    if let Some(refused) = check_framing(parts) {
        return Err(bad(refused));
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("The request has more than one Host header"));
    }
    let host = host.map(|host| host.to_str().map_err(|_| bad("The Host header is no name"))).transpose()?;
    let host = host
        .map(|host| host.parse::<Authority>().map_err(|_| bad("The Host header is no name")))
        .transpose()?;
    let named = parts.uri.authority().cloned();
    let same = |one: &Authority, two: &Authority| one.as_str().eq_ignore_ascii_case(two.as_str());
    let authority = match (named, host) {
        (Some(named), Some(host)) if !same(&named, &host) => {
            return Err(bad("The request's target and its Host header name different hosts"));
        }
        (Some(named), _) => named,
        (None, Some(host)) => host,
        (None, None) => return Err(bad("The request names no host")),
    };
    if authority.as_str().contains('@') {
        return Err(bad("The request's host holds a user name"));
    }
    if !is_port(authority.as_str().strip_prefix(authority.host()).unwrap_or_default()) {
        return Err(bad("The request's host is no name"));
    }
    let written = authority.as_str().to_owned();
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    if sni.is_some_and(|sni| sni != host) {
        return Err(Page::yours(
            StatusCode::MISDIRECTED_REQUEST,
            format!("This connection is for {}, the request for {host}", sni.unwrap_or_default()),
            "Open a connection for that name.",
        ));
    }
    Ok(Name { host, written })
}

/// What may follow a host: nothing, or `:` and a number, which may be left out (RFC 3986 §3.2.3).
fn is_port(rest: &str) -> bool {
    let digits = if rest.is_empty() { Some("") } else { rest.strip_prefix(':') };
    digits.is_some_and(|digits| digits.is_empty() || digits.parse::<u16>().is_ok())
}

/// What hyper and h2 let pass that is not to reach a machine.
fn check_framing(parts: &request::Parts) -> Option<&'static str> {
    let target = &parts.uri;
    let length = target.path_and_query().map_or(0, |path| path.as_str().len());
    if length > LONGEST_TARGET {
        return Some("The request's target is too long");
    }
    let origin = target.path().starts_with('/');
    let asterisk = target.path() == "*" && parts.method == Method::OPTIONS;
    if !(origin || asterisk || target.path().is_empty()) {
        return Some("The request's target is no path");
    }
    if target.scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        return Some("The request's target is of another scheme than http and https");
    }
    let lengths = parts.headers.get_all(CONTENT_LENGTH).iter().count();
    let codings = parts.headers.get_all(TRANSFER_ENCODING).iter().count();
    let h2 = parts.version == Version::HTTP_2;
    (lengths > 1 || (lengths > 0 && codings > 0) || codings > 1 || (h2 && codings > 0))
        .then_some("The body's length is said in more than one way")
}

fn bad(what: &str) -> Page {
    Page::yours(StatusCode::BAD_REQUEST, what, "Correct the request.")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn named(target: &str, hosts: &[&str], sni: Option<&str>) -> Result<Name, u16> {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        name(&parts, sni).map_err(|page| page.status.as_u16())
    }

    #[test]
    fn one_name_however_it_is_written() {
        for (target, hosts, sni) in [
            ("/", &["Web.Mashine.dev"][..], None),
            ("/", &["web.mashine.dev.:443"], Some("web.mashine.dev")),
            ("http://web.mashine.dev/x", &[], Some("web.mashine.dev")),
            ("https://web.mashine.dev/x", &["WEB.mashine.dev"], None),
        ] {
            assert_eq!(named(target, hosts, sni).unwrap().host, "web.mashine.dev", "{target} {hosts:?}");
        }
        assert_eq!(named("/", &["Web:8443"], None).unwrap().written, "Web:8443");
    }

    #[test]
    fn two_names_are_one_too_many() {
        for (target, hosts, sni, status) in [
            ("/", &[][..], None, 400),
            ("/", &["a.example", "a.example"], None, 400),
            ("http://a.example/", &["b.example"], None, 400),
            ("http://a.example:80/", &["a.example"], None, 400),
            ("/", &["user@a.example"], None, 400),
            ("/", &["a.example:99999"], None, 400),
            ("/", &["a.example:x"], None, 400),
            ("/", &["a.example/x"], None, 400),
            ("/", &["a b"], None, 400),
            ("/", &[""], None, 400),
            ("/", &["b.example"], Some("a.example"), 421),
        ] {
            assert_eq!(named(target, hosts, sni), Err(status), "{target} {hosts:?} {sni:?}");
        }
    }

    #[test]
    fn connect_and_other_schemes_are_refused() {
        let (parts, ()) = Request::connect("a.example:443").body(()).unwrap().into_parts();
        assert_eq!(name(&parts, None).unwrap_err().status, 400);
        assert_eq!(named("ftp://a.example/", &[], None), Err(400));
        assert_eq!(named(&format!("/{}", "a".repeat(20_000)), &["a.example"], None), Err(400));
    }
}
