//! Values as people type them: sizes, times, volumes, environment variables. Each error says what is expected, with an example.

use std::collections::BTreeMap;
use std::time::Duration;

use mashines_fleet::access::Standing;
use mashines_fleet::record::Role;
use mashines_fleet::record::services::{Handler, HttpOptions, Protocol, Service, ServicePort};

/// An amount of memory or disk in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mebibytes(pub u64);

/// A volume of a new machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg {
    /// Its name, or the id of one that exists.
    pub name: String,
    /// How big to make it; none: it exists.
    pub size: Option<Mebibytes>,
    /// Where the guest mounts it.
    pub path: String,
}

/// A path on this machine or on one of the fleet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPath {
    /// The machine, or none for this one.
    pub machine: Option<String>,
    /// The path.
    pub path: String,
}

/// Reads `512M`, `1.5G`, `2GiB`, `1T`. Powers of 1024. A bare number is refused: it could mean anything.
pub fn size(text: &str) -> Result<Mebibytes, String> {
    let wrong = || format!("{text:?} is not a size: a number with M, G or T, such as 512M or 1.5G");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_mib: u64 = match unit.to_ascii_lowercase().as_str() {
        "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1 << 10,
        "t" | "tb" | "tib" => 1 << 20,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 6 || whole.is_empty() {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let parts: u64 = fraction.parse().map_err(|_| wrong())?;
    let scale = (0..fraction.len()).fold(1u64, |scale, _| scale * 10);
    let mib = whole.checked_mul(unit_mib).ok_or_else(wrong)?.checked_add(parts * unit_mib / scale);
    match mib {
        Some(mib) if mib > 0 => Ok(Mebibytes(mib)),
        _ => Err(wrong()),
    }
}

/// Reads `90`, `90s`, `5m`, `1h`, `7d`, `500ms`. A bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: a number with ms, s, m, h or d, such as 90s or 5m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads `viewer`, `operator` or `admin`.
pub fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|why: mashines_fleet::access::BadRole| why.to_string())
}

/// Reads a role, or `owner`.
pub fn standing(text: &str) -> Result<Standing, String> {
    text.parse().map_err(|why: mashines_fleet::access::BadRole| why.to_string())
}

/// Reads `NAME:SIZE[:PATH]`, a volume to make, or `NAME[:PATH]`, one that exists. Without a path it is mounted at `/NAME`.
pub fn volume(text: &str) -> Result<VolumeArg, String> {
    let wrong = |why: &str| {
        format!(
            "{text:?} is not a volume ({why}): NAME:SIZE[:PATH] makes one, NAME[:PATH] takes one that exists; data:1G:/data"
        )
    };
    let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(usable) {
        return Err(wrong("the name is of letters, digits, _ and -"));
    }
    let (size_text, path) = match rest {
        None => (None, None),
        Some(path) if path.starts_with('/') => (None, Some(path)),
        Some(rest) => {
            rest.split_once(':').map_or((Some(rest), None), |(size, path)| (Some(size), Some(path)))
        }
    };
    let size = size_text.map(size).transpose().map_err(|why| wrong(&why))?;
    let path = path.map_or_else(|| format!("/{name}"), str::to_owned);
    if !path.starts_with('/') || path == "/" || path.chars().any(char::is_control) {
        return Err(wrong("the path begins with / and is not the root"));
    }
    Ok(VolumeArg { name: name.to_owned(), size, path })
}

/// Reads `KEY=VALUE`.
pub fn environment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value))
            if !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || c.is_control()) =>
        {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("{text:?} is not a variable: KEY=VALUE, such as LOG=debug")),
    }
}

/// Reads `PUBLIC:INTERNAL[/http|h2|tls|tcp]`: a public port, the machine's port that it leads to, and what the edge does between them.
pub fn service(text: &str) -> Result<Service, String> {
    let bad = || {
        format!(
            "{text:?} is not a service: PUBLIC:INTERNAL and maybe /http (the default), /h2 (gRPC), /tls or /tcp, such as 443:8080 or 443:8443/tcp"
        )
    };
    let (ports, kind) = text.split_once('/').unwrap_or((text, "http"));
    let (public, internal) = ports.split_once(':').ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
    let h2 = HttpOptions { h2_backend: true, ..HttpOptions::default() };
    let (handlers, http_options) = match kind {
        "http" => (vec![Handler::Tls, Handler::Http], None),
        "h2" => (vec![Handler::Tls, Handler::Http], Some(h2)),
        "tls" => (vec![Handler::Tls], None),
        "tcp" => (Vec::new(), None),
        _ => return Err(bad()),
    };
    let plain = ServicePort {
        port: 80,
        handlers: vec![Handler::Http],
        force_https: true,
        http_options,
        tls_options: None,
        proxy_proto_options: None,
        other: BTreeMap::new(),
    };
    let port = ServicePort { port: number(public)?, handlers, force_https: false, ..plain.clone() };
    // Whoever types the name without https:// is sent there.
    let redirect = (port.port == 443 && port.has(Handler::Http)).then_some(plain);
    Ok(Service {
        protocol: Protocol::Tcp,
        internal_port: number(internal)?,
        autostart: None,
        ports: [port].into_iter().chain(redirect).collect(),
        concurrency: None,
        checks: Vec::new(),
        other: BTreeMap::new(),
    })
}

/// Reads `machine:path`, or a local path. As scp does: a colon behind a slash belongs to a local path.
pub fn copy_path(text: &str) -> Result<CopyPath, String> {
    match text.split_once(':') {
        Some((machine, path)) if !machine.contains('/') => {
            if machine.is_empty() {
                return Err(format!("{text:?} names no machine: machine:path, or ./path for a local file"));
            }
            Ok(CopyPath { machine: Some(machine.to_owned()), path: path.to_owned() })
        }
        _ => Ok(CopyPath { machine: None, path: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_need_a_unit() {
        assert_eq!(size("512M"), Ok(Mebibytes(512)));
        assert_eq!(size("1G"), Ok(Mebibytes(1024)));
        assert_eq!(size("1.5GiB"), Ok(Mebibytes(1536)));
        assert_eq!(size("2t"), Ok(Mebibytes(2 << 20)));
        for bad in
            ["", "512", "M", "0M", "-1G", "1.G", ".5G", "1K", "1e3M", "99999999999999T", "0.0001M", "1 G"]
        {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_service_is_two_ports_and_what_is_done_between_them() {
        let web = service("443:8080").unwrap();
        assert_eq!(web.internal_port, 8080);
        let at = |service: &Service, port: u16| service.ports.iter().find(|at| at.port == port).cloned();
        assert_eq!(at(&web, 443).unwrap().handlers, [Handler::Tls, Handler::Http]);
        assert!(at(&web, 80).unwrap().force_https, "plain requests are sent to 443");
        let grpc = at(&service("443:50051/h2").unwrap(), 443).unwrap();
        assert!(grpc.http_options.is_some_and(|http| http.h2_backend));
        assert_eq!(at(&service("5432:5432/tls").unwrap(), 5432).unwrap().handlers, [Handler::Tls]);
        let through = service("443:8443/tcp").unwrap();
        assert!(at(&through, 443).unwrap().handlers.is_empty() && at(&through, 80).is_none());
        for bad in [
            "",
            "443",
            "443:",
            ":80",
            "0:80",
            "443:0",
            "443:65536",
            "443:80/udp",
            "443:80/",
            "a:b",
            "443:80:90",
        ] {
            assert!(service(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_take_a_unit_or_seconds() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "s", "1.5s", "-1", "1w", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_volume_is_made_with_a_size_and_found_without() {
        let arg = |name: &str, size, path: &str| {
            Ok(VolumeArg { name: name.to_owned(), size, path: path.to_owned() })
        };
        assert_eq!(volume("data:1G"), arg("data", Some(Mebibytes(1024)), "/data"));
        assert_eq!(volume("data:1G:/srv/a:b"), arg("data", Some(Mebibytes(1024)), "/srv/a:b"));
        assert_eq!(volume("data"), arg("data", None, "/data"));
        assert_eq!(volume("data:/srv"), arg("data", None, "/srv"));
        for bad in
            ["", ":1G", "data:", "data:1G:", "data:1G:srv", "data:1G:/", "a/b:1G", "data:big", "data:/"]
        {
            assert!(volume(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_variable_may_be_empty_but_not_nameless() {
        assert_eq!(environment("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(environment("A="), Ok(("A".to_owned(), String::new())));
        assert!(environment("A").is_err());
        assert!(environment("=b").is_err());
        assert!(environment("A B=c").is_err());
    }

    #[test]
    fn a_colon_before_any_slash_names_a_machine() {
        let local = |path: &str| Ok(CopyPath { machine: None, path: path.to_owned() });
        assert_eq!(copy_path("./a:b"), local("./a:b"));
        assert_eq!(copy_path("notes.txt"), local("notes.txt"));
        assert_eq!(
            copy_path("web:/srv/x"),
            Ok(CopyPath { machine: Some("web".to_owned()), path: "/srv/x".to_owned() })
        );
        assert!(copy_path(":/srv").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics_a_parser(text in ".*") {
            let _ = size(&text);
            let _ = duration(&text);
            let _ = volume(&text);
            let _ = environment(&text);
            let _ = copy_path(&text);
        }

        #[test]
        fn every_whole_size_reads_back(mib in 1u64..1 << 40) {
            prop_assert_eq!(size(&format!("{mib}M")), Ok(Mebibytes(mib)));
        }

        #[test]
        fn a_volume_reads_back(name in "[a-z][a-z0-9_-]{0,20}", mib in 1u64..1 << 30, path in "/[a-z/]{1,20}") {
            let read = volume(&format!("{name}:{mib}M:{path}"));
            prop_assert_eq!(read, Ok(VolumeArg { name, size: Some(Mebibytes(mib)), path }));
        }
    }
}
