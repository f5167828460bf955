//! Who there is and what there is to enter: a pure projection of the replica, for look-ups by key, name and address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;

use mashines_fleet::id::AccountId;
use mashines_fleet::record::{Desired, Machine, MachineState};
use mashines_fleet::view::View;
use russh::keys::PublicKey;

/// Whoever proved to own a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Accounts that list the key; never empty.
    pub accounts: BTreeSet<AccountId>,
    /// The account that the lobby works for.
    pub home: AccountId,
}

/// Look-up tables of one view.
#[derive(Debug, Default)]
pub struct Directory {
    domain: String,
    keys: HashMap<Vec<u8>, BTreeSet<AccountId>>,
    slugs: HashMap<String, Arc<Machine>>,
    addresses: HashMap<Ipv6Addr, Arc<Machine>>,
}

impl Directory {
    /// The tables of `view`. Lines that are no keys enter nothing.
    pub fn project(view: &View) -> Self {
        let mut directory = Self::default();
        if let Some(config) = &view.config {
            directory.domain = config.domain.trim_end_matches('.').to_ascii_lowercase();
        }
        for account in view.accounts.values() {
            for blob in account.ssh_keys.iter().filter_map(|line| blob_of_line(line)) {
                directory.keys.entry(blob).or_default().insert(account.id.clone());
            }
        }
        for machine in view.machines.values().filter(|machine| is_alive(machine)) {
            directory.slugs.insert(machine.slug.to_string(), Arc::clone(machine));
            directory.addresses.insert(machine.net.ipv6, Arc::clone(machine));
        }
        directory
    }

    /// The apex: `mashine.dev`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whose key it is.
    pub fn person(&self, key: &PublicKey) -> Option<Person> {
        let accounts = self.keys.get(&key.to_bytes().ok()?)?;
        Some(Person { accounts: accounts.clone(), home: accounts.first()?.clone() })
    }

    /// The machine of that name: `web` or `web.mashine.dev`, in any letter case.
    pub fn named(&self, name: &str) -> Option<&Arc<Machine>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let below = name.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.'));
        self.slugs.get(below.unwrap_or(&name))
    }

    /// The machine at `host`: a name as in [`Directory::named`], or its address.
    pub fn at(&self, host: &str) -> Option<&Arc<Machine>> {
        match host.trim_matches(['[', ']']).parse::<Ipv6Addr>() {
            Ok(address) => self.addresses.get(&address),
            Err(_) => self.named(host),
        }
    }
}

/// Whether both views give the same tables, found by comparing pointers: hosts report every few seconds, and nothing here is about them.
pub fn is_same(one: &View, two: &View) -> bool {
    fn same<K, V>(one: &BTreeMap<K, Arc<V>>, two: &BTreeMap<K, Arc<V>>) -> bool {
        one.len() == two.len() && one.values().zip(two.values()).all(|(a, b)| Arc::ptr_eq(a, b))
    }
    one.config == two.config && same(&one.accounts, &two.accounts) && same(&one.machines, &two.machines)
}

fn blob_of_line(line: &str) -> Option<Vec<u8>> {
    PublicKey::from_openssh(line.trim()).ok()?.to_bytes().ok()
}

/// Whether a machine is there to be named: nobody wants it gone, and it is not.
pub fn is_alive(machine: &Machine) -> bool {
    let wanted = match machine.desired {
        Desired::Started | Desired::Stopped => true,
        Desired::Destroyed => false,
    };
    wanted && !matches!(machine.state, MachineState::Destroying | MachineState::Destroyed)
}

/// Why a machine cannot be entered now, with what to do about it; `None` when it can, or will in a moment.
pub fn not_running(machine: &Machine) -> Option<String> {
    let slug = &machine.slug;
    let because = machine.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match machine.state {
        MachineState::Created | MachineState::Starting | MachineState::Started => None,
        MachineState::Stopping => {
            Some(format!("machine {slug} is stopping{because}; start it again with: mashines start {slug}"))
        }
        MachineState::Stopped => {
            Some(format!("machine {slug} is stopped{because}; start it with: mashines start {slug}"))
        }
        MachineState::Failed => Some(format!("machine {slug} failed{because}; see: mashines show {slug}")),
        MachineState::Destroying | MachineState::Destroyed => Some(format!("machine {slug} was removed")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mashines_fleet::view::{Batch, Change};
    use serde_json::json;

    use super::*;

    pub const ANN: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR";
    pub const BOB: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAyKHjkRLCcYLYTFZ8xMHUoIaaNPQqvmNhZYiUOtvP/b";

    /// A started machine; its id and address follow from its name.
    pub fn machine(slug: &str, account: &str) -> Machine {
        let number = slug.bytes().fold(0u64, |n, byte| n * 31 + u64::from(byte)) & 0xffff;
        serde_json::from_value(json!({
            "id": format!("{number:014x}"), "slug": slug, "account": account, "app": "web",
            "instance_id": "01J00000000000000000000000",
            "config": {"image": "container-os", "guest": {"cpus": 1, "memory_mb": 256}},
            "image_digest": "sha256:00", "desired": "started", "state": "started", "place": null,
            "net": {"ipv6": format!("2001:db8::{number:x}"), "private6": "fd00::9",
                    "mac": "02:00:00:00:00:01", "ssh_port": {"entry": "entry1", "port": 2200 + number % 100}},
            "created_at": 0, "updated_at": 0,
        }))
        .unwrap()
    }

    pub fn directory(machines: &[Machine]) -> Directory {
        Directory::project(&view(machines))
    }

    /// ann and bob with a key each, eve with ann's and no other.
    pub fn view(machines: &[Machine]) -> View {
        let put = |key: String, value| Change { key, value: Some(value) };
        let account = |id: &str, keys: &[&str]| {
            put(format!("accounts/{id}"), json!({"id": id, "ssh_keys": keys, "private_prefix": "fd00::"}))
        };
        let config = json!({"domain": "mashine.dev", "prefix": "2001:db8::/48", "name_servers": [],
                            "ssh_ports": [2200, 2299], "ssh_ca": null});
        let mut changes = vec![
            put("config".into(), config),
            account("ann", &[ANN, "no key at all"]),
            account("bob", &[BOB]),
            account("team", &[BOB, ANN]),
        ];
        changes.extend(
            machines.iter().map(|m| put(format!("machines/{}", m.id), serde_json::to_value(m).unwrap())),
        );
        let mut view = View::default();
        assert_eq!(view.apply(&Batch { revision: 1, changes }), []);
        view
    }

    pub fn person(directory: &Directory, key: &str) -> Person {
        directory.person(&PublicKey::from_openssh(key).unwrap()).unwrap()
    }

    #[test]
    fn a_key_belongs_to_each_account_that_lists_it() {
        let directory = directory(&[]);
        let ann = person(&directory, ANN);
        assert_eq!(ann.accounts.iter().map(AccountId::as_str).collect::<Vec<_>>(), ["ann", "team"]);
        assert_eq!(ann.home.as_str(), "ann");
        let stranger = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhlbGxvIHdvcmxkIGhlbGxvIHdvcmxkIGhlbGxvISEh";
        assert_eq!(directory.person(&PublicKey::from_openssh(stranger).unwrap()), None);
    }

    #[test]
    fn machines_are_found_by_name_full_name_and_address() {
        let web = machine("web", "ann");
        let address = web.net.ipv6.to_string();
        let gone = Machine { desired: Desired::Destroyed, ..machine("gone", "ann") };
        let directory = directory(&[web, gone]);
        for host in ["web", "WEB", "web.mashine.dev", "web.mashine.dev.", &address, &format!("[{address}]")] {
            assert_eq!(directory.at(host).map(|m| m.slug.as_str()), Some("web"), "{host}");
        }
        for host in
            ["", "mashine.dev", ".mashine.dev", "webmashine.dev", "x.web.mashine.dev", "gone", "::1", "web."]
        {
            let found = directory.at(host).map(|m| m.slug.as_str());
            assert_eq!(found, (host == "web.").then_some("web"), "{host}");
        }
    }
}
