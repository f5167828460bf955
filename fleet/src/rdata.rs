//! The data of a DNS record: from the text of a zone file (RFC 1035 §5.1) to the bytes that are served.
//!
//! One function for control, which accepts records, and for dns, which serves them: what was accepted is what is
//! served. The bytes are in DNSSEC's canonical form (RFC 4034 §6.2): names in full and in lower case.

mod fields;
mod text;

use std::str::FromStr as _;

use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

/// The longest text that is looked at: twice what the data of one record could need in a zone file.
pub const MAX_TEXT: usize = 16_384;

/// The data of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rdata {
    /// The type's number.
    pub kind: u16,
    /// The data, canonical.
    pub bytes: Vec<u8>,
}

/// Text that is no data of that type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRdata {
    /// Not a type that can be written in text here.
    #[error("{0:?} is not a record type that can be set")]
    Type(String),
    /// Too long to be looked at.
    #[error("the data is longer than {MAX_TEXT} characters")]
    Long,
    /// Not of the type's form.
    #[error("{data:?} is not the data of a {kind} record: {why}")]
    Data {
        /// The type.
        kind: String,
        /// The text, cut.
        data: String,
        /// What the parser said.
        why: String,
    },
}

/// The data `text` of a record of the type `kind` (a mnemonic, any case).
///
/// # Errors
/// [`BadRdata`].
pub fn encode(kind: &str, text: &str) -> Result<Rdata, BadRdata> {
    let mnemonic = kind.to_ascii_uppercase();
    let unknown = || BadRdata::Type(kind.chars().take(20).collect());
    let number = RecordType::from_str(&mnemonic).map_err(|_| unknown())?;
    if text.len() > MAX_TEXT {
        return Err(BadRdata::Long);
    }
    let bad =
        |why: String| BadRdata::Data { kind: mnemonic.clone(), data: text.chars().take(80).collect(), why };
    let common = fields::KINDS.iter().find(|(name, ..)| *name == mnemonic);
    let bytes = match common {
        Some((_, kind, _)) => fields::encode(*kind, text)
            .map_err(|why| bad(format!("{why}; it looks like: {}", fields::example(*kind))))?,
        None => {
            let data = RData::try_from_str(number, text).map_err(|error| bad(error.to_string()))?;
            canonical(&data).map_err(|error| bad(error.to_string()))?
        }
    };
    if bytes.is_empty() {
        return Err(bad("there is nothing in it".to_owned()));
    }
    Ok(Rdata { kind: number.into(), bytes })
}

fn canonical(data: &RData) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder)?;
    Ok(bytes)
}

/// A string as zone files write it: in quotes, with what could end it escaped.
pub fn quoted(bytes: &[u8]) -> String {
    text::quoted(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: &str, text: &str) -> Vec<u8> {
        encode(kind, text).unwrap().bytes
    }

    #[test]
    fn data_becomes_what_goes_over_the_wire() {
        assert_eq!(bytes("A", "192.0.2.1"), [192, 0, 2, 1]);
        assert_eq!(bytes("mx", "10 Mail.Example.ORG."), b"\x00\x0a\x04mail\x07example\x03org\x00");
        assert_eq!(bytes("TXT", "\"v=spf1 -all\" second"), b"\x0bv=spf1 -all\x06second");
        assert_eq!(bytes("CAA", "0 issue \"ca.example\""), b"\x00\x05issueca.example");
        assert_eq!(bytes("SRV", "1 2 443 t.example."), b"\x00\x01\x00\x02\x01\xbb\x01t\x07example\x00");
        assert_eq!(encode("TXT", "x").unwrap().kind, 16);
    }

    #[test]
    fn a_delegation_signer_has_a_digest_of_its_kinds_length() {
        let digest = "ab".repeat(32);
        let data = bytes("DS", &format!("4711 13 2 {digest}"));
        assert_eq!(data[..4], [0x12, 0x67, 13, 2]);
        assert_eq!(data.len(), 36);
        for bad in ["4711 13 2 abcd", "4711 13 1 abcd", "x", ""] {
            assert!(encode("DS", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_data_is_told_why() {
        for (kind, text) in [
            ("A", "nonsense"),
            ("A", ""),
            ("AAAA", "192.0.2.1"),
            ("MX", "mail.example.org."),
            ("NOPE", "x"),
            ("ANY", "x"),
            ("OPT", "x"),
            ("TXT", ""),
            ("TXT", &"x".repeat(300)),
            ("TXT", &"x ".repeat(10_000)),
        ] {
            let error = encode(kind, text).unwrap_err().to_string();
            assert!(!error.is_empty(), "{kind} {text}");
        }
    }
}
