//! Addresses and names that belong to one machine for life: cut at random, kept unique by a key in the store.

use std::net::Ipv6Addr;

use ipnetwork::Ipv6Network;
use mashines_fleet::id::MachineId;
use mashines_fleet::resolver;

/// The last of the numbers that no machine gets in a prefix: routers, name servers and anycast addresses live there.
const RESERVED: u128 = 0xffff;

/// A random address of the prefix, outside its first 65,536; none when the prefix has no others.
pub fn random_in(prefix: Ipv6Network) -> Option<Ipv6Addr> {
    let bits = 128_u32.checked_sub(prefix.prefix().into())?;
    let mask = if bits == 128 { u128::MAX } else { (1_u128 << bits) - 1 };
    if mask <= RESERVED {
        return None;
    }
    let network = u128::from(prefix.network());
    std::iter::repeat_with(|| rand::random::<u128>() & mask)
        .find(|number| *number > RESERVED)
        .map(|number| Ipv6Addr::from(network | number))
}

/// A random address of the account's /48.
pub fn random_private(prefix: Ipv6Addr) -> Option<Ipv6Addr> {
    random_in(Ipv6Network::new(prefix, 48).ok()?)
}

/// A random ULA /48 (RFC 4193, section 3.2.2: 40 random bits after `fd`), and not that of machines' resolver.
pub fn random_ula() -> Ipv6Addr {
    loop {
        let global_id = u128::from(rand::random::<u64>() >> 24);
        let prefix = Ipv6Addr::from((0xfd_u128 << 120) | (global_id << 80));
        if !resolver::is_in(prefix) {
            return prefix;
        }
    }
}

/// `02:` and the first five bytes of the id: locally administered, unicast.
pub fn mac(machine: &MachineId) -> String {
    let id = machine.as_str().as_bytes();
    let bytes = id.chunks(2).take(5).map(|pair| String::from_utf8_lossy(pair).into_owned());
    let parts: Vec<String> = std::iter::once("02".to_owned()).chain(bytes).collect();
    parts.join(":")
}

const FIRST: [&str; 48] = [
    "amber", "autumn", "bold", "brave", "bright", "calm", "clear", "clever", "cool", "cosy", "crisp",
    "dusty", "early", "fair", "fancy", "gentle", "golden", "grand", "green", "happy", "hidden", "honest",
    "idle", "jolly", "keen", "kind", "late", "light", "lively", "lucky", "mellow", "mighty", "misty",
    "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid", "silent", "silver", "steady",
    "sunny", "swift", "tidy", "warm",
];
const SECOND: [&str; 48] = [
    "badger", "beaver", "birch", "brook", "cedar", "cliff", "cloud", "comet", "crane", "creek", "dune",
    "eagle", "falcon", "fern", "finch", "fjord", "forest", "fox", "glade", "harbor", "hawk", "heron", "hill",
    "island", "lake", "lark", "maple", "meadow", "moon", "moss", "otter", "owl", "pebble", "pine", "pond",
    "raven", "reef", "river", "robin", "sparrow", "spruce", "stone", "storm", "swan", "tide", "valley",
    "willow", "wren",
];

/// A readable name: `quiet-otter-4821`.
pub fn random_slug() -> String {
    let pick = |words: &[&'static str]| words[rand::random_range(0..words.len())];
    format!("{}-{}-{}", pick(&FIRST), pick(&SECOND), rand::random_range(1000..10_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_prefix_and_never_among_the_reserved() {
        let prefix: Ipv6Network = "2001:db8:1::/64".parse().unwrap();
        for _ in 0..1000 {
            let address = random_in(prefix).unwrap();
            assert!(prefix.contains(address), "{address}");
            assert!(u128::from(address) & u128::from(u64::MAX) > RESERVED, "{address}");
        }
        assert_eq!(random_in("2001:db8::/112".parse().unwrap()), None);
        assert!(random_in("2001:db8::/110".parse().unwrap()).is_some());
    }

    #[test]
    fn an_account_prefix_is_a_ula_48() {
        let prefix = random_ula();
        assert_eq!(prefix.octets()[0], 0xfd);
        assert!(prefix.octets()[6..].iter().all(|byte| *byte == 0), "{prefix}");
    }

    #[test]
    fn a_mac_is_local_and_of_the_id() {
        assert_eq!(mac(&"0123456789abcd".parse().unwrap()), "02:01:23:45:67:89");
    }

    #[test]
    fn random_names_are_names() {
        assert!(random_slug().parse::<mashines_fleet::id::Slug>().is_ok());
    }
}
