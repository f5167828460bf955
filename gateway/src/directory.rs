//! Who there is and what there is to enter: a pure projection of the replica, for look-ups by key, name and address.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use mashines_fleet::access::{self, Standing};
use mashines_fleet::id::AccountId;
use mashines_fleet::record::{Account, Desired, Machine, MachineState, SignUp, TrustedCa, UnixMs};
use mashines_fleet::view::View;
use russh::keys::{Certificate, HashAlg, PublicKey};

use crate::certificate::{self, Holder, Terms};

/// What somebody proved to hold.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A key that accounts may list.
    Key(Arc<PublicKey>),
    /// A key with a certificate, whose CA accounts may list.
    Certificate(Arc<Certificate>),
}

/// For the log: the key's fingerprint, or the certificate's identity, number, and the fingerprint of its CA.
impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key) => key.fingerprint(HashAlg::Sha256).fmt(f),
            Self::Certificate(certificate) => {
                let ca = certificate.signature_key().fingerprint(HashAlg::Sha256);
                write!(f, "{:?} number {} of CA {ca}", certificate.key_id(), certificate.serial())
            }
        }
    }
}

/// Whoever proved something, as the fleet knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The account that the lobby works for; none for a certificate that opens single machines only.
    pub home: Option<AccountId>,
    /// As whom they came, and on which terms.
    pub holder: Holder,
}

/// Look-up tables of one view.
#[derive(Debug, Default)]
pub struct Directory {
    domain: String,
    sign_up: SignUp,
    accounts: BTreeMap<AccountId, Arc<Account>>,
    keys: HashMap<Vec<u8>, BTreeSet<AccountId>>,
    cas: HashMap<Vec<u8>, Vec<(AccountId, TrustedCa)>>,
    slugs: HashMap<String, Arc<Machine>>,
    addresses: HashMap<Ipv6Addr, Arc<Machine>>,
    /// Machines by the entry's address that names them, together with who owns them.
    at_entry: HashMap<(Ipv4Addr, AccountId), Arc<Machine>>,
    /// Those addresses.
    entry_addresses: HashSet<Ipv4Addr>,
    /// Machines that are shared with an account.
    shared: HashMap<AccountId, Vec<Arc<Machine>>>,
    /// Which accounts an account acts for.
    member_of: HashMap<AccountId, Vec<AccountId>>,
}

impl Directory {
    /// The tables of `view`. Lines that are no keys enter nothing.
    pub fn project(view: &View) -> Self {
        let mut directory = Self { accounts: view.accounts.clone(), ..Self::default() };
        if let Some(config) = &view.config {
            directory.domain = config.domain.trim_end_matches('.').to_ascii_lowercase();
            directory.sign_up = config.sign_up;
        }
        for account in view.accounts.values() {
            for blob in account.ssh_keys.iter().filter_map(|line| blob_of_line(line)) {
                directory.keys.entry(blob).or_default().insert(account.id.clone());
            }
            for ca in &account.ssh_cas {
                let Some(blob) = blob_of_line(&ca.public_key) else { continue };
                directory.cas.entry(blob).or_default().push((account.id.clone(), ca.clone()));
            }
            for member in account.members.keys() {
                directory.member_of.entry(member.clone()).or_default().push(account.id.clone());
            }
        }
        for machine in view.machines.values().filter(|machine| is_alive(machine)) {
            directory.slugs.insert(machine.slug.to_string(), Arc::clone(machine));
            directory.addresses.insert(machine.net.ipv6, Arc::clone(machine));
            if let Some(address) = machine.net.entry_ipv4 {
                directory.at_entry.insert((address, machine.account.clone()), Arc::clone(machine));
                directory.entry_addresses.insert(address);
            }
            for share in &machine.shares {
                directory.shared.entry(share.account.clone()).or_default().push(Arc::clone(machine));
            }
        }
        directory
    }

    /// The apex: `mashine.dev`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What becomes of strangers.
    pub fn sign_up(&self) -> SignUp {
        self.sign_up
    }

    /// Whether some account lists the key.
    pub fn is_known(&self, key: &PublicKey) -> bool {
        key.to_bytes().is_ok_and(|blob| self.keys.contains_key(&blob))
    }

    /// Whether anybody may come with a certificate at all.
    pub fn trusts_cas(&self) -> bool {
        !self.cas.is_empty()
    }

    /// Who it is that proved to hold that, at `from`.
    ///
    /// # Errors
    /// Why nobody, in words for them.
    pub fn person(&self, proof: &Proof, from: IpAddr, now: SystemTime) -> Result<Person, String> {
        match proof {
            Proof::Key(key) => {
                let blob = key.to_bytes().map_err(|error| format!("the key cannot be read: {error}"))?;
                let accounts =
                    self.keys.get(&blob).ok_or("the key you came with has been taken out of its account")?;
                let whole = accounts.iter().fold(access::Person::default(), |person, account| {
                    person.and(account.clone(), Standing::Owner)
                });
                let holder = Holder { whole, narrow: Vec::new(), terms: Terms::FREE };
                Ok(Person { home: accounts.first().cloned(), holder })
            }
            Proof::Certificate(certificate) => {
                let ca = PublicKey::from(certificate.signature_key().clone()).to_bytes();
                let trust = ca.ok().and_then(|blob| self.cas.get(&blob)).map_or(&[][..], Vec::as_slice);
                let holder = certificate::judge(certificate, trust, from, now)
                    .map_err(|why| format!("your certificate lets you in nowhere: {why}"))?;
                let home = holder.whole.accounts().next().map(|(account, _)| account.clone());
                Ok(Person { home, holder })
            }
        }
    }

    /// What a person is at a machine; none for a stranger.
    pub fn standing(&self, person: &Person, machine: &Machine, now: UnixMs) -> Option<Standing> {
        let narrow = person.holder.narrow.iter().filter_map(|(account, standing, machines)| {
            let named = *account == machine.account && machines.contains(machine.slug.as_str());
            named.then_some(*standing)
        });
        narrow.chain(access::standing_at(machine, &self.accounts, &person.holder.whole, now)).max()
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

    /// The machines that an entry's address names for a person: at most one for each account that they act for, and those that are
    /// shared with them.
    pub fn at_entry(&self, address: IpAddr, person: &Person, now: UnixMs) -> Vec<&Arc<Machine>> {
        let IpAddr::V4(address) = address.to_canonical() else { return Vec::new() };
        let own = person.holder.whole.accounts().map(|(account, _)| account);
        let own = own.chain(person.holder.narrow.iter().map(|(account, ..)| account));
        let each = own.flat_map(|account| {
            let acts_for = self.member_of.get(account).into_iter().flatten();
            let shared = self.shared.get(account).into_iter().flatten();
            let named = [account].into_iter().chain(acts_for);
            let named = named.filter_map(|owner| self.at_entry.get(&(address, owner.clone())));
            named.chain(shared.filter(|machine| machine.net.entry_ipv4 == Some(address)))
        });
        let mut machines: Vec<&Arc<Machine>> = Vec::new();
        for machine in each {
            let open = self.standing(person, machine, now).is_some_and(Standing::may_operate);
            if open && !machines.iter().any(|known| known.id == machine.id) {
                machines.push(machine);
            }
        }
        machines
    }

    /// Whether an address of an entry names machines at all.
    pub fn is_shared_address(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.entry_addresses.contains(&address),
            IpAddr::V6(_) => false,
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

/// Why a machine cannot be entered now, with what to do about it; `None` when it can, or will in a moment: it is on its way up, or
/// starts for whoever comes.
pub fn not_running(machine: &Machine) -> Option<String> {
    let slug = &machine.slug;
    if wakes(machine) {
        return None;
    }
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

/// Whether a machine stands still, but starts for whoever comes.
pub fn wakes(machine: &Machine) -> bool {
    machine.config.autostart && matches!(machine.state, MachineState::Stopping | MachineState::Stopped)
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
        who(directory, key).unwrap()
    }

    fn who(directory: &Directory, key: &str) -> Result<Person, String> {
        let proof = Proof::Key(Arc::new(PublicKey::from_openssh(key).unwrap()));
        directory.person(&proof, "192.0.2.7".parse().unwrap(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_key_belongs_to_each_account_that_lists_it() {
        let directory = directory(&[]);
        let ann = person(&directory, ANN);
        let accounts: Vec<_> = ann.holder.whole.accounts().map(|(id, _)| id.as_str()).collect();
        assert_eq!(accounts, ["ann", "team"]);
        assert_eq!(ann.home.unwrap().as_str(), "ann");
        let stranger = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhlbGxvIHdvcmxkIGhlbGxvIHdvcmxkIGhlbGxvISEh";
        assert!(who(&directory, stranger).unwrap_err().contains("out of its account"));
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
