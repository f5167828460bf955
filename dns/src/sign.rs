//! Signatures: a zone's keys, and the RRSIG of a set (RFC 4034, RFC 6605).
//!
//! One combined key a zone in quiet times, two during a rollover. Which key signs what:
//!
//! | state | in DNSKEY | signs DNSKEY, CDS, CDNSKEY | signs all else | in CDS and CDNSKEY |
//! | --- | --- | --- | --- | --- |
//! | published | yes | yes | no | no |
//! | announced | yes | yes | no | yes, and then it alone |
//! | active | yes | yes | yes | yes, unless one is announced |
//! | retired | yes | yes | no | no |
//!
//! What the parent is to have is decided in one place, [`ZoneKeys::for_parent`].
//! So whichever DS a resolver still has, the DNSKEY set verifies with it, and whichever signature it still has, its key is in the set.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use mashines_fleet::key::Key;
use mashines_fleet::record::{ZoneKeyState, ZoneKeys};
use mashines_fleet::sealed::{EntrySecret, SealError};
use sha2::{Digest as _, Sha256};

use crate::kind;
use crate::name::{Labels, Name};
use crate::rrset::{OwnedSet, RrSet};

/// ECDSA P-256 with SHA-256 (RFC 6605).
pub const ALGORITHM: u8 = 13;

/// How long resolvers may keep the keys, seconds. A rollover waits for it.
pub const KEY_TTL: u32 = 300;

/// Zone key, secure entry point: a combined signing key.
const FLAGS: u16 = 257;

const DAY: u64 = 86_400;

/// From when until when a signature is good, seconds since 1970 in serial arithmetic (RFC 4034 §3.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Validity {
    /// From.
    pub inception: u32,
    /// Until.
    pub expiration: u32,
}

impl Validity {
    /// Signatures made on line on the day of `now` (seconds since 1970). The same all day long, so that they can be kept: they begin a day
    /// before it, for clocks that are behind, and end five days after it, while nothing may be kept by resolvers for longer than a day.
    pub fn of_day(now: u64) -> Self {
        let midnight = now - now % DAY;
        Self::between(midnight.saturating_sub(DAY), midnight + 6 * DAY)
    }

    /// Any period, seconds since 1970.
    pub fn between(from: u64, until: u64) -> Self {
        let low = |time: u64| {
            let [.., a, b, c, d] = time.to_be_bytes();
            u32::from_be_bytes([a, b, c, d])
        };
        Self { inception: low(from), expiration: low(until) }
    }
}

/// A zone's keys could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Sealed with another secret.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// Not a key of the kind that is made here.
    #[error("key {0} of zone {1} is no P-256 key in PKCS#8")]
    Kind(u16, String),
    /// Nothing to sign with.
    #[error("zone {0} has keys, none of which is active or published")]
    NoneActive(String),
    /// The random generator or the cipher refused.
    #[error("a signature was refused by the cryptographic library")]
    Refused,
}

/// The opened keys of one zone.
pub struct KeySet {
    zone: Name,
    keys: Vec<OpenKey>,
    random: SystemRandom,
}

struct OpenKey {
    tag: u16,
    state: ZoneKeyState,
    for_parent: bool,
    dnskey: Box<[u8]>,
    pair: EcdsaKeyPair,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = self.keys.iter().map(|key| (key.tag, key.state));
        f.debug_struct("KeySet").field("zone", &self.zone).field("keys", &keys.collect::<Vec<_>>()).finish()
    }
}

impl KeySet {
    /// Opens the keys of a zone.
    ///
    /// # Errors
    /// [`KeyError`]; a zone with keys that cannot be opened must not be served unsigned in silence.
    pub fn open(record: &ZoneKeys, zone: &Name, secret: &EntrySecret) -> Result<Arc<Self>, KeyError> {
        let mut keys = Vec::new();
        for key in &record.keys {
            let der = secret.open(&Key::ZoneKeys(record.id.clone()), &key.secret)?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                .map_err(|_| KeyError::Kind(key.tag, record.id.to_string()))?;
            let dnskey = dnskey(pair.public_key().as_ref());
            let for_parent = record.for_parent().any(|wanted| std::ptr::eq(wanted, key));
            keys.push(OpenKey { tag: key_tag(&dnskey), state: key.state, for_parent, dnskey, pair });
        }
        let set = Self { zone: zone.clone(), keys, random: SystemRandom::new() };
        if set.signing(kind::A).next().is_none() {
            return Err(KeyError::NoneActive(record.id.to_string()));
        }
        Ok(Arc::new(set))
    }

    /// DNSKEY, CDS and CDNSKEY (RFC 7344) of the apex.
    pub fn apex_sets(&self) -> Vec<OwnedSet> {
        let wanted = || self.keys.iter().filter(|key| key.for_parent);
        vec![
            OwnedSet::new(kind::DNSKEY, KEY_TTL, self.keys.iter().map(|key| key.dnskey.clone()).collect()),
            OwnedSet::new(kind::CDS, KEY_TTL, wanted().map(|key| self.ds_of(key)).collect()),
            OwnedSet::new(kind::CDNSKEY, KEY_TTL, wanted().map(|key| key.dnskey.clone()).collect()),
        ]
    }

    /// What the parent is to have.
    pub fn ds_set(&self) -> OwnedSet {
        let wanted = self.keys.iter().filter(|key| key.for_parent);
        OwnedSet::new(kind::DS, KEY_TTL, wanted.map(|key| self.ds_of(key)).collect())
    }

    /// Key tag, algorithm, digest type, digest (RFC 4034 §5, SHA-256 by RFC 4509).
    fn ds_of(&self, key: &OpenKey) -> Box<[u8]> {
        let digest = Sha256::new().chain_update(self.zone.as_wire()).chain_update(&key.dnskey).finalize();
        let [high, low] = key.tag.to_be_bytes();
        [&[high, low, ALGORITHM, 2], digest.as_slice()].concat().into()
    }

    /// Tags of the keys that sign sets of this type.
    pub fn signers(&self, kind: u16) -> impl Iterator<Item = u16> {
        self.signing(kind).map(|key| key.tag)
    }

    fn signing(&self, kind: u16) -> impl Iterator<Item = &OpenKey> {
        let all = matches!(kind, kind::DNSKEY | kind::CDS | kind::CDNSKEY);
        let active = self.keys.iter().any(|key| key.state == ZoneKeyState::Active);
        self.keys.iter().filter(move |key| match key.state {
            ZoneKeyState::Active => true,
            // Before the first rollover nothing is active yet.
            ZoneKeyState::Published | ZoneKeyState::Announced => all || !active,
            ZoneKeyState::Retired => all,
        })
    }

    /// The data of each RRSIG of `set` at `owner` (a lower-case wire name).
    ///
    /// # Errors
    /// [`KeyError::Refused`].
    pub fn sign(
        &self,
        owner: &[u8],
        set: &RrSet<'_>,
        validity: Validity,
    ) -> Result<Vec<Box<[u8]>>, KeyError> {
        let mut text = Vec::with_capacity(512);
        self.signers(set.kind)
            .map(|tag| {
                text.clear();
                let head = self.text_to_sign(tag, owner, set, validity, &mut text);
                let signature = self.signature(tag, &text)?;
                Ok([text.get(..head).unwrap_or_default(), &signature].concat().into())
            })
            .collect()
    }

    /// The signature of the key `tag` over a text of [`KeySet::text_to_sign`].
    ///
    /// # Errors
    /// [`KeyError::Refused`].
    pub fn signature(&self, tag: u16, text: &[u8]) -> Result<[u8; 64], KeyError> {
        let key = self.keys.iter().find(|key| key.tag == tag).ok_or(KeyError::Refused)?;
        let signature = key.pair.sign(&self.random, text).map_err(|_| KeyError::Refused)?;
        signature.as_ref().try_into().map_err(|_| KeyError::Refused)
    }

    /// What the signature of the key `tag` is made over (RFC 4034 §3.1.8.1); returns how much of it is the RRSIG's own data.
    pub fn text_to_sign(
        &self,
        tag: u16,
        owner: &[u8],
        set: &RrSet<'_>,
        validity: Validity,
        out: &mut Vec<u8>,
    ) -> usize {
        let labels = Labels::of(owner).filter(|label| *label != b"*").count();
        out.extend_from_slice(&set.kind.to_be_bytes());
        out.extend_from_slice(&[ALGORITHM, u8::try_from(labels).unwrap_or(u8::MAX)]);
        out.extend_from_slice(&set.ttl.to_be_bytes());
        out.extend_from_slice(&validity.expiration.to_be_bytes());
        out.extend_from_slice(&validity.inception.to_be_bytes());
        out.extend_from_slice(&tag.to_be_bytes());
        out.extend_from_slice(self.zone.as_wire());
        let head = out.len();
        for data in set.data.iter() {
            out.extend_from_slice(owner);
            out.extend_from_slice(&set.kind.to_be_bytes());
            out.extend_from_slice(&1u16.to_be_bytes());
            out.extend_from_slice(&set.ttl.to_be_bytes());
            out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(data);
        }
        head
    }
}

/// The data of a DNSKEY from an uncompressed point (`04 x y`).
fn dnskey(point: &[u8]) -> Box<[u8]> {
    let [high, low] = FLAGS.to_be_bytes();
    [&[high, low, 3, ALGORITHM], point.get(1..).unwrap_or_default()].concat().into()
}

/// RFC 4034 appendix B.
pub fn key_tag(dnskey: &[u8]) -> u16 {
    let sum: u32 = dnskey
        .iter()
        .enumerate()
        .map(|(at, byte)| if at % 2 == 0 { u32::from(*byte) << 8 } else { u32::from(*byte) })
        .fold(0, u32::wrapping_add);
    let [_, _, high, low] = (sum + (sum >> 16)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tag_is_that_of_the_rfcs_example() {
        use base64::Engine as _;
        // RFC 6605 §6.1.
        let public =
            "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let point = base64::engine::general_purpose::STANDARD.decode(public).unwrap();
        let key = dnskey(&[&[4], point.as_slice()].concat());
        assert_eq!(key_tag(&key), 55648);
    }

    #[test]
    fn a_signature_made_now_is_good_for_clocks_a_day_behind_and_five_ahead() {
        for now in [DAY * 20_000, DAY * 20_000 + 1, DAY * 20_001 - 1] {
            let Validity { inception, expiration } = Validity::of_day(now);
            assert!(u64::from(inception) + DAY <= now && u64::from(expiration) >= now + 5 * DAY);
        }
    }
}
