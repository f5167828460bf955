//! Where packets ended: what each place's kernel and packet filter count as dropped, so that a lost packet has an address.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::netns::{Place, Topology};
use crate::run::run;

/// What the kernel counts of packets that went nowhere (RFC 4293, RFC 4113), as /proc/net/snmp6 names it.
const COUNTERS: [&str; 12] = [
    "Ip6InHdrErrors",
    "Ip6InTooBigErrors",
    "Ip6InNoRoutes",
    "Ip6InAddrErrors",
    "Ip6InTruncatedPkts",
    "Ip6InDiscards",
    "Ip6OutDiscards",
    "Ip6OutNoRoutes",
    "Icmp6OutDestUnreachs",
    "Icmp6OutTimeExcds",
    "Udp6InErrors",
    "Udp6RcvbufErrors",
];

/// Every place that a packet between the client and a machine may pass.
const PLACES: [Place; 4] = [Place::Client, Place::Entry, Place::A, Place::B];

/// All counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Drops(BTreeMap<String, u64>);

impl Drops {
    /// Reads them.
    ///
    /// # Errors
    /// A place is gone.
    pub fn look(topology: &Topology) -> Result<Self> {
        let mut all = BTreeMap::new();
        for place in PLACES {
            let script =
                "cat /proc/net/snmp6; ip -o -s link show; nft list table inet mashines 2>/dev/null || true";
            let said = run(topology.command(place, "sh").args(["-c", script]))?;
            for (what, count) in said.lines().filter_map(counter) {
                // Two rules may read the same.
                *all.entry(format!("{}: {what}", place.name())).or_default() += count;
            }
        }
        Ok(Self(all))
    }

    /// What has been counted since, a line each.
    pub fn since(&self, before: &Self) -> String {
        let more = self.0.iter().filter_map(|(what, count)| {
            let more = count.saturating_sub(before.0.get(what).copied().unwrap_or_default());
            (more > 0).then(|| format!("  {what}: {more}\n"))
        });
        more.collect()
    }
}

/// A line that counts drops, with its count.
fn counter(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // nft: `… counter packets 3 bytes 240 drop`
    if let Some((rule, counted)) = line.split_once(" counter packets ") {
        return Some((rule.trim().to_owned(), counted.split(' ').next()?.parse().ok()?));
    }
    // snmp6: `Ip6InNoRoutes  3`
    if let [name, count] = words[..] {
        return COUNTERS.contains(&name).then(|| Some((name.to_owned(), count.parse().ok()?)))?;
    }
    // ip -o -s link: `2: eth0: … RX: bytes packets errors dropped … \ 1 2 3 4 … TX: bytes packets errors dropped … \ 5 6 7 8 …`
    let dropped = |heading: &str| -> Option<u64> {
        let at = words.iter().position(|word| *word == heading)?;
        let numbers = words.get(at + 1..)?.iter().skip_while(|word| word.parse::<u64>().is_err());
        numbers.clone().nth(3)?.parse().ok()
    };
    let name = words.get(1)?.strip_suffix(':')?;
    let sum = dropped("RX:")? + dropped("TX:")?;
    Some((format!("{name} dropped"), sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kernel_and_filter_print_is_read() {
        let link = r"7: mt-1: <UP> mtu 1420 state UP \    link/ether 02:00 brd ff:ff\    RX:  bytes packets errors dropped  missed   mcast           \         10       2      0       3       0       0 \    TX:  bytes packets errors dropped carrier collsns           \         20       4      0       5       0       0 ";
        for (line, what, count) in [
            ("Ip6InNoRoutes                   \t12", "Ip6InNoRoutes", 12),
            ("\t\tip6 daddr fd6d::/64 counter packets 3 bytes 240 drop", "ip6 daddr fd6d::/64", 3),
            (link, "mt-1 dropped", 8),
        ] {
            assert_eq!(counter(line), Some((what.to_owned(), count)), "{line}");
        }
        for line in ["Ip6InReceives 12", "table inet mashines {", "", "}"] {
            assert_eq!(counter(line), None, "{line}");
        }
    }
}
