//! The codec: what is written is read, and nothing else is.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::frame::*;
use super::super::machine::{NetFrame, Section};

fn entry(pages: bool) -> impl Strategy<Value = Entry> {
    (any::<u32>(), 1u32..20, any::<bool>(), 0u16..3).prop_map(move |(first, count, zero, disk)| Entry {
        first: u64::from(first),
        count,
        zero,
        disk: if pages { 0 } else { disk },
    })
}

fn full(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| !entry.zero).map(|entry| entry.count as usize * BLOCK_SIZE).sum()
}

fn message() -> impl Strategy<Value = (Message, Vec<u8>)> {
    let bytes = || vec(any::<u8>(), 0..100);
    let plain = prop_oneof![
        bytes().prop_map(Message::Hello),
        bytes().prop_map(Message::Welcome),
        Just(Message::Ready),
        (any::<u32>(), vec(any::<u64>(), 0..8))
            .prop_map(|(round, counts)| Message::RoundEnd { round, counts }),
        any::<u32>().prop_map(|round| Message::RoundDone { round }),
        Just(Message::Pausing),
        vec((any::<u16>(), any::<u16>(), bytes()), 0..5).prop_map(|sections| Message::Sections(
            sections.into_iter().map(|(kind, version, bytes)| Section { kind, version, bytes }).collect()
        )),
        vec((any::<u16>(), bytes()), 0..5).prop_map(|frames| Message::NetFrames(
            frames.into_iter().map(|(device, bytes)| NetFrame { device, bytes }).collect()
        )),
        bytes().prop_map(Message::Prepared),
        Just(Message::HandedOver),
        bytes().prop_map(Message::Running),
        Just(Message::Bye),
        "[a-z ]{0,50}".prop_map(Message::Abort),
        Just(Message::Alive),
    ];
    prop_oneof![
        plain.prop_map(|message| (message, Vec::new())),
        vec(entry(true), 1..6).prop_map(|entries| (Message::Pages(entries.clone()), vec![7; full(&entries)])),
        vec(entry(false), 1..6)
            .prop_map(|entries| (Message::Blocks(entries.clone()), vec![7; full(&entries)])),
    ]
}

fn encoded(message: &Message, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(1, 2, 3).encode(&mut out, message, data).unwrap();
    out
}

proptest! {
    #[test]
    fn what_is_written_is_read((message, data) in message(), tail in vec(any::<u8>(), 0..10)) {
        let mut bytes = encoded(&message, &data);
        let whole = bytes.len();
        bytes.extend(tail);
        let (header, parsed, its, taken) = parse(&bytes).unwrap();
        prop_assert_eq!((header.stream, header.migration, header.epoch, header.sequence), (1, 2, 3, 0));
        prop_assert_eq!(parsed, message);
        prop_assert_eq!(its, &data[..]);
        prop_assert_eq!(taken, whole);
    }

    #[test]
    fn packed_data_is_unpacked_to_what_it_was(entries in vec(entry(true), 1..6), seed: u64, noise in 0usize..4096) {
        let Some(length) = content(&entries) else { return Ok(()) };
        let mut state = seed;
        let raw: Vec<u8> = (0..length).map(|at| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            if at % 4096 < noise { state.to_le_bytes()[7] } else { 0x55 }
        }).collect();
        let mut encoder = Encoder::new(1, 2, 3);
        encoder.pack(true);
        let mut out = Vec::new();
        let message = Message::Pages(entries);
        encoder.encode_with(&mut out, &message, |out| { out.extend_from_slice(&raw); Ok::<_, FrameError>(()) }).unwrap();
        let (header, parsed, data, taken) = parse(&out).unwrap();
        prop_assert_eq!((parsed, taken), (message, out.len()));
        if header.packed {
            let mut unpacked = vec![0; length];
            unpack(header.kind, data, &mut unpacked).unwrap();
            prop_assert_eq!(unpacked, raw);
        } else {
            prop_assert_eq!(data, &raw[..]);
        }
    }

    #[test]
    fn any_packed_bytes_are_unpacked_without_panic(data in vec(any::<u8>(), 0..500), length in 0usize..20_000) {
        let _ = unpack(Kind::Pages, &data, &mut vec![0; length]);
    }

    #[test]
    fn a_frame_cut_anywhere_is_incomplete((message, data) in message(), at in any::<prop::sample::Index>()) {
        let bytes = encoded(&message, &data);
        let cut = &bytes[..at.index(bytes.len())];
        let incomplete = matches!(parse(cut), Err(FrameError::Incomplete { .. }));
        prop_assert!(incomplete);
    }

    #[test]
    fn a_flipped_bit_in_what_is_interpreted_is_noticed(
        (message, data) in message(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut bytes = encoded(&message, &data);
        let interpreted = bytes.len() - data.len();
        bytes[at.index(interpreted)] ^= 1 << bit;
        prop_assert!(parse(&bytes).is_err());
    }

    /// The bounded twin of the fuzz target.
    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    /// Past the CRC, too: a hostile peer can compute it.
    #[test]
    fn any_table_with_a_good_crc_is_parsed_without_panic(
        kind in 0u16..20, table in vec(any::<u8>(), 0..200), data in 0u32..9000,
    ) {
        let bytes = forged(kind, &table, data);
        if let Ok((header, message, its, taken)) = parse(&bytes) {
            prop_assert!(!header.packed);
            prop_assert_eq!(taken, bytes.len());
            let mut again = Vec::new();
            Encoder::new(header.stream, header.migration, header.epoch).encode(&mut again, &message, its).unwrap();
            prop_assert_eq!(again.len(), bytes.len());
        }
    }
}

/// A frame with a right CRC whatever it says.
pub fn forged(kind: u16, table: &[u8], data: u32) -> Vec<u8> {
    let mut bytes = b"MSHM".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
    bytes.extend(data.to_le_bytes());
    bytes.extend([0; 8]);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    crc.update(table);
    bytes.extend(crc.finalize().to_le_bytes());
    bytes.extend(table);
    bytes.extend(vec![1; data as usize]);
    bytes
}

#[test]
fn a_length_above_its_cap_is_refused_before_anything_is_read() {
    for (kind, caps) in [(4u16, (16 << 10, 1 << 20)), (12, (0, 0)), (9, (16 << 20, 0))] {
        for (table, data) in [(caps.0 + 1, 0), (0, caps.1 + 1), (u32::MAX, 0), (0, u32::MAX)] {
            let mut bytes = forged(kind, &[], 0);
            bytes[28..32].copy_from_slice(&table.to_le_bytes());
            bytes[32..36].copy_from_slice(&data.to_le_bytes());
            assert!(matches!(parse_header(&bytes), Err(FrameError::TooLong { .. })), "{kind} {table} {data}");
        }
    }
}

#[test]
fn the_header_has_its_documented_bytes() {
    let bytes = encoded(&Message::RoundDone { round: 0x0102_0304 }, &[]);
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let head = "4d53484d\
                0100\
                0700\
                0000\
                0100\
                0200000000000000\
                0300000000000000\
                04000000\
                00000000\
                0000000000000000";
    assert_eq!(text[..88], *head);
    assert_eq!(text[96..], *"04030201");
}

#[test]
fn another_protocol_another_version_and_unknown_kinds_are_named() {
    let good = encoded(&Message::Alive, &[]);
    let spoiled = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(&bytes).unwrap_err()
    };
    assert!(matches!(spoiled(0, b'G'), FrameError::Magic(_)));
    assert_eq!(spoiled(4, 9), FrameError::Version(9));
    assert!(matches!(spoiled(6, 99), FrameError::Kind { kind: 99, .. }));
    assert!(matches!(spoiled(8, 1), FrameError::Kind { flags: 1, .. }));
    assert_eq!(spoiled(20, 1), FrameError::Crc(Kind::Alive));
}
