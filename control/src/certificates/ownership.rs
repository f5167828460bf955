//! Does a domain's owner want it here? A look at DNS, and a pure judgement of what was seen.
//!
//! Two things prove it, each of which only who has the domain's zone can do:
//! - TXT at `_mashines.NAME` with the text that the account was told;
//! - a CNAME that leads to the name of the account's machine, when all addresses at its end are ours.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_resolver::proto::rr::{Name, RData, RecordType};
use mashines_fleet::id::DomainName;
use mashines_fleet::issuance::Proof;
use mashines_fleet::record::{Domain, HostRole, Problem};
use mashines_fleet::view::View;

use crate::resolver::{Dns, Found};
use crate::time::now;

/// The label of the proof.
pub const LABEL: &str = "_mashines";

/// What was seen of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Texts at `_mashines.NAME`.
    pub texts: Found<BTreeSet<String>>,
    /// Where the name's CNAMEs lead, and its addresses. Nothing for a wildcard.
    pub way: Found<Way>,
}

/// What is on the way from a name to its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// Targets of CNAMEs.
    pub aliases: BTreeSet<String>,
    /// At the end.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a look means for one account's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is proved.
    pub proof: Proof,
    /// What is missing.
    pub problem: Option<(String, String)>,
}

impl Dns {
    /// Looks.
    pub async fn look(&self, name: &DomainName) -> Look {
        let base = name.base();
        let proof = format!("{LABEL}.{base}");
        // Below a wildcard there is no one name whose way could be followed.
        let plain = *name == base;
        let (texts, way) = tokio::join!(self.texts(&proof), async {
            match plain {
                true => self.way(base.as_str()).await,
                false => Found::There(Way::default()),
            }
        });
        Look { texts, way }
    }

    async fn texts(&self, name: &str) -> Found<BTreeSet<String>> {
        match self.ask(name, RecordType::TXT).await {
            Found::There(data) => Found::There(
                data.into_iter()
                    .filter_map(|data| match data {
                        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
                        _ => None,
                    })
                    .collect(),
            ),
            Found::Absent => Found::Absent,
            Found::Unknown(why) => Found::Unknown(why),
        }
    }

    async fn way(&self, name: &str) -> Found<Way> {
        let mut way = Way::default();
        let (v4, v6) = tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
        for found in [v4, v6] {
            match found {
                Found::There(data) => data.into_iter().for_each(|data| match data {
                    RData::A(a) => drop(way.addresses.insert(IpAddr::V4(a.0))),
                    RData::AAAA(aaaa) => drop(way.addresses.insert(IpAddr::V6(aaaa.0))),
                    RData::CNAME(cname) => drop(way.aliases.insert(dotless(&cname.0))),
                    _ => {}
                }),
                Found::Absent => {}
                Found::Unknown(why) => return Found::Unknown(why),
            }
        }
        match way.addresses.is_empty() && way.aliases.is_empty() {
            true => Found::Absent,
            false => Found::There(way),
        }
    }
}

fn dotless(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// What our side of the domain is: where a CNAME has to lead, and which addresses are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ours {
    /// The machine's name.
    pub target: String,
    /// Addresses of the machine and of the entries.
    pub addresses: BTreeSet<IpAddr>,
}

impl Ours {
    /// For that domain's machine.
    pub fn of(view: &View, domain: &Domain) -> Self {
        let apex = view.config.as_ref().map(|config| config.domain.as_str()).unwrap_or_default();
        let Some(machine) = view.machines.get(&domain.machine) else { return Self::default() };
        let entries = view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry));
        let entries = entries.flat_map(|host| {
            let v4 = host.public_ipv4.iter().copied().map(IpAddr::V4);
            v4.chain(host.public_ipv6.iter().copied().map(IpAddr::V6))
        });
        let own = [Some(IpAddr::V6(machine.net.ipv6)), machine.net.entry_ipv4.map(IpAddr::V4)];
        Self {
            target: format!("{}.{apex}", machine.slug),
            addresses: entries.chain(own.into_iter().flatten()).collect(),
        }
    }
}

/// What a look means for a domain, as it stands or as it is claimed.
pub fn judge(domain: &Domain, ours: &Ours, look: &Look) -> Verdict {
    let name = &domain.id;
    let told = matches!(&look.texts, Found::There(texts) if texts.contains(&domain.proof));
    let (alias, strays) = match &look.way {
        Found::There(way) => {
            let strays: Vec<String> =
                way.addresses.difference(&ours.addresses).map(ToString::to_string).collect();
            let led = way.aliases.contains(&ours.target) && !way.addresses.is_empty() && strays.is_empty();
            (led, strays)
        }
        Found::Absent | Found::Unknown(_) => (false, Vec::new()),
    };
    let wildcard = name.base() != *name;
    if told || alias {
        let problem = match &look.way {
            _ if wildcard => None,
            Found::There(way) if way.addresses.is_empty() || !strays.is_empty() => Some(format!(
                "{name} is proved, but it leads {}",
                if strays.is_empty() {
                    "nowhere".to_owned()
                } else {
                    format!("to {}, which are not ours", strays.join(", "))
                }
            )),
            Found::Absent => Some(format!("{name} is proved, but it has no address")),
            Found::There(_) | Found::Unknown(_) => None,
        };
        let hint =
            || format!("point {name} at {} (CNAME), or give it the addresses that it has", ours.target);
        return Verdict { proof: Proof::Seen, problem: problem.map(|what| (what, hint())) };
    }
    let add = format!("add TXT {LABEL}.{} with \"{}\"", name.base(), domain.proof);
    let hint = match wildcard {
        true => add,
        false => format!("{add}, or CNAME {name} to {}", ours.target),
    };
    let (proof, what) = match (&look.texts, &look.way) {
        (Found::Unknown(why), _) | (_, Found::Unknown(why)) => {
            (Proof::Unknown, format!("whether {name} is yours could not be seen: {why}"))
        }
        (Found::There(_), _) => (Proof::Absent, format!("TXT {LABEL}.{} has another text", name.base())),
        (Found::Absent, _) => (Proof::Absent, format!("nothing says that {name} is to be served here")),
    };
    Verdict { proof, problem: Some((what, hint)) }
}

/// Takes a verdict into a domain; true when it changes whether the name is served.
pub fn take_in(domain: &mut Domain, verdict: &Verdict) -> bool {
    let changed = domain.looked(verdict.proof, now());
    domain.problem = verdict.problem.clone().map(|(what, hint)| Problem { what, hint, at: now() });
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Domain {
        super::super::Claim {
            machine: mashines_fleet::id::MachineId::random(),
            proof: "mashines-1".to_owned(),
            created_at: 0,
        }
        .domain(&name.parse().unwrap(), &"ann".parse().unwrap())
    }

    fn ours() -> Ours {
        Ours { target: "web.mashine.test".into(), addresses: [ip("192.0.2.1"), ip("2001:db8::1")].into() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn way(aliases: &[&str], addresses: &[&str]) -> Found<Way> {
        Found::There(Way {
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
        })
    }

    fn text(text: &str) -> Found<BTreeSet<String>> {
        Found::There([text.to_owned()].into())
    }

    fn judged(texts: Found<BTreeSet<String>>, way: Found<Way>) -> Verdict {
        judge(&domain("www.example.org"), &ours(), &Look { texts, way })
    }

    #[test]
    fn the_text_proves_and_so_does_an_alias_whose_addresses_are_ours() {
        let good = judged(text("mashines-1"), way(&[], &["192.0.2.1"]));
        assert_eq!(good, Verdict { proof: Proof::Seen, problem: None });
        let good = judged(Found::Absent, way(&["web.mashine.test"], &["192.0.2.1", "2001:db8::1"]));
        assert_eq!(good, Verdict { proof: Proof::Seen, problem: None });
    }

    #[test]
    fn an_address_alone_proves_nothing_since_addresses_are_recycled() {
        let bad = judged(Found::Absent, way(&[], &["192.0.2.1"]));
        assert_eq!(bad.proof, Proof::Absent);
        let (what, hint) = bad.problem.unwrap();
        assert!(what.contains("nothing says"), "{what}");
        assert!(
            hint.contains("TXT _mashines.www.example.org with \"mashines-1\"")
                && hint.contains("web.mashine.test"),
            "{hint}"
        );
    }

    #[test]
    fn an_alias_to_another_machine_or_with_a_foreign_address_proves_nothing() {
        assert_eq!(judged(Found::Absent, way(&["db.mashine.test"], &["192.0.2.1"])).proof, Proof::Absent);
        assert_eq!(judged(Found::Absent, way(&["web.mashine.test"], &["198.51.100.7"])).proof, Proof::Absent);
        assert_eq!(judged(Found::Absent, way(&["web.mashine.test"], &[])).proof, Proof::Absent);
        assert!(judged(text("mashines-2"), Found::Absent).problem.unwrap().0.contains("another text"));
    }

    #[test]
    fn a_proved_name_that_leads_elsewhere_is_told_so() {
        let elsewhere = judged(text("mashines-1"), way(&[], &["198.51.100.7"]));
        assert_eq!(elsewhere.proof, Proof::Seen);
        assert!(elsewhere.problem.unwrap().0.contains("198.51.100.7"));
        assert!(judged(text("mashines-1"), Found::Absent).problem.is_some());
        let wild =
            judge(&domain("*.example.org"), &ours(), &Look { texts: text("mashines-1"), way: way(&[], &[]) });
        assert_eq!(wild, Verdict { proof: Proof::Seen, problem: None });
    }

    #[test]
    fn silence_is_neither_yes_nor_no() {
        assert_eq!(judged(Found::Unknown("timeout".into()), Found::Absent).proof, Proof::Unknown);
        assert_eq!(judged(Found::Absent, Found::Unknown("servfail".into())).proof, Proof::Unknown);
        assert_eq!(judged(text("mashines-1"), Found::Unknown("servfail".into())).proof, Proof::Seen);
    }
}
