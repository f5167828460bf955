//! What is true about names and certificates: the records that dns, acme and the TLS edge are projections of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::UnixMs;
use crate::id::{AccountId, DomainName, HostId, IssuerName, MachineId};
use crate::sealed::Sealed;

/// A record that a machine's owner put at its name or below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnRecord {
    /// Labels below the machine's name, dots between them; empty for the machine's own name. The first may be `*`.
    #[serde(default)]
    pub name: String,
    /// The type's mnemonic: `TXT`, `MX`, `SRV`, `CAA`, `CNAME`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// How long resolvers may keep it, seconds.
    pub ttl: u32,
    /// The data as in a zone file (RFC 1035 §5.1); names in it end with a dot.
    pub data: String,
}

/// With what a machine's owner changes `_acme-challenge` below its name by RFC 2136: `hmac-sha256`, the key's name is the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateKey {
    /// The shared secret, sealed to `machines/ID`.
    pub secret: Sealed,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A name outside of the fleet's zones that leads to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The name. One account has it at a time.
    pub id: DomainName,
    /// Whose.
    pub account: AccountId,
    /// The machine that serves it.
    pub machine: MachineId,
    /// What the owner puts into a TXT record at `_mashines.NAME`, or has at hand by a CNAME to the machine's name.
    pub proof: String,
    /// When ownership was seen last. Nothing is served and nothing is ordered before.
    #[serde(default)]
    pub verified_at: Option<UnixMs>,
    /// When it was looked for last.
    #[serde(default)]
    pub checked_at: Option<UnixMs>,
    /// What the last look found missing, and what to do.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Creation.
    pub created_at: UnixMs,
}

/// What is wrong, and what a person can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was tried and what came back.
    pub what: String,
    /// The next step.
    pub hint: String,
    /// When.
    pub at: UnixMs,
}

/// A certificate, wanted or issued, and how it is renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its first name: `*.mashine.dev`, `slug.mashine.dev`, a domain.
    pub id: DomainName,
    /// All its names.
    pub names: Vec<DomainName>,
    /// Whose; none for the platform's own.
    #[serde(default)]
    pub account: Option<AccountId>,
    /// The machine that it is for.
    #[serde(default)]
    pub machine: Option<MachineId>,
    /// Where it comes from and who holds its key.
    pub source: CertificateSource,
    /// The chain in PEM, the certificate first; none until it is issued. The old one stays until a new one is there.
    #[serde(default)]
    pub chain_pem: Option<String>,
    /// The private key in PEM (PKCS#8), sealed to `certificates/ID`; none when the machine holds it.
    #[serde(default)]
    pub key: Option<Sealed>,
    /// Which of the configured issuers issued it.
    #[serde(default)]
    pub issuer: Option<String>,
    /// From when the chain is good.
    #[serde(default)]
    pub not_before: Option<UnixMs>,
    /// Until when.
    #[serde(default)]
    pub not_after: Option<UnixMs>,
    /// When it is renewed: a moment in the issuer's window (RFC 9773), or after two thirds of its life.
    #[serde(default)]
    pub renew_at: Option<UnixMs>,
    /// When the issuer is asked for its window again.
    #[serde(default)]
    pub ask_window_at: Option<UnixMs>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// Not tried before, after a failure.
    #[serde(default)]
    pub next_try_at: Option<UnixMs>,
    /// The last failure.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Who works on it now.
    #[serde(default)]
    pub lease: Option<CertificateLease>,
    /// Creation.
    pub created_at: UnixMs,
    /// Last change of the chain.
    #[serde(default)]
    pub updated_at: UnixMs,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateSource {
    /// Issued by ACME to a key of the platform.
    Acme,
    /// Issued by ACME to a key that was made in the machine and never leaves it.
    Machine,
    /// Brought by the owner, who renews it.
    Imported,
}

/// One entry works on one certificate at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateLease {
    /// Which entry.
    pub holder: HostId,
    /// Until when; another may take it afterwards.
    pub until: UnixMs,
}

/// What an issuer wants to see of us while it validates a name: dns, or every entry, shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The name that is validated, without `*.`.
    pub name: DomainName,
    /// What is to be shown.
    pub show: Show,
    /// Removed afterwards, whatever happened.
    pub expires_at: UnixMs,
}

/// RFC 8555 §8.3 and §8.4, RFC 8737.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Show {
    /// A TXT record at `_acme-challenge.NAME`. One name may have several at a time.
    Dns01 {
        /// The record's text.
        value: String,
    },
    /// A plain body at `http://NAME/.well-known/acme-challenge/TOKEN`.
    Http01 {
        /// The last part of the path.
        token: String,
        /// The body.
        authorization: String,
    },
    /// A self-signed certificate for who offers the protocol `acme-tls/1` for the name.
    TlsAlpn01 {
        /// SHA-256 of the key authorization, hex.
        digest: String,
    },
}

/// The platform's account at an issuer, and what it has used of the issuer's limits ([`crate::issuance`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// What the configuration calls the issuer.
    pub id: IssuerName,
    /// The directory that the account is at. Another one in the configuration means another account.
    pub directory: String,
    /// Its address and private key, sealed to `acme-accounts/ID`.
    pub credentials: Sealed,
    /// When orders were made lately, oldest first.
    #[serde(default)]
    pub orders: Vec<UnixMs>,
    /// When validations of a name failed lately, oldest first.
    #[serde(default)]
    pub failures: BTreeMap<DomainName, Vec<UnixMs>>,
    /// The issuer said that it wants to hear nothing of us before.
    #[serde(default)]
    pub paused_until: Option<UnixMs>,
    /// Certificates, by first name, that it said to be too many of: not before these times.
    #[serde(default)]
    pub paused: BTreeMap<DomainName, UnixMs>,
    /// The change of its key that was asked for last, until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<KeyRollover>,
    /// When its key was changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_since: Option<UnixMs>,
    /// Creation.
    pub created_at: UnixMs,
}

/// A change of an account's key (RFC 8555 §7.3.5) that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRollover {
    /// When an administrator asked.
    pub asked_at: UnixMs,
    /// The account with its next key, sealed as its present one: the issuer may know either.
    #[serde(default)]
    pub next: Option<Sealed>,
    /// The issuer will not do it: the present key stays, until an administrator asks again.
    #[serde(default)]
    pub refused: Option<Problem>,
}

impl AcmeAccount {
    /// The change that is to be done.
    pub fn rolling(&self) -> Option<&KeyRollover> {
        self.rollover.as_ref().filter(|rollover| rollover.refused.is_none())
    }
}

/// The keys that sign a zone on line. All name servers of the fleet sign with the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneKeys {
    /// The zone.
    pub id: DomainName,
    /// Its keys, oldest first.
    pub keys: Vec<ZoneKey>,
}

/// One combined signing key (flags 257, algorithm 13: ECDSA P-256 with SHA-256).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneKey {
    /// RFC 4034 appendix B.
    pub tag: u16,
    /// The public key as in DNSKEY (64 bytes), base64.
    pub public: String,
    /// The private key (PKCS#8 DER), sealed to `zone-keys/ZONE`.
    pub secret: Sealed,
    /// Where it stands in its life.
    pub state: ZoneKeyState,
    /// When it came to that state.
    pub since: UnixMs,
}

/// A rollover by double signature of the DNSKEY set (RFC 6781 §4.1.3, RFC 7583): `Published` → `Announced` → `Active` → `Retired` → gone.
/// What each state amounts to in DNS is [`zone_key`](crate::zone_key)'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZoneKeyState {
    /// In the DNSKEY set, which it signs too. Resolvers may still hold the set without it.
    Published,
    /// Every resolver can know it: it is in CDS and CDNSKEY, and the parent is to take its DS.
    Announced,
    /// It signs everything; its DS is at the parent.
    Active,
    /// Still in the DNSKEY set, which it signs too: for answers, and for its DS, that resolvers keep.
    Retired,
}
