//! Services as a client writes them, checked: what the edge could not do is refused here, with the reason.

use std::collections::BTreeMap;

use mashines_fleet::record::Service;
use mashines_fleet::record::services::{
    CheckKind, Concurrency, ConcurrencyKind, Handler, Interval, ServiceCheck, ServicePort,
};

use crate::failure::{Failure, Result};

/// The most services of a machine.
const MOST_SERVICES: usize = 16;
/// The most public ports, and the most checks, of one service.
const MOST_EACH: usize = 16;
/// How often a check may be done, and how long anything may take.
const INTERVALS: std::ops::RangeInclusive<Interval> = Interval { ms: 1000 }..=Interval::seconds(3600);
const TIMEOUTS: std::ops::RangeInclusive<Interval> = Interval { ms: 100 }..=Interval::seconds(60);
const GRACE: std::ops::RangeInclusive<Interval> = Interval { ms: 0 }..=Interval::seconds(3600);
const IDLE: std::ops::RangeInclusive<Interval> = Interval { ms: 1000 }..=Interval::seconds(3600);
/// The highest limit of what runs at once.
const MOST_AT_ONCE: u32 = 100_000;

/// All services of a machine.
///
/// # Errors
/// What the edge could not do, and where it stands.
pub fn check(services: &[Service]) -> Result<()> {
    if services.len() > MOST_SERVICES {
        return Err(Failure::invalid(format!(
            "{} services: a machine has at most {MOST_SERVICES}",
            services.len()
        )));
    }
    let mut taken: BTreeMap<u16, usize> = BTreeMap::new();
    for (number, service) in services.iter().enumerate() {
        let at = format!("services[{number}]");
        check_one(&at, service)?;
        for port in &service.ports {
            if let Some(first) = taken.insert(port.port, number) {
                return Err(Failure::invalid(format!(
                    "{at}: port {} leads to services[{first}] already: a public port leads to one place",
                    port.port
                )));
            }
        }
    }
    Ok(())
}

fn check_one(at: &str, service: &Service) -> Result<()> {
    if service.internal_port == 0 {
        return Err(Failure::invalid(format!("{at}: internal_port 0: it is 1 to 65535")));
    }
    for (what, count) in [("ports", service.ports.len()), ("checks", service.checks.len())] {
        if count > MOST_EACH {
            return Err(Failure::invalid(format!("{at}: {count} {what}: there are at most {MOST_EACH}")));
        }
    }
    service.ports.iter().try_for_each(|port| check_port(at, port))?;
    let reads_http = service.ports.iter().any(|port| port.has(Handler::Http));
    service.concurrency.as_ref().map_or(Ok(()), |limits| check_concurrency(at, limits, reads_http))?;
    service.checks.iter().try_for_each(|check| check_check(at, check))
}

fn check_port(at: &str, port: &ServicePort) -> Result<()> {
    let wrong = |why: String| Err(Failure::invalid(format!("{at}: port {}: {why}", port.port)));
    if port.port == 0 {
        return wrong("it is 1 to 65535".to_owned());
    }
    if port.port == 22 {
        return wrong("22 is SSH's: every machine has that door already".to_owned());
    }
    let mut handlers = port.handlers.clone();
    handlers.sort_unstable();
    handlers.dedup();
    if handlers.len() != port.handlers.len() {
        return wrong("a handler stands there twice".to_owned());
    }
    let has = |handler| port.has(handler);
    if has(Handler::PgTls) && (has(Handler::Tls) || has(Handler::Http)) {
        return wrong(
            "pg_tls stands alone or with proxy_proto: PostgreSQL asks for TLS in its own way".to_owned(),
        );
    }
    if has(Handler::Http) && has(Handler::ProxyProto) {
        return wrong(
            "http and proxy_proto exclude each other: with http the client is in X-Forwarded-For".to_owned(),
        );
    }
    if port.force_https && !has(Handler::Http) {
        return wrong("force_https needs the handler http: a redirect is HTTP's".to_owned());
    }
    if port.force_https && has(Handler::Tls) {
        return wrong(
            "force_https with the handler tls would redirect for ever: leave one of them out".to_owned(),
        );
    }
    if has(Handler::Http) && !has(Handler::Tls) && port.port == 443 {
        return wrong(
            "443 without the handler tls: name it, or leave `handlers` empty to pass TLS through".to_owned(),
        );
    }
    let options = [
        ("http_options", port.http_options.is_some(), has(Handler::Http), "http"),
        ("tls_options", port.tls_options.is_some(), has(Handler::Tls) || has(Handler::PgTls), "tls"),
        ("proxy_proto_options", port.proxy_proto_options.is_some(), has(Handler::ProxyProto), "proxy_proto"),
    ];
    for (name, given, useful, handler) in options {
        if given && !useful {
            return wrong(format!(
                "{name} without the handler {handler} has no effect: add it to `handlers`"
            ));
        }
    }
    if let Some(tls) = &port.tls_options {
        let known = |given: &[String], known: &[&str], what: &str| {
            let odd = given.iter().find(|given| !known.contains(&given.as_str()));
            odd.map_or(Ok(()), |odd| wrong(format!("{what} {odd:?}: there are {}", known.join(" and "))))
        };
        if has(Handler::Http) {
            known(&tls.alpn, &["h2", "http/1.1"], "tls_options.alpn")?;
        }
        if let Some(long) = tls.alpn.iter().find(|name| name.is_empty() || name.len() > 64) {
            return wrong(format!("tls_options.alpn {long:?}: a protocol's name has 1 to 64 bytes"));
        }
        known(&tls.versions, &["TLSv1.2", "TLSv1.3"], "tls_options.versions")?;
    }
    let idle = port.http_options.as_ref().and_then(|http| http.idle_timeout);
    within(&format!("{at}: port {}: http_options.idle_timeout", port.port), idle, &IDLE)
}

fn check_concurrency(at: &str, limits: &Concurrency, reads_http: bool) -> Result<()> {
    let wrong = |why: String| Err(Failure::invalid(format!("{at}: concurrency: {why}")));
    if limits.kind == ConcurrencyKind::Requests && !reads_http {
        return wrong("requests are counted at ports with the handler http: count connections".to_owned());
    }
    for (name, limit) in [("soft_limit", limits.soft_limit), ("hard_limit", limits.hard_limit)] {
        if limit.is_some_and(|limit| !(1..=MOST_AT_ONCE).contains(&limit)) {
            return wrong(format!("{name} {}: it is 1 to {MOST_AT_ONCE}", limit.unwrap_or_default()));
        }
    }
    match (limits.soft_limit, limits.hard_limit) {
        (Some(soft), Some(hard)) if soft > hard => {
            wrong(format!("soft_limit {soft} is above hard_limit {hard}: requests wait between the two"))
        }
        _ => Ok(()),
    }
}

fn check_check(at: &str, check: &ServiceCheck) -> Result<()> {
    let at = format!("{at}: checks");
    if check.port == Some(0) {
        return Err(Failure::invalid(format!("{at}: port 0: it is 1 to 65535")));
    }
    within(&format!("{at}: interval"), check.interval, &INTERVALS)?;
    within(&format!("{at}: timeout"), check.timeout, &TIMEOUTS)?;
    within(&format!("{at}: grace_period"), check.grace_period, &GRACE)?;
    if check.kind == CheckKind::Tcp {
        return match (&check.path, &check.method) {
            (None, None) => Ok(()),
            _ => Err(Failure::invalid(format!(
                "{at}: a tcp check has no path and no method: write \"type\": \"http\""
            ))),
        };
    }
    let path = check.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') || path.len() > 1024 || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::invalid(format!(
            "{at}: path {path:?}: it begins with / and has no spaces; write others as %20"
        )));
    }
    let method = check.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    if !["GET", "HEAD", "OPTIONS"].contains(&method.as_str()) {
        return Err(Failure::invalid(format!(
            "{at}: method {method}: a check changes nothing: GET, HEAD or OPTIONS"
        )));
    }
    Ok(())
}

fn within(what: &str, given: Option<Interval>, range: &std::ops::RangeInclusive<Interval>) -> Result<()> {
    match given {
        Some(given) if !range.contains(&given) => {
            Err(Failure::invalid(format!("{what} {given}: it is {} to {}", range.start(), range.end())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(change: impl FnOnce(&mut Value)) -> std::result::Result<(), String> {
        let mut services = json!([{
            "internal_port": 8080,
            "ports": [{"port": 443, "handlers": ["tls", "http"]}, {"port": 80, "handlers": ["http"], "force_https": true}],
            "concurrency": {"type": "requests", "soft_limit": 10, "hard_limit": 20},
            "checks": [{"type": "http", "path": "/up", "interval": "5s"}],
        }]);
        change(&mut services);
        let services: Vec<Service> = serde_json::from_value(services).unwrap();
        check(&services).map_err(|failure| failure.message)
    }

    #[test]
    fn what_people_usually_write_is_fine() {
        assert_eq!(checked(|_| ()), Ok(()));
        assert_eq!(checked(|s| s[0]["ports"] = json!([{"port": 443}])), Err("services[0]: concurrency: requests are counted at ports with the handler http: count connections".to_owned()));
        assert_eq!(
            checked(
                |s| s[0]["ports"][0] = json!({"port": 8443, "handlers": ["tls", "proxy_proto"], "proxy_proto_options": {"version": "v2"}})
            ),
            Ok(())
        );
        assert_eq!(check(&mashines_fleet::record::services::standard()), Ok(()));
    }

    #[test]
    fn every_refusal_names_the_place_and_the_way_out() {
        let cases: [(&str, Value, &str); 14] = [
            ("/0/internal_port", json!(0), "1 to 65535"),
            ("/0/ports/0/port", json!(22), "SSH's"),
            ("/0/ports/0/port", json!(80), "leads to services[0] already"),
            ("/0/ports/0/handlers", json!(["tls", "tls"]), "twice"),
            ("/0/ports/0/handlers", json!(["pg_tls", "http"]), "stands alone"),
            ("/0/ports/0/handlers", json!(["http", "proxy_proto"]), "exclude each other"),
            ("/0/ports/0/handlers", json!(["http"]), "pass TLS through"),
            ("/0/ports/1/handlers", json!([]), "force_https needs"),
            ("/0/ports/1/handlers", json!(["tls", "http"]), "for ever"),
            ("/0/concurrency/soft_limit", json!(21), "above hard_limit 20"),
            ("/0/concurrency/hard_limit", json!(0), "1 to 100000"),
            ("/0/checks/0/interval", json!("1ms"), "1s to 3600s"),
            ("/0/checks/0/path", json!("up"), "begins with /"),
            ("/0/checks/0/type", json!("tcp"), "has no path"),
        ];
        for (pointer, value, told) in cases {
            let outcome = checked(|services| *services.pointer_mut(pointer).unwrap() = value.clone());
            let message = outcome.unwrap_err();
            assert!(
                message.starts_with("services[0]") && message.contains(told),
                "{pointer} {value}: {message}"
            );
        }
    }

    #[test]
    fn options_without_their_handler_are_refused() {
        for (name, options) in [
            ("http_options", json!({"h2_backend": true})),
            ("tls_options", json!({"alpn": ["h2"]})),
            ("proxy_proto_options", json!({"version": "v1"})),
        ] {
            let outcome = checked(|s| {
                s[0]["ports"] = json!([{"port": 443}]);
                s[0]["concurrency"] = Value::Null;
                s[0]["ports"][0][name] = options;
            });
            assert!(outcome.unwrap_err().contains("has no effect"), "{name}");
        }
        let bad = checked(|s| s[0]["ports"][0]["tls_options"] = json!({"versions": ["SSLv3"]}));
        assert!(bad.unwrap_err().contains("TLSv1.2 and TLSv1.3"));
        let bad = checked(|s| s[0]["ports"][0]["tls_options"] = json!({"alpn": ["spdy/3"]}));
        assert!(bad.unwrap_err().contains("h2 and http/1.1"));
    }
}
