//! "There is none", signed: compact denial of existence (RFC 9824).
//!
//! The NSEC is made for the very name that was asked for and ends right behind it, so that nothing else is told and one signature is enough. A
//! name that does not exist has the type NXNAME in its bitmap and nothing else.

use crate::kind;
use crate::name::MAX_NAME;

/// What exists at the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exists<'a> {
    /// Nothing: there is no such name.
    Nothing,
    /// These types, in any order; none at an empty non-terminal.
    Types(&'a [u16]),
}

/// The data of the NSEC at `owner` (a lower-case wire name).
pub fn nsec(owner: &[u8], exists: &Exists<'_>) -> Box<[u8]> {
    let mut data = successor(owner);
    let mut types = vec![kind::RRSIG, kind::NSEC];
    match exists {
        Exists::Nothing => types.push(kind::NXNAME),
        Exists::Types(more) => types.extend_from_slice(more),
    }
    put_bitmap(&mut data, types);
    data.into()
}

/// The next possible name in canonical order: `\000.owner`. Where that is too long, the next name that is no longer (RFC 4471 §3.1.2).
fn successor(owner: &[u8]) -> Vec<u8> {
    if owner.len() + 2 <= MAX_NAME {
        return [b"\x01\x00", owner].concat();
    }
    let mut rest = owner;
    while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, parents) = tail.split_at_checked(usize::from(length)).unwrap_or((tail, &[0]));
        let kept = label.iter().rposition(|byte| *byte < u8::MAX).map_or(0, |last| last + 1);
        let mut label = label.get(..kept).unwrap_or_default().to_vec();
        if let Some(last) = label.last_mut() {
            // Upper-case letters are not in canonical names: `@` is followed by `[`.
            *last = if *last == b'@' { b'[' } else { last.saturating_add(1) };
            let length = u8::try_from(label.len()).unwrap_or(1);
            return [&[length], label.as_slice(), parents].concat();
        }
        rest = parents;
    }
    vec![0]
}

/// RFC 4034 §4.1.2.
pub fn put_bitmap(data: &mut Vec<u8>, mut types: Vec<u16>) {
    types.sort_unstable();
    types.dedup();
    for window in types.chunk_by(|one, two| one >> 8 == two >> 8) {
        let mut bits = [0u8; 32];
        let mut length = 0;
        for kind in window {
            let [_, low] = kind.to_be_bytes();
            let at = usize::from(low / 8);
            if let Some(byte) = bits.get_mut(at) {
                *byte |= 0x80 >> (low % 8);
            }
            length = at + 1;
        }
        let [number, _] = window.first().copied().unwrap_or(0).to_be_bytes();
        data.extend_from_slice(&[number, u8::try_from(length).unwrap_or(32)]);
        data.extend_from_slice(bits.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::{Name, canonical_order};

    #[test]
    fn the_bitmap_is_that_of_the_rfcs_example() {
        // RFC 4034 §4.3: A MX RRSIG NSEC TYPE1234.
        let mut data = Vec::new();
        put_bitmap(&mut data, vec![1234, 47, 1, 46, 15]);
        let mut expected = vec![0, 6, 0x40, 0x01, 0, 0, 0, 0x03, 4, 27];
        expected.extend([0; 26]);
        expected.push(0x20);
        assert_eq!(data, expected);
    }

    #[test]
    fn a_name_that_does_not_exist_says_so_by_its_types() {
        let data = nsec(b"\x01a\x00", &Exists::Nothing);
        assert_eq!(&*data, b"\x01\x00\x01a\x00\x00\x11\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\x80");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_successor_comes_after_the_name_and_before_any_other(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..63), 1..8),
        ) {
            let wire: Vec<u8> = labels
                .iter()
                .flat_map(|l| [&[u8::try_from(l.len()).unwrap()], l.as_slice()].concat())
                .chain([0])
                .collect();
            let Some(owner) = Name::from_wire(&wire) else { return Ok(()) };
            let next = Name::from_wire(&successor(owner.as_wire()));
            let next = next.unwrap();
            prop_assert!(canonical_order(owner.as_wire(), next.as_wire()).is_lt() || next == Name::root());
            prop_assert_eq!(next.as_wire().len() <= MAX_NAME, true);
        }
    }
}
