//! The packet filters: who may send what from which tap, and who may talk to whom.
//!
//! The rules are static; what changes are the elements of a few sets. [`ruleset`] replaces everything in one transaction at the
//! start; [`delta`] then adds and removes elements in one batch (1 element 4 ms, 1,000 in one batch 12 ms). `nft` is the
//! one program that netd runs. Public addresses are filtered without connection tracking, so a machine that moves takes no
//! state along.
//!
//! ```text
//! tap ──▶ from_machine ──▶ machine_sends ──▶ routing ──▶ forward ──▶ tap | overlay | uplink
//!         its own MAC and    no private network     │        same account, or public
//!         addresses only     but the account's own  └──▶ input: this host's resolver, port 53
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use ipnetwork::IpNetwork;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::api::Port;
use crate::config::{NetdConfig, Role, Underlay};
use crate::error::Error;
use crate::kernel::{GPE_PORT, MACHINE_MARK};
use crate::plan::Filters;

/// The nftables table that is netd's alone.
pub const TABLE: &str = "inet mashines";

/// IPv4 networks that no machine reaches and that reach no machine: providers keep metadata services and other customers there.
const PRIVATE_V4: &str =
    "{ 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16 }";

/// A question, or a packet of a connection with questions.
const DNS: &str = "meta l4proto { udp, tcp } th dport 53";

/// How many packets a second one machine may send to its resolver, and how many at once after a rest: the resolver's socket has room for
/// some hundreds.
const QUESTIONS_PER_SECOND: u32 = 1000;
const QUESTIONS_AT_ONCE: u32 = 256;

/// An element of one of the sets.
type Element = (&'static str, String);

/// The whole table; loading it replaces the one that is there within one transaction.
pub fn ruleset(config: &NetdConfig, filters: &Filters) -> String {
    let overlay = &config.overlay_interface;
    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    for set in SETS {
        let _ = writeln!(text, "  set {} {{ {} }}", set.name, set.definition);
    }
    let forward = forward_chain(config);
    let input = input_chain(config);
    let mesh = config.mesh_prefix;
    let resolver = resolver_rule(config);
    let _ = write!(
        text,
        r#"
  chain ingress {{
    type filter hook prerouting priority raw; policy accept;
    iifname "mt-*" goto from_machine
    iifname "{overlay}" notrack
  }}

  # A machine speaks from its own addresses, and before it has them only as neighbour discovery does.
  chain from_machine {{
    ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report }} accept
    iifname . ether saddr . ip6 saddr @source6 goto machine_sends
    iifname . ether saddr . ip saddr @source4 goto machine_sends
    counter drop
  }}

  chain machine_sends {{
{resolver}    ip6 daddr @infrastructure6 counter drop
    ip daddr @infrastructure4 counter drop
    ip6 daddr {mesh} counter drop
    ip6 daddr fc00::/7 ip6 daddr != @region6 iifname . ip6 daddr != @account counter drop
    ip daddr {PRIVATE_V4} counter drop
    meta mark set {MACHINE_MARK} notrack accept
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    # The mark has chosen the route. Left on, it would choose the outer packet's route, too: into the overlay again.
    iifname "mt-*" meta mark set 0
{forward}  }}

  chain input {{
    type filter hook input priority filter; policy accept;
{input}  }}
}}
"#
    );
    for prefix in &config.region_prefixes {
        if let IpNetwork::V6(prefix) = prefix {
            let _ =
                writeln!(text, "add element {TABLE} region6 {{ {}/{} }}", prefix.network(), prefix.prefix());
        }
    }
    write_elements(&mut text, "add", &elements(filters));
    text
}

/// The batch that turns the sets of `old` into those of `new`; none when they are the same.
pub fn delta(old: &Filters, new: &Filters) -> Option<String> {
    let (old, new) = (elements(old), elements(new));
    let mut text = String::new();
    write_elements(&mut text, "delete", &old.difference(&new).cloned().collect());
    write_elements(&mut text, "add", &new.difference(&old).cloned().collect());
    (!text.is_empty()).then_some(text)
}

struct Set {
    name: &'static str,
    definition: &'static str,
}

const SETS: [Set; 9] = [
    Set { name: "source6", definition: "type ifname . ether_addr . ipv6_addr;" },
    Set { name: "source4", definition: "type ifname . ether_addr . ipv4_addr;" },
    Set { name: "account", definition: "type ifname . ipv6_addr; flags interval;" },
    Set { name: "region6", definition: "type ipv6_addr; flags interval;" },
    Set { name: "overlay6", definition: "type ipv6_addr;" },
    Set { name: "overlay4", definition: "type ipv4_addr;" },
    Set { name: "infrastructure6", definition: "type ipv6_addr;" },
    Set { name: "infrastructure4", definition: "type ipv4_addr;" },
    // Who asks the resolver how fast. The kernel fills it.
    Set { name: "asking", definition: "type ifname; size 65536; flags dynamic, timeout; timeout 1m;" },
];

/// What machines send to their resolver stays on this host, so it needs no mark that chooses a way out.
fn resolver_rule(config: &NetdConfig) -> String {
    let rule = |resolver| format!("    ip6 daddr {resolver} {DNS} notrack accept\n");
    config.resolver.map(rule).unwrap_or_default()
}

/// Between machines: within an account everything, across accounts only public addresses. From outside: only public addresses.
fn forward_chain(config: &NetdConfig) -> String {
    let overlay = &config.overlay_interface;
    let mut text = String::new();
    if let Some(resolver) = config.resolver {
        // The answer of another host to a question that was under way when the machine moved here.
        let _ = writeln!(
            text,
            r#"    iifname "{overlay}" oifname "mt-*" ip6 saddr {resolver} udp sport 53 accept"#
        );
    }
    for field in ["saddr", "daddr"] {
        let _ = writeln!(
            text,
            r#"    oifname "mt-*" ip6 {field} fc00::/7 ip6 {field} != @region6 oifname . ip6 {field} != @account counter drop
    iifname != "{overlay}" iifname != "mt-*" oifname {{ "{overlay}", "mt-*" }} ip6 {field} fc00::/7 ip6 {field} != @region6 counter drop"#
        );
    }
    // A private destination that passed above is the machine's own; only its account may write to it.
    let _ = writeln!(
        text,
        r#"    oifname "mt-*" ip6 daddr fc00::/7 ip6 daddr != @region6 oifname . ip6 saddr != @account counter drop
    oifname "mt-*" ip saddr {PRIVATE_V4} counter drop"#
    );
    let mtu = config.overlay_mtu();
    for (family, headers) in [("ipv6", 60), ("ipv4", 40)] {
        let mss = mtu.saturating_sub(headers);
        for side in ["iifname", "oifname"] {
            let _ = writeln!(
                text,
                r#"    {side} {{ "{overlay}", "mt-*" }} meta nfproto {family} tcp flags & (syn | rst) == syn tcp option maxseg size > {mss} tcp option maxseg size set {mss}"#
            );
        }
    }
    text
}

/// To this host itself: the overlay from its peers alone, from machines nothing but what a gateway owes them, and the resolver
/// from machines alone.
fn input_chain(config: &NetdConfig) -> String {
    let mut text = String::new();
    let carrier = match config.underlay {
        Underlay::Wireguard => format!("iifname \"{}\" ", config.wireguard_interface),
        Underlay::Plain => String::new(),
    };
    let _ = writeln!(text, "    udp dport {GPE_PORT} {carrier}ip6 saddr @overlay6 accept");
    let _ = writeln!(text, "    udp dport {GPE_PORT} {carrier}ip saddr @overlay4 accept");
    let _ = writeln!(text, "    udp dport {GPE_PORT} counter drop");
    if let Some(resolver) = config.resolver {
        // Before the socket's queue, which all machines share: one that asks at full speed fills its own measure and not the queue.
        let _ = writeln!(
            text,
            r#"    iifname "mt-*" ip6 daddr {resolver} {DNS} update @asking {{ iifname limit rate over {QUESTIONS_PER_SECOND}/second burst {QUESTIONS_AT_ONCE} packets }} counter drop
    iifname "mt-*" ip6 daddr {resolver} {DNS} accept
    iifname != "lo" ip6 daddr {resolver} counter drop"#
        );
    }
    match config.role {
        Role::Host => {
            let icmp = "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, echo-request, destination-unreachable, packet-too-big, time-exceeded, mld-listener-report, mld-listener-done, mld2-listener-report }";
            for from in ["mt-*", &config.overlay_interface] {
                let _ = writeln!(text, "    iifname \"{from}\" icmpv6 type {icmp} accept");
                let _ = writeln!(text, "    iifname \"{from}\" meta l4proto icmp accept");
                let _ = writeln!(text, "    iifname \"{from}\" counter drop");
            }
        }
        // Machines knock at an entry's public doors as the world does.
        Role::Entry | Role::Both => {}
    }
    text
}

fn elements(filters: &Filters) -> BTreeSet<Element> {
    let mut all: BTreeSet<Element> = filters.ports.values().flat_map(port_elements).collect();
    for (set6, set4, addresses) in [
        ("overlay6", "overlay4", &filters.overlay_peers),
        ("infrastructure6", "infrastructure4", &filters.infrastructure),
    ] {
        all.extend(addresses.iter().map(|address| match address {
            IpAddr::V6(a) => (set6, a.to_string()),
            IpAddr::V4(a) => (set4, a.to_string()),
        }));
    }
    all
}

/// All parts of a port are checked before it is accepted, see [`crate::ledger`]; nothing here can end a quotation.
fn port_elements(port: &Port) -> Vec<Element> {
    let (tap, mac) = (&port.tap, port.mac);
    let v6 = [Some(port.ipv6), port.private6].into_iter().flatten();
    let mut all: Vec<Element> = v6.map(|a| ("source6", format!("\"{tap}\" . {mac} . {a}"))).collect();
    all.extend(port.ipv4.map(|a| ("source4", format!("\"{tap}\" . {mac} . {a}"))));
    all.push(("account", format!("\"{tap}\" . {}/48", port.account.network())));
    all
}

fn write_elements(text: &mut String, verb: &str, elements: &BTreeSet<Element>) {
    for set in SETS {
        let of_set: Vec<&str> =
            elements.iter().filter(|(s, _)| *s == set.name).map(|(_, e)| e.as_str()).collect();
        if !of_set.is_empty() {
            let _ = writeln!(text, "{verb} element {TABLE} {} {{ {} }}", set.name, of_set.join(", "));
        }
    }
}

/// Runs one transaction: all of it is loaded, or nothing.
pub async fn load(text: &str) -> Result<(), Error> {
    // Root's search path does not always have the system directories.
    let usual = Path::new("/usr/sbin/nft");
    let program = if usual.exists() { usual } else { Path::new("nft") };
    let run = async {
        let mut nft = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = nft.stdin.take() {
            // A program that ends early has said why on its standard error.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        nft.wait_with_output().await
    };
    match run.await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(Error::Filters(String::from_utf8_lossy(&output.stderr).trim().chars().take(400).collect()))
        }
        Err(error) => Err(Error::Filters(format!("run {}: {error}", program.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(role: &str, resolver: Option<&str>) -> NetdConfig {
        let text = serde_json::json!({
            "state_dir": "/", "socket": "/", "host_id": "a", "role": role, "mesh_addr": "fd6d::1", "mesh_prefix": "fd6d::/64",
            "region_prefixes": ["2001:db8::/48"], "resolver": resolver,
        });
        serde_json::from_value(text).unwrap()
    }

    fn chain(text: &str, name: &str) -> Vec<String> {
        let lines = text.lines().skip_while(|line| line.trim() != format!("chain {name} {{"));
        lines.take_while(|line| line.trim() != "}").map(|line| line.trim().to_owned()).collect()
    }

    fn place(lines: &[String], part: &str) -> usize {
        let found = lines.iter().position(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part:?} in {lines:#?}"))
    }

    #[test]
    fn a_machine_asks_its_resolver_before_private_networks_are_closed_to_it_and_takes_no_mark_along() {
        let text = ruleset(&config("host", Some("fdaa::3")), &Filters::default());
        let sends = chain(&text, "machine_sends");
        let asks = place(&sends, "ip6 daddr fdaa::3");
        assert_eq!(sends[asks], "ip6 daddr fdaa::3 meta l4proto { udp, tcp } th dport 53 notrack accept");
        assert!(asks < place(&sends, "@infrastructure6") && asks < place(&sends, "fc00::/7"), "{sends:#?}");
        assert!(!chain(&text, "from_machine").join("").contains("fdaa::3"), "its source is looked at first");
    }

    #[test]
    fn wherever_machines_run_the_resolver_takes_questions_of_machines_alone() {
        for role in ["host", "both"] {
            let input = chain(&ruleset(&config(role, Some("fdaa::3")), &Filters::default()), "input");
            let (limit, accept) = (place(&input, "limit rate over"), place(&input, "th dport 53 accept"));
            let closed = place(&input, "iifname != \"lo\" ip6 daddr fdaa::3 counter drop");
            assert!(limit < accept && accept < closed, "{role}: {input:#?}");
            assert!(input[accept].starts_with("iifname \"mt-*\" ip6 daddr fdaa::3 "), "{role}: {input:#?}");
            let machines = input.iter().position(|line| line == "iifname \"mt-*\" counter drop");
            assert!(machines.is_none_or(|at| closed < at), "{role}: {input:#?}");
        }
    }

    #[test]
    fn an_answer_under_way_in_a_move_comes_by_the_overlay_alone() {
        let forward = chain(&ruleset(&config("host", Some("fdaa::3")), &Filters::default()), "forward");
        let late = place(&forward, "fdaa::3");
        assert_eq!(forward[late], "iifname \"gx\" oifname \"mt-*\" ip6 saddr fdaa::3 udp sport 53 accept");
        assert!(late < place(&forward, "@account"), "{forward:#?}");
    }

    #[test]
    fn where_no_machine_runs_nothing_is_said_of_a_resolver() {
        let text = ruleset(&config("entry", None), &Filters::default());
        assert!(!text.contains("dport 53"), "{text}");
    }
}
