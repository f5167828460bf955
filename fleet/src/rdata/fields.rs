//! The data of the common types, field by field.
//!
//! hickory's own reader of zone files gets escapes in text wrong (`\065` becomes another character, and unquoted words keep their
//! backslashes), so these are read here; rare types are left to it.

use super::text::{self, Token};

/// A type whose data are read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RFC 1035.
    A,
    /// RFC 3596.
    Aaaa,
    /// RFC 8659.
    Caa,
    /// RFC 1035.
    Cname,
    /// RFC 4034; SHA-256 and SHA-384.
    Ds,
    /// RFC 1035.
    Mx,
    /// RFC 1035.
    Ns,
    /// RFC 1035.
    Ptr,
    /// RFC 2782.
    Srv,
    /// RFC 4255.
    Sshfp,
    /// RFC 6698.
    Tlsa,
    /// RFC 1035.
    Txt,
}

/// By mnemonic, with their numbers.
pub const KINDS: [(&str, Kind, u16); 12] = [
    ("A", Kind::A, 1),
    ("AAAA", Kind::Aaaa, 28),
    ("CAA", Kind::Caa, 257),
    ("CNAME", Kind::Cname, 5),
    ("DS", Kind::Ds, 43),
    ("MX", Kind::Mx, 15),
    ("NS", Kind::Ns, 2),
    ("PTR", Kind::Ptr, 12),
    ("SRV", Kind::Srv, 33),
    ("SSHFP", Kind::Sshfp, 44),
    ("TLSA", Kind::Tlsa, 52),
    ("TXT", Kind::Txt, 16),
];

/// What the data of a type look like.
pub fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::A => "192.0.2.7",
        Kind::Aaaa => "2001:db8::7",
        Kind::Caa => "0 issue \"letsencrypt.org\"",
        Kind::Cname | Kind::Ns | Kind::Ptr => "www.example.org.",
        Kind::Ds => "12345 13 2 and 64 hex digits",
        Kind::Mx => "10 mail.example.org.",
        Kind::Srv => "0 5 5060 sip.example.org.",
        Kind::Sshfp => "4 2 and 64 hex digits",
        Kind::Tlsa => "3 1 1 and 64 hex digits",
        Kind::Txt => "\"v=spf1 -all\"",
    }
}

/// The bytes, or why there are none.
pub fn encode(kind: Kind, text: &str) -> Result<Vec<u8>, String> {
    rdata(kind, &text::tokens(text)?)
}

fn rdata(kind: Kind, tokens: &[Token]) -> Result<Vec<u8>, String> {
    let mut fields = Fields { tokens, next: 0 };
    let mut out = Vec::new();
    match kind {
        Kind::A => out.extend(fields.parsed::<std::net::Ipv4Addr>("an IPv4 address")?.octets()),
        Kind::Aaaa => out.extend(fields.parsed::<std::net::Ipv6Addr>("an IPv6 address")?.octets()),
        Kind::Cname | Kind::Ns | Kind::Ptr => out.extend(fields.name()?),
        Kind::Ds => {
            out.extend(fields.parsed::<u16>("a key tag")?.to_be_bytes());
            out.push(fields.parsed("an algorithm")?);
            let kind: u8 = fields.parsed("a digest type")?;
            let digest = fields.hex("a digest")?;
            if !matches!(kind, 2 | 4) {
                return Err("digests are SHA-256 (2) or SHA-384 (4)".to_owned());
            }
            digest_fits(kind, &[(2, 32), (4, 48)], &digest)?;
            out.push(kind);
            out.extend(digest);
        }
        Kind::Mx => {
            out.extend(fields.parsed::<u16>("a preference")?.to_be_bytes());
            out.extend(fields.name()?);
        }
        Kind::Srv => {
            for what in ["a priority", "a weight", "a port"] {
                out.extend(fields.parsed::<u16>(what)?.to_be_bytes());
            }
            out.extend(fields.name()?);
        }
        Kind::Caa => {
            // RFC 8659 §4.1: one flag is known, and a tag is of letters and digits.
            let flags: u8 = fields.parsed("flags")?;
            if !matches!(flags, 0 | 128) {
                return Err(format!("flags {flags} are unknown: 0, or 128 for critical"));
            }
            let tag = fields.plain("a tag")?;
            if tag.is_empty() || tag.len() > 15 || !tag.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err("a tag is of 1 to 15 letters and digits".to_owned());
            }
            let value = fields.token("a value")?.bytes.clone();
            out.push(flags);
            out.extend(u8::try_from(tag.len()).map(|n| [n]).unwrap_or_default());
            out.extend(tag.to_ascii_lowercase().bytes());
            out.extend(value);
        }
        Kind::Sshfp => {
            let (algorithm, digest): (u8, u8) =
                (fields.parsed("an algorithm")?, fields.parsed("a digest type")?);
            let print = fields.hex("a fingerprint")?;
            digest_fits(digest, &[(1, 20), (2, 32)], &print)?;
            out.extend([algorithm, digest]);
            out.extend(print);
        }
        Kind::Tlsa => {
            let usage: u8 = fields.parsed("a usage")?;
            let (selector, matching): (u8, u8) =
                (fields.parsed("a selector")?, fields.parsed("a matching type")?);
            let data = fields.hex("a digest")?;
            digest_fits(matching, &[(1, 32), (2, 64)], &data)?;
            out.extend([usage, selector, matching]);
            out.extend(data);
        }
        Kind::Txt => {
            while fields.next < tokens.len() {
                let bytes = &fields.token("text")?.bytes;
                let length = u8::try_from(bytes.len()).map_err(|_| {
                    "a string of it is longer than 255 bytes: split it, \"first part\" \"second part\""
                        .to_owned()
                })?;
                out.push(length);
                out.extend(bytes);
            }
            if out.is_empty() {
                return Err("there is no text".to_owned());
            }
        }
    }
    fields.end()?;
    Ok(out)
}

/// Digests of known kinds have known lengths; of unknown kinds any length is taken.
fn digest_fits(kind: u8, known: &[(u8, usize)], digest: &[u8]) -> Result<(), String> {
    match known.iter().find(|(known, _)| *known == kind) {
        Some((_, length)) if *length != digest.len() => {
            Err(format!("a digest of kind {kind} has {} hex digits, not {}", length * 2, digest.len() * 2))
        }
        _ if digest.is_empty() => Err("the digest is missing".to_owned()),
        _ => Ok(()),
    }
}

/// The tokens of one record's data, from left to right.
struct Fields<'a> {
    tokens: &'a [Token],
    next: usize,
}

impl<'a> Fields<'a> {
    fn token(&mut self, what: &str) -> Result<&'a Token, String> {
        let token = self.tokens.get(self.next).ok_or_else(|| format!("{what} is missing"))?;
        self.next += 1;
        Ok(token)
    }

    fn plain(&mut self, what: &str) -> Result<&'a str, String> {
        let token = self.token(what)?;
        std::str::from_utf8(&token.bytes).map_err(|_| format!("{what} is of plain characters"))
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let word = self.plain(what)?;
        // `u16::from_str` takes a plus sign, zone files do not.
        let parsed = if word.starts_with('+') { None } else { word.parse().ok() };
        parsed.ok_or_else(|| format!("{:?} is not {what}", text::short(word)))
    }

    fn name(&mut self) -> Result<Vec<u8>, String> {
        let token = self.token("a name")?;
        text::name(&token.source)
    }

    /// Hex digits, which a zone file may break into several words.
    fn hex(&mut self, what: &str) -> Result<Vec<u8>, String> {
        let mut digits = String::new();
        while self.next < self.tokens.len() {
            digits.push_str(self.plain(what)?);
        }
        hex::decode(&digits).map_err(|_| format!("{what} is an even number of hex digits"))
    }

    fn end(&self) -> Result<(), String> {
        match self.tokens.get(self.next) {
            Some(token) => Err(format!("there is more than it takes, from {:?}", text::short(&token.source))),
            None => Ok(()),
        }
    }
}
