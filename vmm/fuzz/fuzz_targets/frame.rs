//! Any bytes: no panic, and what is accepted can be written back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_vmm::migrate::frame::{Encoder, HEADER, Message, parse};

fuzz_target!(|bytes: &[u8]| {
    // The CRC would keep the fuzzer out: it is corrected first, as a hostile peer would.
    let mut bytes = bytes.to_vec();
    if let (Some(head), Some(length)) =
        (bytes.get(..HEADER).and_then(|header| header.get(..HEADER - 4)), bytes.get(28..32))
    {
        let length = length.iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
        let mut crc = crc(head, bytes.get(HEADER..HEADER.saturating_add(length)).unwrap_or_default());
        bytes[HEADER - 4..HEADER].swap_with_slice(&mut crc);
    }
    match parse(&bytes) {
        // Its text is read lossily: what is written back may be longer.
        Ok((_, Message::Abort(_), ..)) | Err(_) => {}
        Ok((header, message, data, taken)) => {
            let mut again = Vec::new();
            let mut encoder = Encoder::new(header.stream, header.migration, header.epoch);
            assert!(encoder.encode(&mut again, &message, data).is_ok(), "what was read can be written");
            assert_eq!(again.len(), taken);
        }
    }
});

fn crc(head: &[u8], table: &[u8]) -> [u8; 4] {
    let mut sum = u32::MAX;
    for byte in head.iter().chain(table) {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    (!sum).to_le_bytes()
}
