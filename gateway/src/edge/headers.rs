//! Headers on their way through: what belongs to one connection stays there, and the machine learns who its client is.
//!
//! What a client says about its own way (`X-Forwarded-*`, `Forwarded`, `X-Real-IP`) is dropped, unless it is a proxy that the configuration
//! trusts: then the chain it tells is kept and ours is added.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Belong to one connection, whatever `Connection` says (RFC 9110 §7.6.1). A static: a constant would be made, and taken apart, at each use.
static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HTTP2_SETTINGS,
];

/// Whose request it is, as the machine is told.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Where the client is.
    pub ip: IpAddr,
    /// Whether it is a proxy whose word about others is believed.
    pub trusted: bool,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// The host as the client wrote it.
    pub host: &'a str,
    /// The public port.
    pub port: u16,
}

/// Takes away what belongs to one connection: the fixed ones, and those that `Connection` lists. What frames a body or names a host
/// is not a client's to take away.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| ![HOST, CONTENT_LENGTH, TRAILER].contains(name))
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    // A look at each name is cheaper than a search for each of nine.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    for name in &HOP_BY_HOP {
        if let Entry::Occupied(entry) = headers.entry(name) {
            entry.remove_entry_mult();
        }
    }
}

/// What a client wants to upgrade to, when a machine may be asked: never HTTP/2, since two readers of one stream would then disagree about
/// where requests begin.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let listed =
        listed.flat_map(|line| line.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let mut wanted = headers.get_all(UPGRADE).iter();
    let (first, more) = (wanted.next(), wanted.next());
    let first = first.filter(|_| listed && more.is_none())?;
    let name = first.to_str().ok()?.trim().to_ascii_lowercase();
    let protocol = name.split('/').next().unwrap_or_default();
    let plain =
        !protocol.is_empty() && !name.contains(',') && !matches!(protocol, "h2c" | "h2" | "http" | "tls");
    plain.then(|| first.clone())
}

/// Whether the client takes trailers, which it says with `TE: trailers`; gRPC's servers ask for it.
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let said = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Tells the machine who its client is.
pub fn tell_client(headers: &mut HeaderMap, client: Client<'_>) {
    let ip = client.ip.to_canonical();
    let value = |text: String| HeaderValue::from_str(&text).ok();
    if client.trusted {
        let chain: Vec<&str> =
            headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        let chain = if chain.is_empty() { ip.to_string() } else { format!("{}, {ip}", chain.join(", ")) };
        put(headers, X_FORWARDED_FOR, value(chain));
        for (name, own) in [
            (X_FORWARDED_PROTO, client.scheme.to_owned()),
            (X_FORWARDED_HOST, client.host.to_owned()),
            (X_FORWARDED_PORT, client.port.to_string()),
        ] {
            if !headers.contains_key(&name) {
                put(headers, name, value(own));
            }
        }
        return;
    }
    headers.remove(FORWARDED);
    drop_look_alikes(headers);
    // Written once: a copy shares its bytes.
    let ip = value(ip.to_string());
    put(headers, X_FORWARDED_FOR, ip.clone());
    put(headers, X_REAL_IP, ip);
    put(headers, X_FORWARDED_PROTO, Some(HeaderValue::from_static(client.scheme)));
    put(headers, X_FORWARDED_HOST, HeaderValue::from_str(client.host).ok());
    put(headers, X_FORWARDED_PORT, Some(HeaderValue::from(client.port)));
}

/// `X_Forwarded_For` is `X-Forwarded-For` to every program that gets its headers as environment variables (RFC 3875 §4.1.18).
fn drop_look_alikes(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().contains('_')) {
        return;
    }
    let ours = [FORWARDED, X_FORWARDED_FOR, X_REAL_IP, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_FORWARDED_PORT];
    let alike = |name: &&HeaderName| {
        let plain = name.as_str().replace('_', "-");
        name.as_str() != plain && ours.iter().any(|own| own.as_str() == plain)
    };
    let alike: Vec<HeaderName> = headers.keys().filter(alike).cloned().collect();
    for name in alike {
        headers.remove(name);
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => headers.insert(name, value),
        None => headers.remove(name),
    };
}

/// Trailers that a machine or a client may be given: none that frames, routes or authenticates (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [HOST, CONTENT_LENGTH, TRAILER, FORWARDED, X_FORWARDED_FOR, X_REAL_IP] {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn client(trusted: bool) -> Client<'static> {
        let ip = "::ffff:192.0.2.7".parse().unwrap();
        Client { ip, trusted, scheme: "https", host: "web.mashine.dev", port: 443 }
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut map = headers(&[
            ("host", "a"),
            ("connection", "close, x-one, Host, content-length"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("proxy-authorization", "secret"),
            ("http2-settings", "x"),
            ("content-length", "5"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-two"]);
    }

    #[test]
    fn a_client_cannot_say_who_it_is_and_a_trusted_proxy_can() {
        let claims = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
            ("x_forwarded_for", "203.0.113.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-host", "evil"),
        ];
        let mut map = headers(&claims);
        tell_client(&mut map, client(false));
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "web.mashine.dev"),
            ("x-forwarded-port", "443"),
        ] {
            assert_eq!(map.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        assert!(!map.contains_key("forwarded") && !map.contains_key("x_forwarded_for"));
        let mut map = headers(&claims);
        tell_client(&mut map, client(true));
        assert_eq!(map["x-forwarded-for"], "203.0.113.9, 10.0.0.1, 192.0.2.7");
        assert_eq!(
            (&map["x-forwarded-host"], &map["forwarded"]),
            (&"evil".parse().unwrap(), &"for=203.0.113.9".parse().unwrap())
        );
    }

    #[test]
    fn one_may_upgrade_to_websocket_and_never_to_http() {
        let asked = |upgrade: &[(&str, &str)]| super::upgrade(&headers(upgrade)).is_some();
        assert!(asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        for bad in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "H2C")],
            &[("connection", "upgrade"), ("upgrade", "HTTP/2.0")],
            &[("connection", "upgrade"), ("upgrade", "TLS/1.3")],
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "")],
        ] {
            assert!(!asked(bad), "{bad:?}");
        }
    }
}
