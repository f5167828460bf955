//! Which names may be had: a pure policy of the text and the fleet's zones.

use idna::AsciiDenyList;
use mashines_fleet::id::{DomainName, Slug};
use mashines_fleet::view::View;

use crate::failure::{Failure, Result};

/// Zones in which nobody's domain can be: for names that are not in the public DNS (RFC 6761 and its like), and reverse zones.
const NOT_PUBLIC: [&str; 9] =
    ["arpa", "internal", "invalid", "local", "localhost", "onion", "alt", "home.arpa", "in-addr.arpa"];

/// A name, and whose it is to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Of the machine with that slug, or the wildcard below it: the platform's to give.
    Machines(DomainName, Slug),
    /// Of somebody who has to prove it.
    Custom(DomainName),
}

impl Named {
    /// The name.
    pub fn name(&self) -> &DomainName {
        match self {
            Self::Machines(name, _) | Self::Custom(name) => name,
        }
    }
}

/// A name as a person types it, in the form of DNS: lower case, A-labels (UTS 46), no dot at the end.
///
/// # Errors
/// It is no name of a host.
pub fn normal(text: &str) -> Result<DomainName> {
    let shown: String = text.chars().take(80).collect();
    let no = |why: &str| Failure::invalid(format!("{shown:?} cannot have a certificate: {why}"));
    if text.len() > 1000 {
        return Err(no("names are at most 253 characters"));
    }
    let typed = text.trim().trim_end_matches('.');
    let (star, rest) = typed.strip_prefix("*.").map_or(("", typed), |rest| ("*.", rest));
    let ascii = idna::domain_to_ascii_cow(rest.as_bytes(), AsciiDenyList::URL)
        .map_err(|_| no("it is no domain name (IDNA)"))?;
    let name: DomainName = format!("{star}{}", ascii.to_ascii_lowercase())
        .parse()
        .map_err(|error: mashines_fleet::id::BadId| no(&error.to_string()))?;
    if rest.contains('_') {
        return Err(no("names of hosts have no underscores"));
    }
    let top = name.as_str().rsplit('.').next().unwrap_or_default();
    if top.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no("it is an address; certificates are for names"));
    }
    Ok(name)
}

/// Whose a name is to give.
///
/// # Errors
/// It is one of the platform's own, or of a zone that is not in the public DNS.
pub fn named(view: &View, name: DomainName) -> Result<Named> {
    let no = |why: String| Failure::invalid(format!("{name} cannot have a certificate of its own: {why}"));
    if let Some(zone) = NOT_PUBLIC.into_iter().find(|zone| name.is_within(zone)) {
        return Err(no(format!("no name below {zone} is in the public DNS")));
    }
    let zones = view.config.iter().flat_map(|config| &config.zones);
    if let Some(zone) = zones.map(|zone| zone.name.to_string()).find(|zone| name.is_within(zone)) {
        let apex = view.config.as_ref().is_some_and(|config| config.domain == zone);
        if !apex {
            return Err(no(format!("{zone} is a zone of the platform's")));
        }
    }
    let apex = view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default();
    if apex.is_empty() || !name.is_within(&apex) {
        return Ok(Named::Custom(name));
    }
    let base = name.base();
    let slug = base.as_str().strip_suffix(&apex).and_then(|rest| rest.strip_suffix('.'));
    match slug.map(str::parse::<Slug>) {
        Some(Ok(slug)) => Ok(Named::Machines(name, slug)),
        Some(Err(_)) => Err(no(format!(
            "below {apex} there are certificates for a machine's name and for the wildcard below it: *.web.{apex}"
        ))),
        None => {
            Err(no(format!("{apex} is the platform's, which has its certificate for it and for *.{apex}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mashines_fleet::record::FleetConfig;

    use super::*;

    fn view() -> View {
        let config: FleetConfig = serde_json::from_value(serde_json::json!({
            "domain": "mashine.test", "prefix": "2001:db8::/32", "name_servers": [], "ssh_ports": [1, 2],
            "ssh_ca": null, "zones": [{"name": "corp.example", "records": []}],
        }))
        .unwrap();
        View { config: Some(Arc::new(config)), ..View::default() }
    }

    #[test]
    fn names_are_brought_to_the_form_of_dns() {
        for (typed, name) in [
            ("WWW.Example.ORG.", "www.example.org"),
            (" bücher.example ", "xn--bcher-kva.example"),
            ("*.Bücher.example", "*.xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(normal(typed).unwrap().as_str(), name);
        }
        for bad in [
            "",
            "example",
            "a b.example",
            "192.0.2.1",
            "[2001:db8::1]",
            "a..example",
            "_x.example",
            "a.*.example",
            "xn--\u{0}.example",
            "http://a.example/",
            &"a.".repeat(600),
        ] {
            assert!(normal(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn below_the_apex_only_machines_names_and_their_wildcards_are_given() {
        let named = |text: &str| named(&view(), text.parse().unwrap());
        let slug = |text: &str| text.parse::<Slug>().unwrap();
        for name in ["web.mashine.test", "*.web.mashine.test"] {
            assert_eq!(named(name).unwrap(), Named::Machines(name.parse().unwrap(), slug("web")));
        }
        assert_eq!(named("www.example.org").unwrap(), Named::Custom("www.example.org".parse().unwrap()));
        assert_eq!(named("notmashine.test").unwrap(), Named::Custom("notmashine.test".parse().unwrap()));
        for refused in [
            "mashine.test",
            "*.mashine.test",
            "a.web.mashine.test",
            "web.app.internal",
            "1.0.0.127.in-addr.arpa",
        ] {
            assert!(named(refused).is_err(), "{refused}");
        }
    }
}
