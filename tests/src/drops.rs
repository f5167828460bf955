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

/// A table that counts what a machine gets at a UDP port and what it sends from there: at its tap alone, since each rule costs each packet.
const PASSED: &str = r#"add table inet passed
delete table inet passed
table inet passed {
    chain from_machines {
        type filter hook prerouting priority -500
        iifname "mt*" udp sport PORT counter
    }
    chain to_machines {
        type filter hook postrouting priority 500
        oifname "mt*" udp dport PORT counter
    }
}
"#;

/// All counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Drops(BTreeMap<String, u64>);

impl Drops {
    /// Has the hosts count, from now on, what passes to a UDP port of machines and back.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn count_port(topology: &Topology, port: u16) -> Result<()> {
        let table = PASSED.replace("PORT", &port.to_string());
        for place in [Place::A, Place::B] {
            run(topology.command(place, "sh").args(["-c", "printf %s \"$0\" | nft -f -", &table]))?;
        }
        Ok(())
    }

    /// Reads them.
    ///
    /// # Errors
    /// A place is gone.
    pub fn look(topology: &Topology) -> Result<Self> {
        let mut all = BTreeMap::new();
        for place in PLACES {
            let script = "cat /proc/net/snmp6; ip -o -s link show; nft list ruleset inet 2>/dev/null || true";
            let said = run(topology.command(place, "sh").args(["-c", script]))?;
            for (what, count) in said.lines().filter_map(counter) {
                // Two rules may read the same.
                *all.entry(format!("{}: {what}", place.name())).or_default() += count;
            }
        }
        // The kernel counts these for all namespaces together.
        for (what, file, column) in [
            ("backlog of a CPU", "/proc/net/softnet_stat", 1),
            ("neighbours that did not answer", "/proc/net/stat/ndisc_cache", 6),
            ("waiting for a neighbour", "/proc/net/stat/ndisc_cache", 11),
        ] {
            all.insert(format!("everywhere: {what}"), column_sum(&std::fs::read_to_string(file)?, column));
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

/// The sum of one of the columns of hexadecimal numbers that the kernel prints, a line for each CPU. A heading is no number.
fn column_sum(text: &str, column: usize) -> u64 {
    let numbers = text.lines().filter_map(|line| line.split_whitespace().nth(column));
    numbers.filter_map(|number| u64::from_str_radix(number, 16).ok()).sum()
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
    fn columns_are_summed_without_their_heading() {
        assert_eq!(column_sum("entries allocs\n00000005 00000010\n00000005 00000001\n", 1), 0x11);
    }

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
