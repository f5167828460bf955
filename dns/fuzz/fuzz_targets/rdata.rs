//! What an owner writes as a record's data: bytes that fit a record, or an error in words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_fleet::rdata::encode;

fuzz_target!(|input: (u8, &str)| {
    const KINDS: [&str; 12] =
        ["A", "AAAA", "CNAME", "TXT", "MX", "SRV", "CAA", "SSHFP", "TLSA", "DS", "HTTPS", "NAPTR"];
    let kind = KINDS[usize::from(input.0) % KINDS.len()];
    match encode(kind, input.1) {
        Ok(data) => assert!(!data.bytes.is_empty() && data.bytes.len() <= 65_535),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
