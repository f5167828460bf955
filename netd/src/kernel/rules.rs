//! Routing rules: which table a packet is looked up in.
//!
//! ```text
//!  990  from this box itself          → machines      an entry's web door reaches the machines whose ports it answers
//!  991  to a machine, TCP, web port   → web           an entry: `local REGION dev lo`, so that a listener on [::] takes it (AnyIP)
//!  992  marked, the same              → egress        a host: what its machines say to others' web ports goes to the entry
//! 1000  all                           → machines
//! 1001  marked                        → egress
//! ```
//!
//! No connection is tracked for this: a packet is told by its destination alone.

use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnetwork::{IpNetwork, Ipv6Network};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::routes::PROTOCOL;
use super::{
    EGRESS_TABLE, Kernel, MACHINE_MARK, MACHINES_TABLE, WEB_TABLE, absent_is_fine, all_or_several,
    present_is_fine, wrap,
};
use crate::config::{NetdConfig, Role};
use crate::error::Error;

const OWN_RULE: u32 = 990;
const WEB_RULE: u32 = 991;
const WEB_FROM_MACHINES_RULE: u32 = 992;
const MACHINES_RULE: u32 = 1000;
const EGRESS_RULE: u32 = 1001;

/// The loopback's index is the same in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// One routing rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    family: AddressFamily,
    priority: u32,
    table: u8,
    /// Only packets with [`MACHINE_MARK`].
    marked: bool,
    /// Only packets that this box sends itself.
    own: bool,
    /// Only TCP to these addresses and this port.
    web: Option<(Ipv6Network, u16)>,
}

impl Rule {
    fn new(family: AddressFamily, priority: u32, table: u8) -> Self {
        Self { family, priority, table, marked: false, own: false, web: None }
    }
}

/// All rules of this host; `egress` when its machines' packets leave through an entry.
fn wanted(config: &NetdConfig, egress: bool) -> Vec<Rule> {
    let mut rules = web_rules(config, egress);
    for family in [AddressFamily::Inet6, AddressFamily::Inet] {
        rules.push(Rule::new(family, MACHINES_RULE, MACHINES_TABLE));
        if egress {
            rules.push(Rule { marked: true, ..Rule::new(family, EGRESS_RULE, EGRESS_TABLE) });
        }
    }
    rules
}

fn web_rules(config: &NetdConfig, egress: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    for region in regions(config) {
        for port in &config.web_ports {
            let rule = match config.role {
                Role::Entry | Role::Both => Rule::new(AddressFamily::Inet6, WEB_RULE, WEB_TABLE),
                Role::Host if egress => Rule {
                    marked: true,
                    ..Rule::new(AddressFamily::Inet6, WEB_FROM_MACHINES_RULE, EGRESS_TABLE)
                },
                Role::Host => continue,
            };
            rules.push(Rule { web: Some((region, *port)), ..rule });
        }
    }
    if rules.iter().any(|rule| rule.table == WEB_TABLE) {
        rules.push(Rule { own: true, ..Rule::new(AddressFamily::Inet6, OWN_RULE, MACHINES_TABLE) });
    }
    // The last one is the first to be there: no packet of this box's own is taken for a stranger's.
    rules.reverse();
    rules
}

fn regions(config: &NetdConfig) -> impl Iterator<Item = Ipv6Network> {
    config.region_prefixes.iter().filter_map(|prefix| match prefix {
        IpNetwork::V6(prefix) => Some(*prefix),
        IpNetwork::V4(_) => None,
    })
}

impl Kernel {
    /// Makes this host's rules what they should be: what is right already stays, what is no longer wanted goes.
    pub async fn put_rules(&self, config: &NetdConfig, egress: bool) -> Result<(), Error> {
        let wanted = wanted(config, egress);
        let found = self.own_rules().await?;
        let stale =
            found.iter().filter(|(_, rule)| !wanted.contains(rule)).map(|(message, _)| message.clone());
        let takes = wanted.iter().any(|rule| rule.table == WEB_TABLE);
        let regions: Vec<Ipv6Network> = regions(config).filter(|_| takes).collect();
        self.put_local_routes(&regions).await?;
        for rule in wanted.iter().filter(|rule| !found.iter().any(|(_, there)| there == *rule)) {
            present_is_fine(self.add_rule(rule).await)?;
        }
        self.drop_rules(stale).await
    }

    /// Takes all of them away; answers every failure.
    pub async fn delete_rules(&self) -> Result<(), Error> {
        let found = self.own_rules().await?;
        let rules = self.drop_rules(found.into_iter().map(|(message, _)| message)).await;
        let routes = self.put_local_routes(&[]).await;
        all_or_several([rules, routes].into_iter().filter_map(Result::err).collect())
    }

    async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let request = self.handle.rule().add();
        let request = request.table_id(rule.table.into()).priority(rule.priority).action(RuleAction::ToTable);
        let request = if rule.marked { request.fw_mark(MACHINE_MARK) } else { request };
        let request = if rule.own { request.input_interface("lo".to_owned()) } else { request };
        let added = match (rule.family, rule.web) {
            (AddressFamily::Inet, _) => request.v4().execute().await,
            (_, None) => request.v6().execute().await,
            (_, Some((region, port))) => {
                let mut request = request.v6().destination_prefix(region.network(), region.prefix());
                let range = RulePortRange { start: port, end: port };
                request.message_mut().attributes.push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
                request.message_mut().attributes.push(RuleAttribute::DestinationPortRange(range));
                request.execute().await
            }
        };
        added.map_err(wrap("add", || format!("routing rule {} to table {}", rule.priority, rule.table)))
    }

    /// The rules that lead to a table of netd's.
    async fn own_rules(&self) -> Result<Vec<(RuleMessage, Rule)>, Error> {
        let mut all = Vec::new();
        for version in [IpVersion::V6, IpVersion::V4] {
            let found: Result<Vec<RuleMessage>, _> =
                self.handle.rule().get(version).execute().try_collect().await;
            let found = found.map_err(wrap("list", || "the routing rules".into()))?;
            all.extend(found.into_iter().filter_map(|message| read(&message).map(|rule| (message, rule))));
        }
        Ok(all)
    }

    async fn drop_rules(&self, rules: impl Iterator<Item = RuleMessage>) -> Result<(), Error> {
        let mut failures = Vec::new();
        for rule in rules {
            let table = rule.header.table;
            let deleted = self.handle.rule().del(rule).execute().await;
            let deleted = deleted.map_err(wrap("delete", || format!("routing rule to table {table}")));
            failures.extend(absent_is_fine(deleted).err());
        }
        all_or_several(failures)
    }

    /// `local REGION dev lo` in the web table, for these and no others: whatever is looked up there is this box's own.
    async fn put_local_routes(&self, regions: &[Ipv6Network]) -> Result<(), Error> {
        let listed = self.handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
        let found: Vec<RouteMessage> =
            listed.try_collect().await.map_err(wrap("list", || "the routes".into()))?;
        let found: Vec<_> =
            found.into_iter().filter_map(|route| local_region(&route).map(|to| (to, route))).collect();
        for region in regions.iter().filter(|region| !found.iter().any(|(there, _)| there == *region)) {
            let put = self.handle.route().add(local_route(*region)).execute().await;
            present_is_fine(put.map_err(wrap("add", || format!("the local route of {region}"))))?;
        }
        for (region, route) in found.into_iter().filter(|(there, _)| !regions.contains(there)) {
            let dropped = self.handle.route().del(route).execute().await;
            absent_is_fine(dropped.map_err(wrap("delete", || format!("the local route of {region}"))))?;
        }
        Ok(())
    }
}

fn local_route(region: Ipv6Network) -> RouteMessage {
    let to = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(region.network(), region.prefix());
    let mut message = to.table_id(WEB_TABLE.into()).build();
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.header.protocol = PROTOCOL;
    message.attributes.push(RouteAttribute::Oif(LOOPBACK));
    message
}

/// What a route of the web table is for.
fn local_region(route: &RouteMessage) -> Option<Ipv6Network> {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
        _ => None,
    });
    let ours = route.header.table == WEB_TABLE && route.header.protocol == PROTOCOL;
    to.filter(|_| ours).and_then(|to| Ipv6Network::new(to, route.header.destination_prefix_length).ok())
}

/// A rule of ours, as the kernel shows it.
fn read(message: &RuleMessage) -> Option<Rule> {
    let table =
        [MACHINES_TABLE, EGRESS_TABLE, WEB_TABLE].into_iter().find(|table| message.header.table == *table)?;
    let mut rule = Rule::new(message.header.family, 0, table);
    let (mut to, mut port) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.marked = *mark == MACHINE_MARK,
            RuleAttribute::Iifname(name) => rule.own = name == "lo",
            RuleAttribute::Destination(IpAddr::V6(address)) => {
                to = Ipv6Network::new(*address, message.header.dst_len).ok();
            }
            RuleAttribute::DestinationPortRange(range) => port = Some(range.start),
            _ => {}
        }
    }
    rule.web = to.zip(port);
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(role: &str, web: &[u16]) -> NetdConfig {
        let text = serde_json::json!({
            "state_dir": "/", "socket": "/", "host_id": "a", "role": role, "mesh_addr": "fd6d::1", "mesh_prefix": "fd6d::/64",
            "region_prefixes": ["2001:db8::/48", "198.51.100.0/24"], "web_ports": web,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn an_entry_takes_web_ports_itself_but_not_from_itself() {
        let rules = wanted(&config("entry", &[80, 443]), false);
        let to_web: Vec<_> = rules.iter().filter(|rule| rule.table == WEB_TABLE).collect();
        assert_eq!(to_web.len(), 2, "one a port; machines have no public IPv4 address");
        let own = rules.iter().find(|rule| rule.own).unwrap();
        assert!(to_web.iter().all(|rule| own.priority < rule.priority && rule.priority < MACHINES_RULE));
        assert_eq!(rules.first(), Some(own), "it is there before the ones that would take its packets");
    }

    #[test]
    fn a_host_sends_its_machines_to_the_entry_only_when_they_leave_by_one() {
        let web = |egress| {
            wanted(&config("host", &[443]), egress)
                .into_iter()
                .filter(|rule| rule.web.is_some())
                .collect::<Vec<_>>()
        };
        assert!(web(false).is_empty());
        assert!(matches!(&web(true)[..], [rule] if rule.marked && rule.table == EGRESS_TABLE));
    }

    #[test]
    fn without_web_ports_nothing_is_taken() {
        assert!(wanted(&config("both", &[]), true).iter().all(|rule| rule.web.is_none() && !rule.own));
    }
}
