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
