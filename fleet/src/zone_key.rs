//! What a zone's keys amount to in DNS: their DNSKEY, DS, CDS and CDNSKEY, and which of them signs what.
//!
//! | state | in DNSKEY | signs DNSKEY, CDS, CDNSKEY | signs everything else | in CDS and CDNSKEY |
//! | --- | --- | --- | --- | --- |
//! | [`Published`](ZoneKeyState::Published) | yes | yes | | |
//! | [`Announced`](ZoneKeyState::Announced) | yes | yes | | yes, and then it alone |
//! | [`Active`](ZoneKeyState::Active) | yes | yes | yes | yes, unless one is announced |
//! | [`Retired`](ZoneKeyState::Retired) | yes | yes | | |
//!
//! Every key that is in the DNSKEY set signs it: so whichever DS a resolver still holds leads to the whole set. RFC 4034 has the
//! formats, RFC 7344 CDS and CDNSKEY; RFC 6781 §4.1.3 and RFC 7583 the rollover, which control decides.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::id::DomainName;
use crate::record::{ZoneKey, ZoneKeyState, ZoneKeys};

/// ECDSA P-256 with SHA-256 (RFC 6605).
pub const ALGORITHM: u8 = 13;
/// SHA-256 (RFC 4509).
pub const DIGEST: u8 = 2;
/// A zone key that is a secure entry point: a combined signing key.
pub const FLAGS: u16 = 257;

/// The RDATA of a DNSKEY with this public key (64 bytes, RFC 6605 §4).
pub fn dnskey_rdata(public: &[u8]) -> Vec<u8> {
    let [high, low] = FLAGS.to_be_bytes();
    [&[high, low, 3, ALGORITHM], public].concat()
}

/// RFC 4034 appendix B.
pub fn key_tag(dnskey_rdata: &[u8]) -> u16 {
    let sum: u32 = dnskey_rdata
        .iter()
        .enumerate()
        .map(|(at, byte)| if at % 2 == 0 { u32::from(*byte) << 8 } else { u32::from(*byte) })
        .sum();
    let [.., high, low] = (sum + (sum >> 16 & 0xffff)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// A zone's name in wire form, lower case.
pub fn wire_name(zone: &DomainName) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in zone.as_str().split('.') {
        // A label of a domain name has at most 63 bytes.
        wire.push(u8::try_from(label.len()).unwrap_or(63));
        wire.extend(label.to_ascii_lowercase().bytes());
    }
    wire.push(0);
    wire
}

impl ZoneKey {
    /// The RDATA of its DNSKEY, and of its CDNSKEY; none for a record whose key is damaged.
    pub fn dnskey(&self) -> Option<Vec<u8>> {
        let public = STANDARD.decode(&self.public).ok().filter(|public| public.len() == 64)?;
        Some(dnskey_rdata(&public))
    }

    /// The RDATA of its DS, and of its CDS.
    pub fn ds(&self, zone: &DomainName) -> Option<Vec<u8>> {
        let dnskey = self.dnskey()?;
        let digest = Sha256::new().chain_update(wire_name(zone)).chain_update(&dnskey).finalize();
        let [high, low] = self.tag.to_be_bytes();
        Some([&[high, low, ALGORITHM, DIGEST], digest.as_slice()].concat())
    }

    /// Its DS as zone files write it, without owner and type: `12345 13 2 HEX`.
    pub fn ds_text(&self, zone: &DomainName) -> Option<String> {
        let ds = self.ds(zone)?;
        let digest = ds.get(4..).map(hex::encode_upper)?;
        Some(format!("{} {ALGORITHM} {DIGEST} {digest}", self.tag))
    }

    /// Its DNSKEY as zone files write it: `257 3 13 BASE64`.
    pub fn dnskey_text(&self) -> String {
        format!("{FLAGS} 3 {ALGORITHM} {}", self.public)
    }
}

impl ZoneKeys {
    /// The keys that sign the zone's data: one.
    pub fn signing(&self) -> impl Iterator<Item = &ZoneKey> {
        self.keys.iter().filter(|key| key.state == ZoneKeyState::Active)
    }

    /// The keys that the parent is to have a DS of: CDS and CDNSKEY.
    pub fn for_parent(&self) -> impl Iterator<Item = &ZoneKey> {
        let announced = self.keys.iter().any(|key| key.state == ZoneKeyState::Announced);
        let wanted = if announced { ZoneKeyState::Announced } else { ZoneKeyState::Active };
        self.keys.iter().filter(move |key| key.state == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::sealed::EntrySecret;

    /// RFC 6605 §6.1.
    fn of_the_rfc() -> ZoneKey {
        let public =
            "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let zone: DomainName = "example.net".parse().unwrap();
        ZoneKey {
            tag: key_tag(&dnskey_rdata(&STANDARD.decode(public).unwrap())),
            public: public.to_owned(),
            secret: EntrySecret::random().seal(&Key::ZoneKeys(zone), b"").unwrap(),
            state: ZoneKeyState::Active,
            since: 0,
        }
    }

    #[test]
    fn tag_and_ds_are_those_of_rfc_6605() {
        let key = of_the_rfc();
        assert_eq!(key.tag, 55648);
        assert_eq!(
            key.ds_text(&"example.net".parse().unwrap()).unwrap(),
            "55648 13 2 B4C8C1FE2E7477127B27115656AD6256F424625BF5C1E2770CE6D6E37DF61D17"
        );
    }

    #[test]
    fn while_a_key_is_announced_the_parent_is_to_have_it_alone() {
        let with = |tag, state| ZoneKey { tag, state, ..of_the_rfc() };
        let zone: DomainName = "example.net".parse().unwrap();
        let tags = |keys: Vec<ZoneKey>| {
            let keys = ZoneKeys { id: zone.clone(), keys };
            let tags: Vec<u16> = keys.for_parent().map(|key| key.tag).collect();
            (tags, keys.signing().count())
        };
        use ZoneKeyState::{Active, Announced, Published, Retired};
        assert_eq!(tags(vec![with(1, Retired), with(2, Active)]), (vec![2], 1));
        assert_eq!(tags(vec![with(1, Active), with(2, Published)]), (vec![1], 1));
        assert_eq!(tags(vec![with(1, Active), with(2, Announced)]), (vec![2], 1));
    }
}
