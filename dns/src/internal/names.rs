//! What there is to say about `.internal` names, to whom: a pure projection of the replica.
//!
//! | name | type | says |
//! | --- | --- | --- |
//! | `<id>.vm.<app>.internal`, `<name>.vm.<app>.internal` | AAAA | the machine's private address, asleep or not |
//! | `<app>.internal` | AAAA | those of the app's machines that are started |
//! | `<region>.<app>.internal` | AAAA | of these, those in the region |
//! | `vms.<app>.internal` | TXT | `id region,…` of the started ones |
//! | `regions.<app>.internal` | TXT | where they are |
//! | `_apps.internal` | TXT | the account's apps |
//! | `…ip6.arpa` of a private address | PTR | `<id>.vm.<app>.internal` |
//!
//! Invariant: everything that is said to an account is about its own machines. Whose a question is follows from its source address, which
//! netd lets nobody forge: an address of the account's private prefix, or a machine's public one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use mashines_fleet::id::{AccountId, HostId};
use mashines_fleet::record::{Desired, Machine, MachineState};
use mashines_fleet::view::View;

use crate::kind;
use crate::name::{Name, relative};

/// How long an answer may be kept, seconds: machines start and stop.
pub const TTL: u32 = 5;

/// The most addresses in one answer: more would not be tried by anybody.
const MOST: usize = 64;

/// Who there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    /// By the first 48 bits.
    prefixes: HashMap<u64, AccountId>,
    /// By machines' public addresses.
    public: HashMap<Ipv6Addr, Arc<Machine>>,
    /// By machines' private ones.
    private: HashMap<Ipv6Addr, Arc<Machine>>,
    /// Each by id; no app is empty.
    apps: BTreeMap<(AccountId, String), Vec<Arc<Machine>>>,
    regions: BTreeMap<HostId, String>,
}

/// What is said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The data of records of the asked type.
    Records(Vec<Vec<u8>>),
    /// The name exists, without such records.
    Nothing,
    /// There is no such name.
    NoName,
    /// It is another's to say: forwarded.
    NotOurs,
}

impl Directory {
    /// Goes from that of the view `before` to that of `view`. Accounts and hosts are few beside machines: those are taken anew.
    pub fn follow(&mut self, before: &View, view: &View) {
        let accounts = view.accounts.values();
        self.prefixes =
            accounts.map(|account| (prefix48(account.private_prefix), account.id.clone())).collect();
        self.regions = view.hosts.values().map(|host| (host.id.clone(), host.region.clone())).collect();
        let there = |machine: &&Arc<Machine>| {
            machine.desired != Desired::Destroyed && machine.state != MachineState::Destroyed
        };
        let changed = view.changed_machines(before);
        // What goes, goes first: an address may have a new owner in the same change.
        changed.iter().filter_map(|(old, _)| old.filter(there)).for_each(|old| self.remove(old));
        changed.iter().filter_map(|(_, new)| new.filter(there)).for_each(|new| self.insert(new));
    }

    fn insert(&mut self, machine: &Arc<Machine>) {
        self.public.insert(machine.net.ipv6, Arc::clone(machine));
        self.private.insert(machine.net.private6, Arc::clone(machine));
        let app = self.apps.entry((machine.account.clone(), machine.app.to_string())).or_default();
        match app.binary_search_by(|other| other.id.cmp(&machine.id)) {
            Ok(at) => {
                if let Some(place) = app.get_mut(at) {
                    *place = Arc::clone(machine);
                }
            }
            Err(at) => app.insert(at, Arc::clone(machine)),
        }
    }

    fn remove(&mut self, machine: &Machine) {
        let is_it = |other: &Arc<Machine>| other.id == machine.id;
        if self.public.get(&machine.net.ipv6).is_some_and(is_it) {
            self.public.remove(&machine.net.ipv6);
        }
        if self.private.get(&machine.net.private6).is_some_and(is_it) {
            self.private.remove(&machine.net.private6);
        }
        let key = (machine.account.clone(), machine.app.to_string());
        let Some(app) = self.apps.get_mut(&key) else { return };
        if let Ok(at) = app.binary_search_by(|other| other.id.cmp(&machine.id)) {
            app.remove(at);
        }
        if app.is_empty() {
            self.apps.remove(&key);
        }
    }

    /// Whose machine asks from there; none: nobody's.
    pub fn asker(&self, source: IpAddr) -> Option<&AccountId> {
        let IpAddr::V6(source) = source.to_canonical() else { return None };
        let public = || self.public.get(&source).map(|machine| &machine.account);
        self.prefixes.get(&prefix48(source)).or_else(public)
    }

    /// What a question of that account is answered.
    pub fn say(&self, account: &AccountId, name: &Name, wanted: u16) -> Said {
        let Ok(internal) = "internal".parse::<Name>() else { return Said::NotOurs };
        if name.is_within(&internal) {
            let labels: Vec<String> = name
                .labels()
                .take(name.label_count() - 1)
                .map(|label| String::from_utf8_lossy(label).into_owned())
                .collect();
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            return self.forward(account, &labels, wanted);
        }
        match private_address(name) {
            Some(Reverse::Whole(address)) => self.reverse(account, address, wanted),
            // RFC 6303 §4.4: nobody outside knows of private addresses.
            Some(Reverse::Part) => Said::Nothing,
            None => Said::NotOurs,
        }
    }

    fn forward(&self, account: &AccountId, labels: &[&str], wanted: u16) -> Said {
        let said = |kind: u16, data: Vec<Vec<u8>>| match (wanted == kind, data.is_empty()) {
            (true, false) => Said::Records(data),
            (true, true) | (false, _) => Said::Nothing,
        };
        match labels {
            [] => Said::Nothing,
            ["_apps"] => said(kind::TXT, text(self.apps_of(account))),
            [app] => match self.machines(account, app) {
                Some(machines) => said(kind::AAAA, addresses(started(machines))),
                None => Said::NoName,
            },
            ["vms", app] => match self.machines(account, app) {
                Some(machines) => {
                    let all = started(machines).map(|m| format!("{} {}", m.id, self.region(m)));
                    said(kind::TXT, text(all))
                }
                None => Said::NoName,
            },
            ["regions", app] => match self.machines(account, app) {
                Some(machines) => {
                    let all: BTreeSet<String> =
                        started(machines).map(|m| self.region(m).to_owned()).collect();
                    said(kind::TXT, text(all.into_iter()))
                }
                None => Said::NoName,
            },
            ["vm", app] => {
                if self.machines(account, app).is_some() {
                    Said::Nothing
                } else {
                    Said::NoName
                }
            }
            [region, app] => {
                let machines = self.machines(account, app).unwrap_or_default();
                let there: Vec<_> = started(machines).filter(|m| self.region(m) == *region).collect();
                match there.is_empty() {
                    true => Said::NoName,
                    false => said(kind::AAAA, addresses(there.into_iter())),
                }
            }
            [machine, "vm", app] => {
                let machines = self.machines(account, app).unwrap_or_default();
                let by_id = machines.iter().find(|m| m.id.as_str() == *machine);
                match by_id.or_else(|| machines.iter().find(|m| m.slug.as_str() == *machine)) {
                    Some(found) => said(kind::AAAA, addresses(std::iter::once(found))),
                    None => Said::NoName,
                }
            }
            _ => Said::NoName,
        }
    }

    fn reverse(&self, account: &AccountId, address: Ipv6Addr, wanted: u16) -> Said {
        let Some(machine) = self.private.get(&address).filter(|machine| machine.account == *account) else {
            return Said::NoName;
        };
        let target = relative(&format!("{}.vm.{}.internal", machine.id, machine.app));
        match target {
            Ok(target) if wanted == kind::PTR => Said::Records(vec![[target.as_slice(), &[0]].concat()]),
            _ => Said::Nothing,
        }
    }

    fn machines(&self, account: &AccountId, app: &str) -> Option<&[Arc<Machine>]> {
        self.apps.get(&(account.clone(), app.to_owned())).map(Vec::as_slice)
    }

    fn apps_of(&self, account: &AccountId) -> impl Iterator<Item = String> {
        let from = (account.clone(), String::new());
        self.apps
            .range(from..)
            .map(|((of, app), _)| (of, app))
            .take_while(move |(of, _)| *of == account)
            .map(|(_, app)| app.clone())
    }

    fn region(&self, machine: &Machine) -> &str {
        let host = machine.place.as_ref().map(|place| &place.host);
        host.and_then(|host| self.regions.get(host)).map(String::as_str).unwrap_or_default()
    }
}

fn started(machines: &[Arc<Machine>]) -> impl Iterator<Item = &Arc<Machine>> {
    machines.iter().filter(|machine| machine.state == MachineState::Started)
}

fn addresses<'a>(machines: impl Iterator<Item = &'a Arc<Machine>>) -> Vec<Vec<u8>> {
    machines.take(MOST).map(|machine| machine.net.private6.octets().to_vec()).collect()
}

/// One TXT record: words with commas between them, in strings of at most 255 bytes.
fn text(words: impl Iterator<Item = String>) -> Vec<Vec<u8>> {
    let all = words.collect::<Vec<_>>().join(",");
    if all.is_empty() {
        return Vec::new();
    }
    // What fits a message: an account with more asks the API.
    let bytes = all.as_bytes().get(..48_000).unwrap_or(all.as_bytes());
    let strings = bytes.chunks(255).flat_map(|chunk| {
        let length = u8::try_from(chunk.len()).unwrap_or(u8::MAX);
        std::iter::once(length).chain(chunk.iter().copied())
    });
    vec![strings.collect()]
}

fn prefix48(address: Ipv6Addr) -> u64 {
    u64::try_from(u128::from(address) >> 80).unwrap_or_default()
}

enum Reverse {
    Whole(Ipv6Addr),
    Part,
}

/// What of `fc00::/7` a reverse name spells.
fn private_address(name: &Name) -> Option<Reverse> {
    let prefix = crate::reverse::NibblePrefix::parse(name.as_wire())?;
    let (first, last) = prefix.range();
    let private = |ip: Ipv6Addr| ip.octets()[0] & 0xfe == 0xfc;
    (private(first) && private(last)).then(|| prefix.address().map_or(Reverse::Part, Reverse::Whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mashines_fleet::record::{Account, Place};
    use mashines_fleet::view::{Batch, Change};
    use proptest::prelude::*;

    fn machine(id: &str, account: &str, app: &str, number: u16, state: MachineState) -> Machine {
        let net = serde_json::json!({"ipv6": format!("2001:db8::{number}"), "private6": format!("fd00:{account_number}::{number}", account_number = if account == "ann" { 1 } else { 2 }), "mac": "02:00:00:00:00:01", "ssh_port": null});
        serde_json::from_value(serde_json::json!({
            "id": id, "slug": format!("slug{number}"), "account": account, "app": app, "instance_id": "", "image_digest": "",
            "config": {"image": "x", "guest": {"cpus": 1, "memory_mb": 128}}, "desired": "started", "state": state,
            "place": Place { host: "hosta".parse().unwrap(), epoch: mashines_fleet::id::Epoch(1) },
            "net": net, "created_at": 0, "updated_at": 0
        }))
        .unwrap()
    }

    fn view() -> View {
        let mut view = View::default();
        for (id, prefix) in [("ann", "fd00:1::"), ("bob", "fd00:2::")] {
            let account: Account = serde_json::from_value(
                serde_json::json!({"id": id, "ssh_keys": [], "private_prefix": prefix}),
            )
            .unwrap();
            view.accounts.insert(account.id.clone(), Arc::new(account));
        }
        let all = [
            machine("0000000000000a", "ann", "web", 1, MachineState::Started),
            machine("0000000000000b", "ann", "web", 2, MachineState::Stopped),
            machine("0000000000000c", "ann", "db", 3, MachineState::Started),
            machine("0000000000000d", "bob", "web", 4, MachineState::Started),
        ];
        for machine in all {
            view.machines.insert(machine.id.clone(), Arc::new(machine));
        }
        let host: mashines_fleet::record::Host = serde_json::from_value(serde_json::json!({
            "id": "hosta", "roles": ["host"], "region": "fra", "api": "127.0.0.1:1", "underlay": "127.0.0.1", "wireguard_port": 0,
            "wireguard_key": null, "mesh": "::1", "capacity": {"vcpus": 1, "memory_mib": 1, "disk_mib": 1}, "images": [], "seen_at": 0
        }))
        .unwrap();
        view.hosts.insert(host.id.clone(), Arc::new(host));
        view
    }

    fn of(view: &View) -> Directory {
        let mut directory = Directory::default();
        directory.follow(&View::default(), view);
        directory
    }

    fn directory() -> Directory {
        of(&view())
    }

    fn said(account: &str, name: &str, kind: u16) -> Said {
        directory().say(&account.parse().unwrap(), &name.parse().unwrap(), kind)
    }

    fn v6(text: &[&str]) -> Said {
        Said::Records(text.iter().map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets().to_vec()).collect())
    }

    fn txt(text: &str) -> Said {
        Said::Records(vec![[&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()])
    }

    #[test]
    fn who_asks_is_known_by_where_from() {
        let directory = directory();
        let asker = |ip: &str| directory.asker(ip.parse().unwrap()).map(|id| id.to_string());
        assert_eq!(asker("fd00:1::77").as_deref(), Some("ann"), "whatever it is in the prefix");
        assert_eq!(asker("2001:db8::4").as_deref(), Some("bob"));
        for stranger in ["fd00:3::1", "2001:db8::99", "192.0.2.1", "::ffff:192.0.2.1"] {
            assert_eq!(asker(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn each_account_hears_of_its_own_machines_only() {
        assert_eq!(said("ann", "0000000000000a.vm.web.internal", kind::AAAA), v6(&["fd00:1::1"]));
        assert_eq!(said("ann", "SLUG1.VM.WEB.INTERNAL", kind::AAAA), v6(&["fd00:1::1"]));
        assert_eq!(said("bob", "0000000000000a.vm.web.internal", kind::AAAA), Said::NoName);
        assert_eq!(said("bob", "web.internal", kind::AAAA), v6(&["fd00:2::4"]));
        assert_eq!(said("bob", "db.internal", kind::AAAA), Said::NoName);
        assert_eq!(said("ann", "_apps.internal", kind::TXT), txt("db,web"));
        let reverse = format!("{}ip6.arpa", "1.".to_owned() + &"0.".repeat(23) + "1.0.0.0.0.0.d.f.");
        assert_eq!(
            said("ann", &reverse, kind::PTR),
            Said::Records(vec![b"\x0e0000000000000a\x02vm\x03web\x08internal\x00".to_vec()])
        );
        assert_eq!(said("bob", &reverse, kind::PTR), Said::NoName);
    }

    #[test]
    fn a_stopped_machine_has_its_name_and_is_no_answer_for_its_app() {
        assert_eq!(said("ann", "0000000000000b.vm.web.internal", kind::AAAA), v6(&["fd00:1::2"]));
        assert_eq!(said("ann", "web.internal", kind::AAAA), v6(&["fd00:1::1"]));
        assert_eq!(said("ann", "fra.web.internal", kind::AAAA), v6(&["fd00:1::1"]));
        assert_eq!(said("ann", "ams.web.internal", kind::AAAA), Said::NoName);
        assert_eq!(said("ann", "vms.web.internal", kind::TXT), txt("0000000000000a fra"));
        assert_eq!(said("ann", "regions.web.internal", kind::TXT), txt("fra"));
    }

    #[test]
    fn what_exists_without_data_is_not_denied_and_the_rest_is_forwarded() {
        for name in ["internal", "vm.web.internal", "web.internal"] {
            assert_eq!(said("ann", name, kind::A), Said::Nothing, "{name}");
        }
        for name in ["nope.internal", "x.vm.web.internal", "a.b.c.d.internal", "vm.nope.internal"] {
            assert_eq!(said("ann", name, kind::AAAA), Said::NoName, "{name}");
        }
        for name in ["example.org", "internal.example.org", "8.b.d.0.1.0.0.2.ip6.arpa", "."] {
            assert_eq!(said("ann", name, kind::AAAA), Said::NotOurs, "{name}");
        }
    }

    proptest! {
        #[test]
        fn step_by_step_gives_the_same_directory_as_all_at_once(
            changes in proptest::collection::vec((0u16..6, 0u16..6, 0usize..4, any::<bool>(), any::<bool>()), 1..40)
        ) {
            let mut shown = view();
            let (mut now, mut directory) = (shown.clone(), of(&shown));
            for (at, (id, number, app, deleted, is_looked_at)) in changes.into_iter().enumerate() {
                let (account, app) = [("ann", "web"), ("ann", "db"), ("bob", "web"), ("bob", "x")][app];
                let state = [MachineState::Started, MachineState::Stopped, MachineState::Destroyed][usize::from(number) % 3];
                let machine = machine(&format!("{id:014x}"), account, app, number + 10, state);
                // Two living machines never have the same address.
                let taken = now.machines.values().any(|other| {
                    other.id != machine.id && other.net.ipv6 == machine.net.ipv6 && other.state != MachineState::Destroyed
                });
                if taken {
                    continue;
                }
                let value = (!deleted).then(|| serde_json::to_value(&machine).unwrap());
                let change = Change { key: format!("machines/{id:014x}"), value };
                now.apply(&Batch { revision: u64::try_from(at).unwrap() + 1, changes: vec![change] });
                if is_looked_at {
                    directory.follow(&shown, &now);
                    shown = now.clone();
                    prop_assert_eq!(&directory, &of(&now));
                }
            }
        }
    }
}
