//! Reverse zones: `ip6.arpa` names and the addresses they stand for (RFC 3596 §2.5).
//!
//! A reverse zone is an IPv6 prefix whose length is a multiple of four, since a label is a nibble. Nothing is stored per
//! name: whether a name exists, and whether it is an empty non-terminal, is a range query over the known addresses.

use std::net::Ipv6Addr;

use ipnetwork::Ipv6Network;

use crate::name::Name;

/// `ip6.arpa.` on the wire.
const SUFFIX: &[u8] = b"\x03ip6\x04arpa\x00";

/// Bits of an IPv6 address.
const ADDRESS_BITS: u8 = 128;

/// A prefix whose length is a multiple of four: what one `ip6.arpa` name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NibblePrefix {
    first: u128,
    bits: u8,
}

impl NibblePrefix {
    /// The zones that cover `network`: itself when its length is a multiple of four, else the 2, 4 or 8 longer ones that a
    /// delegation of it consists of.
    pub fn covering(network: Ipv6Network) -> Vec<Self> {
        let bits = network.prefix().next_multiple_of(4).min(ADDRESS_BITS);
        let first = u128::from(network.network());
        let count = 1u128 << (bits - network.prefix());
        (0..count).map(|n| Self { first: first | shifted_left(n, ADDRESS_BITS - bits), bits }).collect()
    }

    /// A whole address.
    pub fn of(address: Ipv6Addr) -> Self {
        Self { first: address.into(), bits: ADDRESS_BITS }
    }

    /// The prefix that a lower-case wire name stands for: `None` when it is not a name of `ip6.arpa` made of single hex digits.
    pub fn parse(wire: &[u8]) -> Option<Self> {
        let nibbles = wire.strip_suffix(SUFFIX)?;
        if nibbles.len() > usize::from(ADDRESS_BITS / 4) * 2 {
            return None;
        }
        let mut first = 0u128;
        let mut bits = 0u8;
        for label in nibbles.rchunks(2) {
            let [1, digit] = label else { return None };
            let value = char::from(*digit).to_digit(16)?;
            bits += 4;
            first |= u128::from(value) << (ADDRESS_BITS - bits);
        }
        Some(Self { first, bits })
    }

    /// The zone's own name.
    pub fn name(self) -> Name {
        let digits = format!("{:032x}", self.first);
        let nibbles = digits.bytes().take(usize::from(self.bits / 4));
        let mut wire: Vec<u8> = nibbles.flat_map(|digit| [digit, 1]).collect();
        wire.reverse();
        wire.extend_from_slice(SUFFIX);
        // 32 labels of two bytes and the suffix are far below a name's limit.
        Name::from_wire(&wire).unwrap_or_else(Name::root)
    }

    /// The first and the last address.
    pub fn range(self) -> (Ipv6Addr, Ipv6Addr) {
        let host_bits = u128::MAX.checked_shr(self.bits.into()).unwrap_or(0);
        (self.first.into(), (self.first | host_bits).into())
    }

    /// The address, where the name spells all of it.
    pub fn address(self) -> Option<Ipv6Addr> {
        (self.bits == ADDRESS_BITS).then(|| self.first.into())
    }
}

fn shifted_left(value: u128, by: u8) -> u128 {
    value.checked_shl(by.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(network: &str) -> Vec<String> {
        let network = network.parse().unwrap();
        NibblePrefix::covering(network).into_iter().map(|p| p.name().to_string()).collect()
    }

    #[test]
    fn a_prefix_on_a_nibble_boundary_is_one_zone() {
        assert_eq!(names("2001:db8:160::/48"), ["0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa."]);
        assert_eq!(names("::/0"), ["ip6.arpa."]);
        assert_eq!(names("::1/128").len(), 1);
    }

    #[test]
    fn a_prefix_between_nibbles_is_the_zones_of_its_delegation() {
        assert_eq!(
            names("2001:db8:4::/46"),
            (4..8).map(|n| format!("{n}.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.")).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_name_and_its_prefix_are_each_others_inverse() {
        for prefix in NibblePrefix::covering("2001:db8:4::/46".parse().unwrap()) {
            assert_eq!(NibblePrefix::parse(prefix.name().as_wire()), Some(prefix));
        }
        let upper: Name = "8.B.D.0.1.0.0.2.IP6.ARPA.".parse().unwrap();
        let (first, last) = NibblePrefix::parse(upper.as_wire()).unwrap().range();
        assert_eq!(first, "2001:db8::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(last, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn names_that_are_no_prefix_are_refused() {
        for bad in ["x.ip6.arpa.", "10.ip6.arpa.", "1.in-addr.arpa.", "arpa.", "."] {
            assert_eq!(NibblePrefix::parse(bad.parse::<Name>().unwrap().as_wire()), None, "{bad}");
        }
        let long = format!("{}ip6.arpa.", "0.".repeat(33));
        assert_eq!(NibblePrefix::parse(long.parse::<Name>().unwrap().as_wire()), None);
    }
}
