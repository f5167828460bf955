//! What of a compose file matters to a release: the port that it publishes. podman-compose reads all the rest.

use yaml_rust2::{Yaml, YamlLoader};

/// Larger files are not looked into: nobody writes one by hand.
const LONGEST: usize = 256 * 1024;

/// The host's side of a port that a compose file publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// As `"8080:80"`.
    Fixed(u16),
    /// As `"${PORT:-8080}:80"`: ours to give.
    Given,
}

/// The port that some service publishes: one that is given before one that is fixed, else the first.
///
/// # Errors
/// The file is no YAML.
pub fn published(text: &str) -> Result<Option<Published>, String> {
    if text.len() > LONGEST {
        return Err(format!("it has {} bytes; the most that is read are {LONGEST}", text.len()));
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| format!("it is no YAML: {error}"))?;
    let services = documents.first().map(|document| &document["services"]);
    let services = services.and_then(Yaml::as_hash).into_iter().flat_map(|services| services.values());
    let ports = services.filter_map(|service| service["ports"].as_vec()).flatten();
    let found: Vec<Published> = ports.filter_map(host_side).collect();
    Ok(found.iter().find(|published| **published == Published::Given).or(found.first()).copied())
}

/// The short form, `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`, and the long one, `{target: CONTAINER, published: HOST}`.
fn host_side(port: &Yaml) -> Option<Published> {
    let host = match &port["published"] {
        Yaml::Integer(port) => return u16::try_from(*port).ok().map(Published::Fixed),
        Yaml::String(published) => published.as_str(),
        _ => {
            // The default of a variable has a colon of its own.
            let (host, container) = port.as_str()?.rsplit_once(':')?;
            if !container.starts_with(|first: char| first.is_ascii_digit() || first == '$') {
                return None;
            }
            host
        }
    };
    if host.contains("${PORT") || host.ends_with("$PORT") {
        return Some(Published::Given);
    }
    host.rsplit(':').next()?.parse().ok().map(Published::Fixed)
}

/// Where a release of a compose file listens; none when it is told.
///
/// # Errors
/// It publishes none, or the one on which the machine itself serves.
pub fn app_port(
    said: Option<u16>,
    published: Option<Published>,
    port: u16,
    file: &str,
) -> Result<Option<u16>, String> {
    match (said, published) {
        (Some(said), _) => Ok(Some(said)),
        (None, Some(Published::Given)) => Ok(None),
        (None, Some(Published::Fixed(taken))) if taken == port => Err(format!(
            "{file} publishes port {taken}, on which the machine itself serves: \
             publish \"${{PORT:-{taken}}}:…\" in its place (PORT is given to each release)"
        )),
        (None, Some(Published::Fixed(other))) => Ok(Some(other)),
        (None, None) => Err(format!(
            "{file} publishes no port: add ports: [\"${{PORT:-8080}}:8080\"] to the service that answers requests, \
             or app_port = N to mashine.toml"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_found_in_every_form_that_compose_has() {
        for (ports, found) in [
            ("[\"8080:80\"]", Some(Published::Fixed(8080))),
            ("[8080:80]", Some(Published::Fixed(8080))),
            ("\n      - 8080:80/tcp # web", Some(Published::Fixed(8080))),
            ("\n      - '127.0.0.1:9000:80'", Some(Published::Fixed(9000))),
            ("['[::1]:9000:80']", Some(Published::Fixed(9000))),
            ("['${PORT:-8080}:80']", Some(Published::Given)),
            ("['127.0.0.1:${PORT}:80']", Some(Published::Given)),
            ("['$PORT:80']", Some(Published::Given)),
            ("['9000:90', '${PORT:-8080}:80']", Some(Published::Given)),
            ("\n      - target: 80\n        published: 8081", Some(Published::Fixed(8081))),
            ("[{target: 80, published: '8081'}]", Some(Published::Fixed(8081))),
            ("[{target: 80, published: '${PORT:-1}'}]", Some(Published::Given)),
            ("[80, '8080-8081:80-81', {target: 80}]", None),
            ("[]", None),
        ] {
            let text = format!("services:\n  web:\n    image: a\n    ports: {ports}\n");
            assert_eq!(published(&text), Ok(found), "{text}");
        }
        let elsewhere =
            "services:\n  web:\n    volumes: ['./data:/data', '8080:80']\n    environment: ['KEY=1:2']\n";
        assert_eq!(published(elsewhere), Ok(None), "what is no port is none");
        assert_eq!(published(""), Ok(None));
        assert!(published("services: [").unwrap_err().contains("no YAML"));
        assert!(published(&" ".repeat(LONGEST + 1)).is_err());
    }
}
