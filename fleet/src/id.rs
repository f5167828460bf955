//! Identifiers: newtypes, so that one is never taken for another. Each parses strictly, since most arrive from outside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is not a valid id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}: {rule}")]
pub struct BadId {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(s: &str) -> Result<Self, BadId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(s) {
                    Ok(Self(s.to_owned()))
                } else {
                    let value = s.chars().take(80).collect();
                    Err(BadId { kind: $kind, value, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(s: String) -> Result<Self, BadId> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn hex14(s: &str) -> bool {
    s.len() == 14 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An RFC 1123 label that does not begin or end with a hyphen.
fn label(s: &str) -> bool {
    (1..=63).contains(&s.len())
        && s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !s.starts_with('-')
        && !s.ends_with('-')
}

fn ulid(s: &str) -> bool {
    ulid::Ulid::from_string(s).is_ok_and(|u| u.to_string() == s)
}

id!(
    /// A machine: 14 lower-case hex digits, as in the Fly Machines API.
    MachineId, "machine id", "14 hex digits, as `mashines ls` shows them", hex14
);
id!(
    /// A volume: `vol_` and 14 lower-case hex digits (18 bytes: it fits a virtio-blk serial).
    VolumeId, "volume id", "`vol_` and 14 hex digits, as `mashines volumes ls` shows them",
    |s| s.strip_prefix("vol_").is_some_and(hex14)
);
id!(
    /// A host: a DNS label chosen by whoever runs it.
    HostId, "host id", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);
id!(
    /// An account: a DNS label.
    AccountId, "account id", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);
id!(
    /// An app, which groups machines as in the Fly Machines API: a DNS label.
    AppName, "app name", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);
id!(
    /// A machine's name in DNS: `slug.mashine.dev`. Unique in the fleet.
    Slug, "machine name", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);
id!(
    /// A migration: a ULID.
    MigrationId, "migration id", "a ULID: 26 characters", ulid
);
id!(
    /// An image as people name it: `container-os`.
    ImageName, "image name", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);

/// Labels of letters, digits and hyphens (RFC 1123), lower case, without the last dot; underscores as in service names; `*` may come first.
fn domain(s: &str) -> bool {
    let rest = s.strip_prefix("*.").unwrap_or(s);
    let label_of = |part: &str| {
        let plain = part.strip_prefix('_').unwrap_or(part);
        label(plain) && part.len() <= 63
    };
    s.len() <= 253 && rest.split('.').count() >= 2 && rest.split('.').all(label_of)
}

id!(
    /// A name in DNS in full: `www.example.org`, `*.mashine.dev`.
    DomainName, "domain name", "labels of a-z, 0-9 and hyphens with dots between them, at most 253", domain
);
id!(
    /// What an issuer wants to see: a ULID.
    ChallengeId, "challenge id", "a ULID: 26 characters", ulid
);

id!(
    /// What the configuration calls an issuer of certificates: a DNS label.
    IssuerName, "issuer name", "a DNS label: a-z, 0-9 and hyphens, at most 63", label
);

impl DomainName {
    /// Without `*.`: the name whose control an issuer asks to be proved.
    #[must_use]
    pub fn base(&self) -> Self {
        Self(self.0.strip_prefix("*.").unwrap_or(&self.0).to_owned())
    }

    /// It is that name or below it.
    pub fn is_within(&self, zone: &str) -> bool {
        self.0.strip_suffix(zone).is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }

    /// A certificate with this name is good for that one (RFC 6125: `*` stands for one label).
    pub fn covers(&self, name: &Self) -> bool {
        let below =
            |parent: &str| name.0.split_once('.').is_some_and(|(label, rest)| label != "*" && rest == parent);
        self == name || self.0.strip_prefix("*.").is_some_and(below)
    }
}

impl ChallengeId {
    /// A new id, ordered by time.
    pub fn generate() -> Self {
        Self(ulid::Ulid::generate().to_string())
    }
}

fn random_hex14() -> String {
    let mut s = format!("{:016x}", rand::random::<u64>());
    s.truncate(14);
    s
}

impl MachineId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_hex14())
    }
}

impl VolumeId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("vol_{}", random_hex14()))
    }
}

impl MigrationId {
    /// A new id, ordered by time.
    pub fn generate() -> Self {
        Self(ulid::Ulid::generate().to_string())
    }
}

/// How often a machine has changed its place. Rises by one a move, by compare-and-swap; everyone drops an older one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after a move.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse() {
        assert!(MachineId::random().as_str().parse::<MachineId>().is_ok());
        assert!(VolumeId::random().as_str().parse::<VolumeId>().is_ok());
        assert!(MigrationId::generate().as_str().parse::<MigrationId>().is_ok());
    }

    #[test]
    fn domain_names_are_lower_case_and_whole() {
        for good in [
            "example.org",
            "*.mashine.dev",
            "_acme-challenge.a.example",
            "xn--bcher-kva.example",
            "2.0.192.in-addr.arpa",
        ] {
            assert!(good.parse::<DomainName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "localhost",
            "a..b",
            "a.b.",
            "*.",
            "a.*.b",
            "**.a.b",
            "A.b",
            "a/b.c",
            "-a.b",
            "a.b ",
            &"a.".repeat(150),
        ] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        for bad in ["", "../../etc", "a/b", "A", "-a", "a-", "a.b", "a\n", "🦀", &"a".repeat(64)] {
            assert!(bad.parse::<Slug>().is_err(), "{bad:?}");
            assert!(bad.parse::<MachineId>().is_err(), "{bad:?}");
            assert!(bad.parse::<VolumeId>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<Slug>("\"UP\"").is_err());
    }
}
