//! Where each record lives in the store.
//!
//! | key | value | streamed to replicas |
//! | --- | --- | --- |
//! | `config` | [`record::FleetConfig`](crate::record::FleetConfig) | yes |
//! | `accounts/ID` | [`record::Account`](crate::record::Account) | yes |
//! | `hosts/ID` | [`record::Host`](crate::record::Host) | yes |
//! | `machines/ID` | [`record::Machine`](crate::record::Machine) | yes |
//! | `volumes/ID` | [`record::Volume`](crate::record::Volume) | yes |
//! | `migrations/ID` | [`record::Migration`](crate::record::Migration) | yes |
//! | `domains/NAME` | [`record::Domain`](crate::record::Domain) | yes |
//! | `certificates/NAME` | [`record::Certificate`](crate::record::Certificate) | yes, its key [sealed](crate::sealed) |
//! | `challenges/ID` | [`record::Challenge`](crate::record::Challenge) | yes |
//! | `zone-keys/ZONE` | [`record::ZoneKeys`](crate::record::ZoneKeys) | yes, sealed |
//! | `acme-accounts/ISSUER` | [`record::AcmeAccount`](crate::record::AcmeAccount) | yes, sealed |
//! | `private/…` | CA keys, hashes of tokens, indices that keep names and addresses unique | **never** |
//!
//! Nothing below `private/` enters the change log, so no bug in a reader of the log can leak it.

use std::fmt;
use std::str::FromStr;

use crate::id::{AccountId, ChallengeId, DomainName, HostId, IssuerName, MachineId, MigrationId, VolumeId};

/// Everything below it stays in control's store: not in the change log, not in any stream.
pub const PRIVATE: &str = "private/";

/// True for keys that are kept out of the change log.
pub fn is_private(key: &str) -> bool {
    key.starts_with(PRIVATE)
}

/// The key of a streamed record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// What the whole fleet shares.
    Config,
    /// An account.
    Account(AccountId),
    /// A host or an entry.
    Host(HostId),
    /// A machine.
    Machine(MachineId),
    /// A volume.
    Volume(VolumeId),
    /// A migration.
    Migration(MigrationId),
    /// A name outside of the fleet's zones.
    Domain(DomainName),
    /// A certificate, by its first name.
    Certificate(DomainName),
    /// What an issuer wants to see.
    Challenge(ChallengeId),
    /// The keys of a zone.
    ZoneKeys(DomainName),
    /// The platform's account at an issuer of certificates.
    AcmeAccount(IssuerName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Account(id) => write!(f, "accounts/{id}"),
            Self::Host(id) => write!(f, "hosts/{id}"),
            Self::Machine(id) => write!(f, "machines/{id}"),
            Self::Volume(id) => write!(f, "volumes/{id}"),
            Self::Migration(id) => write!(f, "migrations/{id}"),
            Self::Domain(name) => write!(f, "domains/{name}"),
            Self::Certificate(name) => write!(f, "certificates/{name}"),
            Self::Challenge(id) => write!(f, "challenges/{id}"),
            Self::ZoneKeys(zone) => write!(f, "zone-keys/{zone}"),
            Self::AcmeAccount(issuer) => write!(f, "acme-accounts/{issuer}"),
        }
    }
}

/// A key that no record of this version has. A newer store may hold such keys: readers skip them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the key of a record that this version knows")]
pub struct UnknownKey(pub String);

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let unknown = || UnknownKey(text.chars().take(120).collect());
        if text == "config" {
            return Ok(Self::Config);
        }
        let (kind, id) = text.split_once('/').ok_or_else(unknown)?;
        match kind {
            "accounts" => id.parse().map(Self::Account).map_err(|_| unknown()),
            "hosts" => id.parse().map(Self::Host).map_err(|_| unknown()),
            "machines" => id.parse().map(Self::Machine).map_err(|_| unknown()),
            "volumes" => id.parse().map(Self::Volume).map_err(|_| unknown()),
            "migrations" => id.parse().map(Self::Migration).map_err(|_| unknown()),
            "domains" => id.parse().map(Self::Domain).map_err(|_| unknown()),
            "certificates" => id.parse().map(Self::Certificate).map_err(|_| unknown()),
            "challenges" => id.parse().map(Self::Challenge).map_err(|_| unknown()),
            "zone-keys" => id.parse().map(Self::ZoneKeys).map_err(|_| unknown()),
            "acme-accounts" => id.parse().map(Self::AcmeAccount).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_survives_its_text() {
        let keys = [
            Key::Config,
            Key::Account("ann".parse().unwrap()),
            Key::Host("hosta".parse().unwrap()),
            Key::Machine(MachineId::random()),
            Key::Volume(VolumeId::random()),
            Key::Migration(MigrationId::generate()),
            Key::Domain("www.example.org".parse().unwrap()),
            Key::Certificate("*.mashine.dev".parse().unwrap()),
            Key::Challenge(ChallengeId::generate()),
            Key::ZoneKeys("mashine.dev".parse().unwrap()),
            Key::AcmeAccount("letsencrypt".parse().unwrap()),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn foreign_keys_are_refused() {
        for bad in ["", "configs", "machines/", "machines/../x", "private/ca", "apps/x", "machines"] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }
}
