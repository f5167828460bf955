//! Numbers of record types (IANA's registry of DNS parameters).

#![allow(missing_docs)]

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const DNAME: u16 = 39;
pub const OPT: u16 = 41;
pub const DS: u16 = 43;
pub const SSHFP: u16 = 44;
pub const RRSIG: u16 = 46;
pub const NSEC: u16 = 47;
pub const DNSKEY: u16 = 48;
pub const NSEC3: u16 = 50;
pub const NSEC3PARAM: u16 = 51;
pub const CDS: u16 = 59;
pub const CDNSKEY: u16 = 60;
pub const HTTPS: u16 = 65;
/// In an NSEC's bitmap: there is no such name (RFC 9824 §3.4).
pub const NXNAME: u16 = 128;
pub const TKEY: u16 = 249;
pub const TSIG: u16 = 250;
pub const IXFR: u16 = 251;
pub const AXFR: u16 = 252;
pub const ANY: u16 = 255;
pub const CAA: u16 = 257;

/// Types that are made by the server, or have a meaning of their own in a question: nobody's own records are of these.
pub const fn is_reserved(kind: u16) -> bool {
    matches!(kind, SOA | OPT | RRSIG | NSEC | NSEC3 | NSEC3PARAM | DNSKEY | CDS | CDNSKEY | DNAME)
        || kind == 0
        || (NXNAME <= kind && kind <= ANY)
}
