//! Which zones the fleet is the authority for: the apex, the reverse zones of its prefix, and those that the operator wrote.

use ipnetwork::Ipv6Network;

use crate::id::DomainName;
use crate::record::FleetConfig;

/// All of them, the apex first. A name that cannot be a zone's is left out: name servers complain of it.
pub fn names(config: &FleetConfig) -> Vec<DomainName> {
    let apex = config.domain.trim_end_matches('.').to_ascii_lowercase();
    let made = std::iter::once(apex).chain(reverse(config.prefix)).filter_map(|name| name.parse().ok());
    let mut all: Vec<DomainName> = made.collect();
    for zone in &config.zones {
        if !all.contains(&zone.name) {
            all.push(zone.name.clone());
        }
    }
    all
}

/// The `ip6.arpa` zones that a prefix consists of (RFC 3596 §2.5): a label is four bits, so one whose length is no multiple of four is two,
/// four or eight zones.
fn reverse(prefix: Ipv6Network) -> Vec<String> {
    let bits = prefix.prefix().next_multiple_of(4).min(128);
    let first = u128::from(prefix.network());
    let zone = |n: u128| {
        let address = first | n.checked_shl(u32::from(128 - bits)).unwrap_or(0);
        let digits = format!("{address:032x}");
        let labels: Vec<String> = digits
            .chars()
            .take(usize::from(bits / 4))
            .map(String::from)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        format!("{}.ip6.arpa", labels.join("."))
    };
    (0..1u128 << (bits - prefix.prefix())).map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(prefix: &str) -> Vec<String> {
        reverse(prefix.parse().unwrap())
    }

    #[test]
    fn a_prefix_is_the_zones_of_its_delegation() {
        assert_eq!(zones("2001:db8:160::/48"), ["0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa"]);
        let four: Vec<String> = (4..8).map(|n| format!("{n}.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa")).collect();
        assert_eq!(zones("2001:db8:4::/46"), four);
        assert_eq!(zones("2001:db8::1/128").len(), 1);
    }
}
