//! Bodies about names: an owner's records, the key for updates, the keys of zones.

use serde::{Deserialize, Serialize};

use crate::id::DomainName;
use crate::record::{OwnRecord, ZoneKeyState};

/// What a machine's owner put into DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecords {
    /// The machine's name in full: records are at it or below it.
    pub name: String,
    /// They, by name and type.
    pub records: Vec<OwnRecord>,
}

/// Adds a record. One that is there already gets the TTL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRecord {
    /// Labels below the machine's name; empty or `@` for its own.
    #[serde(default)]
    pub name: String,
    /// `TXT`, `MX`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// Seconds; 300 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// As in a zone file.
    pub data: String,
}

/// Which records to remove: query parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRecords {
    /// Labels below the machine's name; empty or `@` for its own.
    #[serde(default)]
    pub name: String,
    /// Of this type only.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// With this data only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// A key for updates (RFC 2136) of `_acme-challenge` below a machine's name. It is shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateKeyMade {
    /// The key's name: the machine's name in full, with a dot at its end.
    pub name: String,
    /// `hmac-sha256`.
    pub algorithm: String,
    /// The secret, base64.
    pub secret: String,
    /// The zone to name in an update.
    pub zone: String,
}

impl std::fmt::Debug for UpdateKeyMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpdateKeyMade").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A zone of the fleet and the keys that sign it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The zone.
    pub zone: DomainName,
    /// Its keys, oldest first.
    pub keys: Vec<ShownKey>,
    /// What a person does next.
    pub next: String,
    /// Whether resolvers check the zone's signatures, as far as control has seen.
    #[serde(default)]
    pub parent: AtParent,
}

/// What a zone's parent has of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtParent {
    /// In a word.
    pub state: Delegation,
    /// In a sentence, with what to do.
    pub says: String,
}

/// How a zone is delegated (RFC 4035 §4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delegation {
    /// Nobody could say yet.
    #[default]
    Unknown,
    /// The parent has a DS of a key of ours.
    Secure,
    /// The parent has no DS: nobody checks signatures.
    Insecure,
    /// The parent has DS, and none is of a key of ours: who checks signatures takes no answer.
    Broken,
}

/// The confirmation that the parent has the new DS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DsSeen {
    /// Though control does not see it there.
    pub anyway: bool,
}

/// A key of a zone: its public side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownKey {
    /// RFC 4034 appendix B.
    pub tag: u16,
    /// Where it stands.
    pub state: ZoneKeyState,
    /// Since when, RFC 3339.
    pub since: String,
    /// The parent is to have its DS.
    pub for_parent: bool,
    /// `TAG 13 2 HEX`.
    pub ds: String,
    /// `257 3 13 BASE64`.
    pub dnskey: String,
}
