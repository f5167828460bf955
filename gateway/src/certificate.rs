//! User certificates of an account's own CA: whom one lets in, where, and on which terms.
//!
//! russh has checked the CA's signature, the dates, and that the client holds the key. Everything else is decided here, by
//! OpenSSH's rules (`PROTOCOL.certkeys`, and `ssh-keygen(1)`, CERTIFICATES):
//!
//! | part | rule |
//! | --- | --- |
//! | type | a user's, not a host's |
//! | CA | one that some account lists |
//! | principals | one that the account lists for the CA (its own name, when it lists none) opens the account; the name of one of its machines opens that machine; none at all opens nothing |
//! | dates | looked at again at each door: a session may outlive its certificate, what it opens next may not |
//! | `source-address`, `force-command` | kept to |
//! | any other critical option | the certificate is refused, as the format demands |
//! | `permit-pty`, `permit-port-forwarding`, `permit-agent-forwarding` | what is not permitted is refused |

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use mashines_fleet::access::{Person, Standing};
use mashines_fleet::id::AccountId;
use mashines_fleet::record::TrustedCa;
use russh::keys::Certificate;

/// What a certificate lets its holder do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// This runs, whatever is asked for.
    pub force_command: Option<String>,
    /// Terminals.
    pub pty: bool,
    /// Ports and sockets, in every direction; `ssh -J` too.
    pub forwarding: bool,
    /// The client's agent.
    pub agent: bool,
}

impl Terms {
    /// A key's: everything.
    pub const FREE: Self = Self { force_command: None, pty: true, forwarding: true, agent: true };
}

/// Somebody with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Accounts that are open.
    pub whole: Person,
    /// Accounts of which only the machines of those names are open.
    pub narrow: Vec<(AccountId, Standing, BTreeSet<String>)>,
    /// On which terms.
    pub terms: Terms,
}

/// Whom `certificate` lets in that somebody at `from` shows. `trust` are the accounts that list its CA.
///
/// # Errors
/// Why it lets nobody in, in words for its holder.
pub fn judge(
    certificate: &Certificate,
    trust: &[(AccountId, TrustedCa)],
    from: IpAddr,
    now: SystemTime,
) -> Result<Holder, String> {
    if !certificate.cert_type().is_user() {
        return Err("it is a host's".to_owned());
    }
    check_dates(certificate, now)?;
    let terms = terms(certificate, from)?;
    if trust.is_empty() {
        return Err("no account trusts the CA that signed it".to_owned());
    }
    let (mut whole, mut narrow) = (Person::default(), Vec::new());
    for (account, ca) in trust {
        let standing = Standing::As(ca.role);
        let opens = |principal: &String| match ca.principals.as_slice() {
            [] => principal == account.as_str(),
            listed => listed.contains(principal),
        };
        if certificate.valid_principals().iter().any(opens) {
            whole = whole.and(account.clone(), standing);
        } else {
            narrow.push((
                account.clone(),
                standing,
                certificate.valid_principals().iter().cloned().collect(),
            ));
        }
    }
    if whole.is_nobody() && certificate.valid_principals().is_empty() {
        return Err("it names no principals (ssh-keygen -n): it opens nothing".to_owned());
    }
    Ok(Holder { whole, narrow, terms })
}

fn check_dates(certificate: &Certificate, now: SystemTime) -> Result<(), String> {
    let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    if second < certificate.valid_after() {
        return Err("it is not valid yet: do the clocks agree?".to_owned());
    }
    if second >= certificate.valid_before() {
        return Err("it has expired".to_owned());
    }
    Ok(())
}

fn terms(certificate: &Certificate, from: IpAddr) -> Result<Terms, String> {
    let mut force_command = None;
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            "force-command" => force_command = Some(value.clone()),
            "source-address" if is_from(value, from)? => (),
            "source-address" => return Err(format!("it is not for your address {from}")),
            other => return Err(format!("it has an option that is not known here: {other}")),
        }
    }
    let permits = |name: &str| certificate.extensions().iter().any(|(extension, _)| extension == name);
    Ok(Terms {
        force_command,
        pty: permits("permit-pty"),
        forwarding: permits("permit-port-forwarding"),
        agent: permits("permit-agent-forwarding"),
    })
}

/// Whether a comma-separated list of addresses and networks includes an address.
///
/// # Errors
/// An element that is neither: nobody knows what was meant, so nobody is let in.
pub fn is_from(list: &str, from: IpAddr) -> Result<bool, String> {
    let from = from.to_canonical();
    let mut included = false;
    for element in list.split(',').map(str::trim) {
        let network: IpNetwork =
            element.parse().map_err(|_| format!("its source-address is none: {:?}", shortened(element)))?;
        included |= network.contains(from);
    }
    Ok(included)
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::Role;
    use proptest::prelude::*;
    use russh::keys::key::safe_rng;
    use russh::keys::ssh_key::certificate::{Builder, CertType};
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOME: &str = "192.0.2.7";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn certificate(change: impl FnOnce(&mut Builder)) -> Certificate {
        let key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let mut builder =
            Builder::new(vec![7; 16], key().public_key().key_data().clone(), NOW - 60, NOW + 60).unwrap();
        change(&mut builder);
        // It takes a type once: a test that wants another has set it.
        let _set = builder.cert_type(CertType::User);
        builder.sign(&key()).unwrap()
    }

    fn trust(account: &str, principals: &[&str]) -> (AccountId, TrustedCa) {
        let principals = principals.iter().map(|p| (*p).to_owned()).collect();
        (account.parse().unwrap(), TrustedCa { public_key: String::new(), principals, role: Role::Operator })
    }

    fn open(certificate: &Certificate, trust: &[(AccountId, TrustedCa)]) -> Result<Holder, String> {
        judge(certificate, trust, HOME.parse().unwrap(), now())
    }

    fn why(change: impl FnOnce(&mut Builder)) -> String {
        open(&certificate(change), &[trust("ann", &[])]).unwrap_err()
    }

    fn for_ann(builder: &mut Builder) {
        builder.valid_principal("ann").unwrap();
    }

    #[test]
    fn a_principal_opens_the_account_or_one_machine_and_none_opens_nothing() {
        let ann = certificate(for_ann);
        let operator = Standing::As(Role::Operator);
        let holder = open(&ann, &[trust("ann", &[])]).unwrap();
        assert_eq!(holder.whole, Person::with("ann".parse().unwrap(), operator));
        assert!(
            open(&ann, &[trust("ann", &["devs"])]).unwrap().whole.is_nobody(),
            "the list counts, not the name"
        );
        assert!(!open(&ann, &[trust("team", &["devs", "ann"])]).unwrap().whole.is_nobody());
        let web = certificate(|b| {
            b.valid_principal("web").unwrap();
        });
        let holder = open(&web, &[trust("ann", &[])]).unwrap();
        assert!(holder.whole.is_nobody());
        assert_eq!(holder.narrow, [("ann".parse().unwrap(), operator, BTreeSet::from(["web".to_owned()]))]);
        assert!(
            why(|b| {
                b.all_principals_valid().unwrap();
            })
            .contains("names no principals")
        );
        assert!(open(&ann, &[]).unwrap_err().contains("no account trusts the CA"));
    }

    #[test]
    fn dates_type_and_unknown_options_are_looked_at() {
        let ann = certificate(for_ann);
        let at = |second: u64| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            judge(&ann, &[trust("ann", &[])], HOME.parse().unwrap(), now).map(|_| ()).unwrap_err()
        };
        assert!(at(NOW + 60).contains("expired") && at(NOW - 61).contains("not valid yet"));
        assert!(
            why(|b| {
                for_ann(b);
                b.cert_type(CertType::Host).unwrap();
            })
            .contains("a host's")
        );
        assert!(
            why(|b| {
                for_ann(b);
                b.critical_option("no-such", "").unwrap();
            })
            .contains("not known here: no-such")
        );
        assert!(
            why(|b| {
                for_ann(b);
                b.critical_option("source-address", "198.51.100.0/24").unwrap();
            })
            .contains("not for your address 192.0.2.7")
        );
        assert!(
            why(|b| {
                for_ann(b);
                b.critical_option("source-address", "here").unwrap();
            })
            .contains("is none")
        );
    }

    #[test]
    fn what_is_not_permitted_is_not_permitted() {
        let bare = certificate(|b| {
            for_ann(b);
            b.critical_option("force-command", "uptime").unwrap();
            b.critical_option("source-address", "198.51.100.0/24, 192.0.2.0/24").unwrap();
        });
        let none =
            Terms { force_command: Some("uptime".into()), pty: false, forwarding: false, agent: false };
        assert_eq!(open(&bare, &[trust("ann", &[])]).unwrap().terms, none);
        let usual = certificate(|b| {
            for_ann(b);
            for extension in
                ["permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding"]
            {
                b.extension(extension, "").unwrap();
            }
        });
        assert_eq!(open(&usual, &[trust("ann", &[])]).unwrap().terms, Terms::FREE);
    }

    proptest! {
        #[test]
        fn any_list_of_sources_is_judged(list in "[0-9a-f.:/, x]{0,60}", from in any::<u32>()) {
            let from = IpAddr::V4(from.into());
            let judged = is_from(&list, from);
            // What lists everything includes everybody, and nothing but.
            if let Ok(included) = judged {
                prop_assert_eq!(is_from(&format!("{list},0.0.0.0/0"), from), Ok(true));
                prop_assert!(!included || is_from(&list, from.to_string().parse().unwrap()) == Ok(true));
            }
        }
    }
}
