//! Which name leads to which machine: a pure projection of the replica.
//!
//! - `SLUG.APEX` and everything below it lead to the machine of that slug; a custom domain does once its owner has proved it.
//! - Names are looked up at each request, so that a connection is never tied to where a machine was, or to whom a name belonged.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use mashines_fleet::id::{ChallengeId, MachineId};
use mashines_fleet::record::services::{self, Service, ServicePort};
use mashines_fleet::record::{Challenge, Machine, Show, UnixMs};
use mashines_fleet::view::View;

use crate::directory::is_alive;

/// A machine as the public reaches it.
#[derive(Debug)]
pub struct Site {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Its own services, or the standard ones.
    services: Vec<Arc<Service>>,
    /// Their public ports.
    ports: Vec<Port>,
}

/// A public port and the service that it leads to: shared, since each request has them.
#[derive(Debug, Clone)]
pub struct Port {
    /// The service.
    pub service: Arc<Service>,
    /// What the edge does at the port.
    pub port: Arc<ServicePort>,
}

impl Site {
    fn of(machine: &Arc<Machine>) -> Self {
        let own = &machine.config.services;
        let services = if own.is_empty() { services::standard() } else { own.clone() };
        let services: Vec<Arc<Service>> = services.into_iter().map(Arc::new).collect();
        let of_service = |service: &Arc<Service>| {
            let each = service.ports.iter();
            let each = each.map(|port| Port { service: Arc::clone(service), port: Arc::new(port.clone()) });
            each.collect::<Vec<_>>()
        };
        let ports = services.iter().flat_map(of_service).collect();
        Self { machine: Arc::clone(machine), services, ports }
    }

    /// What the public port leads to.
    pub fn at(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|at| at.port.port == port)
    }

    /// All services.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }
}

/// Look-up tables of one view.
#[derive(Debug, Default)]
pub struct Sites {
    apex: String,
    slugs: HashMap<String, Arc<Site>>,
    domains: HashMap<String, Arc<Site>>,
    addresses: HashMap<Ipv6Addr, Arc<Site>>,
    machines: HashMap<MachineId, Arc<Site>>,
    challenges: HashMap<ChallengeId, Arc<Challenge>>,
}

impl Sites {
    /// The tables of `view`; sites of machines that did not change are taken from `before`.
    pub fn project(view: &View, before: &Self) -> Self {
        let apex =
            view.config.as_ref().map(|config| config.domain.trim_end_matches('.').to_ascii_lowercase());
        let mut sites = Self { apex: apex.unwrap_or_default(), ..Self::default() };
        for machine in view.machines.values().filter(|machine| is_alive(machine)) {
            let known = before.machines.get(&machine.id).filter(|site| Arc::ptr_eq(&site.machine, machine));
            let site = known.map_or_else(|| Arc::new(Site::of(machine)), Arc::clone);
            sites.slugs.insert(machine.slug.to_string(), Arc::clone(&site));
            sites.addresses.insert(machine.net.ipv6, Arc::clone(&site));
            sites.machines.insert(machine.id.clone(), site);
        }
        for domain in view.domains.values() {
            // A name whose owner has not proved it is not served: whoever had the address before may have pointed it here.
            let proved = domain.verified_at.and_then(|_| sites.machines.get(&domain.machine));
            let site = proved.filter(|site| site.machine.account == domain.account).cloned();
            if let Some(site) = site {
                sites.domains.insert(domain.id.to_string(), site);
            }
        }
        sites.challenges =
            view.challenges.iter().map(|(id, challenge)| (id.clone(), Arc::clone(challenge))).collect();
        sites
    }

    /// Where a name leads: lower case, without a dot at its end. A machine's own address in brackets is one of its names.
    pub fn find(&self, name: &str) -> Option<&Arc<Site>> {
        if let Some(address) = literal(name) {
            return self.addresses.get(&address);
        }
        let below = name.strip_suffix(self.apex.as_str()).and_then(|rest| rest.strip_suffix('.'));
        match below {
            Some(labels) => self.slugs.get(labels.rsplit('.').next()?),
            None => self.domains.get(name).or_else(|| {
                // `*.example.org` among the domains.
                let (_, parent) = name.split_once('.')?;
                self.domains.get(&format!("*.{parent}"))
            }),
        }
    }

    /// The machine, by its id.
    pub fn machine(&self, id: &MachineId) -> Option<&Arc<Site>> {
        self.machines.get(id)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.machines.values()
    }

    /// The apex: `mashine.dev`.
    pub fn apex(&self) -> &str {
        &self.apex
    }

    /// What an issuer wants to read at `http://NAME/.well-known/acme-challenge/TOKEN` (RFC 8555 §8.3).
    pub fn http_01<'a>(&'a self, name: &'a str, token: &str, now: UnixMs) -> Option<&'a str> {
        self.shown(name, now).find_map(|show| match show {
            Show::Http01 { token: wanted, authorization } if wanted == token => Some(authorization.as_str()),
            Show::Http01 { .. } | Show::Dns01 { .. } | Show::TlsAlpn01 { .. } => None,
        })
    }

    /// The digest that an issuer wants to see in a certificate of the name (RFC 8737 §3), hex.
    pub fn tls_alpn_01<'a>(&'a self, name: &'a str, now: UnixMs) -> Option<&'a str> {
        self.shown(name, now).find_map(|show| match show {
            Show::TlsAlpn01 { digest } => Some(digest.as_str()),
            Show::Http01 { .. } | Show::Dns01 { .. } => None,
        })
    }

    fn shown<'a>(&'a self, name: &'a str, now: UnixMs) -> impl Iterator<Item = &'a Show> {
        let due = self.challenges.values().filter(move |c| c.name.as_str() == name && c.expires_at > now);
        due.map(|challenge| &challenge.show)
    }
}

/// The address that a host in brackets is (RFC 3986 §3.2.2).
pub fn literal(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Whether both views give the same tables, found by comparing pointers.
pub fn is_same(one: &View, two: &View) -> bool {
    fn same<K: PartialEq, V>(
        one: &std::collections::BTreeMap<K, Arc<V>>,
        two: &std::collections::BTreeMap<K, Arc<V>>,
    ) -> bool {
        one.len() == two.len() && one.iter().zip(two).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
    }
    let config = match (&one.config, &two.config) {
        (Some(one), Some(two)) => one.domain == two.domain,
        (None, None) => true,
        _ => false,
    };
    config
        && same(&one.machines, &two.machines)
        && same(&one.domains, &two.domains)
        && same(&one.certificates, &two.certificates)
        && same(&one.challenges, &two.challenges)
}

#[cfg(test)]
pub(crate) mod tests {
    use mashines_fleet::record::Desired;
    use mashines_fleet::view::{Batch, Change};
    use serde_json::{Value, json};

    use super::*;
    use crate::directory::tests::{machine, view};

    pub fn with(view: &mut View, records: &[(&str, Value)]) {
        let changes = records
            .iter()
            .map(|(key, value)| Change { key: (*key).to_owned(), value: Some(value.clone()) })
            .collect();
        let revision = view.revision + 1;
        assert_eq!(view.apply(&Batch { revision, changes }), []);
    }

    pub fn domain(name: &str, owner: &str, machine: &Machine, verified: bool) -> (String, Value) {
        let verified = verified.then_some(1);
        let value = json!({"id": name, "account": owner, "machine": machine.id, "proof": "p",
                           "verified_at": verified, "created_at": 0});
        (format!("domains/{name}"), value)
    }

    fn found(sites: &Sites, name: &str) -> Option<String> {
        sites.find(name).map(|site| site.machine.slug.to_string())
    }

    #[test]
    fn names_lead_to_their_machines_and_to_no_others() {
        let web = machine("web", "ann");
        let gone = Machine { desired: Desired::Destroyed, ..machine("gone", "ann") };
        let mut view = view(&[web.clone(), machine("theirs", "bob"), gone.clone()]);
        for (key, value) in [
            domain("shop.example", "ann", &web, true),
            domain("unproved.example", "ann", &web, false),
            domain("stolen.example", "bob", &web, true),
            domain("left.example", "ann", &gone, true),
            domain("*.wild.example", "ann", &web, true),
        ] {
            with(&mut view, &[(&key, value)]);
        }
        let sites = Sites::project(&view, &Sites::default());
        for name in [
            "web.mashine.dev",
            "www.web.mashine.dev",
            "a.b.web.mashine.dev",
            "shop.example",
            "x.wild.example",
        ] {
            assert_eq!(found(&sites, name).as_deref(), Some("web"), "{name}");
        }
        assert_eq!(found(&sites, "theirs.mashine.dev").as_deref(), Some("theirs"));
        assert_eq!(found(&sites, &format!("[{}]", web.net.ipv6)).as_deref(), Some("web"));
        for name in [
            "mashine.dev",
            ".mashine.dev",
            "webmashine.dev",
            "web",
            "gone.mashine.dev",
            "unproved.example",
            "stolen.example",
            "left.example",
            "www.shop.example",
            "wild.example",
            "x.y.wild.example",
            "",
        ] {
            assert_eq!(found(&sites, name), None, "{name}");
        }
    }

    #[test]
    fn a_site_that_did_not_change_is_the_same_one() {
        let mut view = view(&[machine("web", "ann"), machine("theirs", "bob")]);
        let sites = Sites::project(&view, &Sites::default());
        let theirs = Machine { reason: Some("x".into()), ..machine("theirs", "bob") };
        with(&mut view, &[(&format!("machines/{}", theirs.id), serde_json::to_value(&theirs).unwrap())]);
        let later = Sites::project(&view, &sites);
        let same = |name| Arc::ptr_eq(sites.find(name).unwrap(), later.find(name).unwrap());
        assert!(same("web.mashine.dev") && !same("theirs.mashine.dev"));
    }

    #[test]
    fn a_challenge_is_shown_for_its_name_until_it_expires() {
        let mut view = view(&[]);
        let id = |n: u8| format!("challenges/{}", "01J0000000000000000000000".to_owned() + &n.to_string());
        with(
            &mut view,
            &[
                (
                    &id(1),
                    json!({"name": "a.example", "show": {"type": "http01", "token": "t", "authorization": "t.x"}, "expires_at": 100}),
                ),
                (
                    &id(2),
                    json!({"name": "a.example", "show": {"type": "tls-alpn01", "digest": "ab"}, "expires_at": 100}),
                ),
            ],
        );
        let sites = Sites::project(&view, &Sites::default());
        assert_eq!(sites.http_01("a.example", "t", 99), Some("t.x"));
        assert_eq!(sites.tls_alpn_01("a.example", 99), Some("ab"));
        for (name, token, now) in [("b.example", "t", 99), ("a.example", "u", 99), ("a.example", "t", 100)] {
            assert_eq!(sites.http_01(name, token, now), None);
        }
    }

    #[test]
    fn a_machine_without_services_has_its_port_80() {
        let view = view(&[machine("web", "ann")]);
        let sites = Sites::project(&view, &Sites::default());
        let site = sites.find("web.mashine.dev").unwrap();
        assert_eq!(site.at(443).map(|at| at.service.internal_port), Some(80));
        assert!(site.at(80).unwrap().port.force_https && site.at(8080).is_none());
    }
}
