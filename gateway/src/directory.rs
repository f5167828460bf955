//! Who there is and what there is to enter: a pure projection of the replica, for look-ups by key, name and address.

use std::collections::{BTreeSet, HashMap};
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
