//! What of a machine the public reaches through the edge: the Fly Machines API's `services`.
//!
//! A machine without services has [`standard`] ones: what listens on its port 80, at 443 behind TLS, and a redirect at 80.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One port inside of a machine and the public ports that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `tcp`, the only one.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port that the workload listens on.
    pub internal_port: u16,
    /// Starts the machine for whoever comes here; the machine's own `autostart` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// The public ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// How much at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// How the edge sees whether it works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<ServiceCheck>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
}

/// A public port and what the edge does there before the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The number.
    pub port: u16,
    /// What the edge takes off on the way. Without `tls`, TLS goes through untouched: the machine has the certificate.
    #[serde(default)]
    pub handlers: Vec<Handler>,
    /// Sends whoever comes without TLS to port 443.
    #[serde(default)]
    pub force_https: bool,
    /// With the handler `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    /// With the handler `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_options: Option<TlsOptions>,
    /// With the handler `proxy_proto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_proto_options: Option<ProxyProtoOptions>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl ServicePort {
    /// Whether the edge does that there.
    pub fn has(&self, handler: Handler) -> bool {
        self.handlers.contains(&handler)
    }
}

/// What the edge does at a public port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// Ends TLS.
    Tls,
    /// Reads HTTP: `X-Forwarded-*`, a request at a time.
    Http,
    /// Begins each connection to the machine with a PROXY header.
    ProxyProto,
    /// Ends TLS as PostgreSQL's clients ask for it.
    PgTls,
}

/// Of HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpOptions {
    /// The machine speaks HTTP/2 without TLS (gRPC needs it).
    #[serde(default)]
    pub h2_backend: bool,
    /// The longest body of a request, bytes; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u64>,
    /// How long a request's body may pause; 60 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Interval>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsOptions {
    /// Protocols that are offered by ALPN: `h2`, `http/1.1`; both with the handler `http` when empty, none without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    /// `TLSv1.2` and `TLSv1.3`; both when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Of the PROXY protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyProtoOptions {
    /// `v1` or `v2`; `v1` when absent, as on Fly.
    #[serde(default)]
    pub version: ProxyVersion,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// One line of text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// How much of a service one machine takes at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// What is counted.
    #[serde(rename = "type", default)]
    pub kind: ConcurrencyKind,
    /// With so many at once others begin to wait for one of them to end, for a moment each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
    /// With so many at once and waiting, others are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
}

/// What concurrency counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConcurrencyKind {
    /// TCP connections of clients.
    #[default]
    Connections,
    /// HTTP requests.
    Requests,
}

/// How the edge sees whether a service works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCheck {
    /// What is tried.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// The port; the service's `internal_port` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From one try to the next; 15 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// How long an answer may take; 2 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Interval>,
    /// How long after its start a machine may fail; 10 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<Interval>,
    /// HTTP: the path, `/` when absent. Any status of 200 to 399 is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP: `GET` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Keys that this version does not act on, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What a check tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// That a connection is accepted.
    Tcp,
    /// That a request is answered well.
    Http,
}

/// A duration as clients write it: `"15s"`, `"500ms"`, `"2m"`, or a number of seconds. Milliseconds inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    /// Milliseconds.
    pub ms: u64,
}

impl Interval {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self { ms: seconds.saturating_mul(1000) }
    }

    /// As the standard library has it.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.ms)
    }
}

impl std::str::FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write \"15s\", \"500ms\" or \"2m\"");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let each = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(each).map(|ms| Self { ms }).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.ms.is_multiple_of(1000) {
            write!(f, "{}s", self.ms / 1000)
        } else {
            write!(f, "{}ms", self.ms)
        }
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(seconds) => Ok(Self::seconds(seconds)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// What a machine has that says nothing of services: HTTP on its port 80, where the front of `git push` deploys listens, at 443 behind TLS.
pub fn standard() -> Vec<Service> {
    let port = |port, handlers: &[Handler], force_https| ServicePort {
        port,
        handlers: handlers.to_vec(),
        force_https,
        http_options: None,
        tls_options: None,
        proxy_proto_options: None,
        other: BTreeMap::new(),
    };
    vec![Service {
        protocol: Protocol::Tcp,
        internal_port: 80,
        autostart: None,
        ports: vec![port(443, &[Handler::Tls, Handler::Http], false), port(80, &[Handler::Http], true)],
        concurrency: None,
        checks: Vec::new(),
        other: BTreeMap::new(),
    }]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_fly_writes_is_understood_and_nothing_is_lost() {
        let fly = json!({
            "protocol": "tcp", "internal_port": 8080, "autostart": true, "autostop": "off", "min_machines_running": 0,
            "ports": [
                {"port": 443, "handlers": ["tls", "http"], "force_https": false,
                 "http_options": {"h2_backend": true, "compress": true, "idle_timeout": "30s"},
                 "tls_options": {"alpn": ["h2"], "default_self_signed": true}},
                {"port": 5432, "handlers": ["pg_tls"], "force_https": false},
                {"port": 993, "handlers": ["proxy_proto"], "force_https": false, "proxy_proto_options": {"version": "v2"}},
            ],
            "concurrency": {"type": "requests", "soft_limit": 200, "hard_limit": 250},
            "checks": [{"type": "http", "interval": "15s", "timeout": "500ms", "grace_period": "1m", "method": "get",
                        "path": "/up", "headers": [{"name": "a", "values": ["b"]}]}],
        });
        let service: Service = serde_json::from_value(fly.clone()).unwrap();
        assert_eq!(service.checks[0].timeout, Some(Interval { ms: 500 }));
        let mut back = serde_json::to_value(&service).unwrap();
        assert_eq!(back["checks"][0]["grace_period"], "60s");
        back["checks"][0]["grace_period"] = json!("1m");
        assert_eq!(back, fly);
    }

    #[test]
    fn durations_are_written_in_units_or_as_seconds() {
        for (text, ms) in [("15s", 15_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("7", 7000)] {
            assert_eq!(text.parse(), Ok(Interval { ms }), "{text}");
        }
        assert_eq!(serde_json::from_value::<Interval>(json!(15)).unwrap(), Interval::seconds(15));
        for bad in ["", "s", "-1s", "1.5s", "10d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(bad.parse::<Interval>().is_err(), "{bad:?}");
        }
    }
}
