//! What there is to say about each name: a pure projection of the replica.
//!
//! Invariants:
//! - A name exists while its machine's record does and nobody asked for its destruction. Sleeping and stopped machines keep theirs.
//! - Names of the platform (apex, name servers, entries) win over a machine that carries the same.
//! - Machines' records are not stored: they are made from the record at each question, so a projection costs two map
//!   inserts a machine.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{LowerName, Name, RData};
use mashines_fleet::id::HostId;
use mashines_fleet::record::{Desired, FleetConfig, Host, HostRole, Machine, MachineState};
use mashines_fleet::view::View;

use crate::reverse::NibblePrefix;
use crate::sshfp::sshfp;

/// How long a resolver may keep a machine's or an entry's records, seconds. Addresses never change, so this only bounds how
/// long a destroyed machine's name lives on.
pub const TTL: u32 = 60;

/// How long a resolver may keep "no such name", seconds (RFC 2308 §5): short, for the name that was asked for just before its launch.
pub const NEGATIVE_TTL: u32 = 5;

/// How long a resolver may keep the apex's NS and SOA, seconds.
pub const APEX_TTL: u32 = 300;

/// Everything this server is authoritative for.
#[derive(Debug, Default)]
pub struct Zone {
    /// The forward zone first, then the reverse zones.
    apexes: Vec<Apex>,
    /// The platform's own names and the empty non-terminals above them.
    fixed: HashMap<LowerName, Vec<RData>>,
    /// Machines by slug.
    machines: HashMap<String, Arc<Machine>>,
    /// Entries' public IPv4 addresses, for machines with a shared port.
    entries: HashMap<HostId, Vec<Ipv4Addr>>,
    /// Whose address it is.
    addresses: BTreeMap<Ipv6Addr, Name>,
}

/// The top of one zone.
#[derive(Debug)]
pub struct Apex {
    /// Its name.
    pub name: Name,
    /// The start of authority, which every negative answer carries.
    pub soa: SOA,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forward,
    Reverse,
}

/// What is known about a name.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// It is in none of our zones.
    OffZone,
    /// Our zone, no such name and none below it.
    NoName(&'a Apex),
    /// The name exists; without data it is an empty non-terminal.
    Name(&'a Apex, Vec<RData>),
}

/// A record of the fleet that cannot be served, and why. The rest of the zone is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint(pub String);

impl Zone {
    /// The zone that `view` amounts to, and what of it could not be used.
    pub fn project(view: &View) -> (Self, Vec<Complaint>) {
        let mut complaints = Vec::new();
        let Some(config) = &view.config else {
            return (Self::default(), vec![Complaint("the replica holds no fleet configuration yet".into())]);
        };
        let apex = match Name::from_ascii(&config.domain) {
            Ok(name) if !name.is_root() => absolute(name).to_lowercase(),
            Ok(_) => return (Self::default(), vec![Complaint("the fleet's domain is empty".into())]),
            Err(error) => {
                let text = format!("the fleet's domain {:?} is not a DNS name: {error}", config.domain);
                return (Self::default(), vec![Complaint(text)]);
            }
        };
        let mut zone = Self::default();
        let servers = name_servers(config, &mut complaints);
        zone.add_apexes(view, config, &apex, &servers, &mut complaints);
        zone.add_servers(&apex, &servers);
        zone.add_entries(view, &apex, &mut complaints);
        zone.add_machines(view, &apex, &mut complaints);
        (zone, complaints)
    }

    /// What there is at `name`, in any letter case.
    pub fn lookup(&self, name: &Name) -> Lookup<'_> {
        let Some(apex) = self.apexes.iter().find(|apex| apex.name.zone_of(name)) else {
            return Lookup::OffZone;
        };
        let found = match self.fixed.get(&LowerName::new(name)) {
            // A fixed name without data may still be a machine's: `ns` above `a.ns.mashine.dev`.
            Some(data) if !data.is_empty() => Some(data.clone()),
            fixed => {
                let other = match apex.kind {
                    Kind::Forward => self.machine_at(apex, name).map(|machine| self.machine_data(machine)),
                    Kind::Reverse => self.pointer_at(name),
                };
                other.or_else(|| fixed.cloned())
            }
        };
        match found {
            Some(data) => Lookup::Name(apex, data),
            None => Lookup::NoName(apex),
        }
    }

    /// Addresses of `name` where it is ours: glue for an NS answer.
    pub fn addresses_of(&self, name: &Name) -> Vec<RData> {
        match self.lookup(name) {
            Lookup::Name(_, data) => {
                data.into_iter().filter(|d| matches!(d, RData::A(_) | RData::AAAA(_))).collect()
            }
            Lookup::OffZone | Lookup::NoName(_) => Vec::new(),
        }
    }

    fn machine_at(&self, apex: &Apex, name: &Name) -> Option<&Machine> {
        // `Name::num_labels` does not count `*`, so the labels are counted here.
        let mut labels = name.iter();
        let first = labels.next()?;
        if labels.count() != apex.name.iter().count() {
            return None;
        }
        let slug = std::str::from_utf8(first).ok()?.to_ascii_lowercase();
        self.machines.get(&slug).map(AsRef::as_ref)
    }

    fn machine_data(&self, machine: &Machine) -> Vec<RData> {
        let mut data = vec![RData::AAAA(AAAA(machine.net.ipv6))];
        if let Some(own) = machine.net.entry_ipv4 {
            data.push(RData::A(A(own)));
        } else if let Some(port) = &machine.net.ssh_port {
            let entry = self.entries.get(&port.entry).into_iter().flatten();
            data.extend(entry.map(|ip| RData::A(A(*ip))));
        }
        data.extend(machine.host_key_public.as_deref().and_then(sshfp).map(RData::SSHFP));
        data
    }

    /// PTR at a whole address; nothing at a prefix of one, which is an empty non-terminal.
    fn pointer_at(&self, name: &Name) -> Option<Vec<RData>> {
        let prefix = NibblePrefix::parse(name)?;
        if let Some(address) = prefix.address() {
            return self.addresses.get(&address).map(|name| vec![RData::PTR(PTR(name.clone()))]);
        }
        let (first, last) = prefix.range();
        self.addresses.range(first..=last).next().map(|_| Vec::new())
    }

    fn add_apexes(
        &mut self,
        view: &View,
        config: &FleetConfig,
        apex: &Name,
        servers: &[(Name, Vec<IpAddr>)],
        complaints: &mut Vec<Complaint>,
    ) {
        let primary = servers.first().map_or_else(|| apex.clone(), |(name, _)| name.clone());
        let mailbox = apex.prepend_label("hostmaster").unwrap_or_else(|_| apex.clone());
        let soa = SOA::new(primary, mailbox, serial(view.revision), 300, 60, 604_800, NEGATIVE_TTL);
        let mut zones = vec![(apex.clone(), Kind::Forward)];
        for prefix in NibblePrefix::covering(config.prefix) {
            match prefix.name() {
                Ok(name) => zones.push((name, Kind::Reverse)),
                Err(error) => {
                    complaints.push(Complaint(format!("no reverse zone for {}: {error}", config.prefix)));
                }
            }
        }
        for (name, kind) in zones {
            let data = self.fixed.entry(LowerName::new(&name)).or_default();
            data.push(RData::SOA(soa.clone()));
            data.extend(servers.iter().map(|(server, _)| RData::NS(NS(server.clone()))));
            self.apexes.push(Apex { name, soa: soa.clone(), kind });
        }
    }

    fn add_servers(&mut self, apex: &Name, servers: &[(Name, Vec<IpAddr>)]) {
        for (name, addresses) in servers {
            if apex.zone_of(name) {
                addresses.iter().for_each(|ip| self.add_fixed(apex, name, address_data(*ip)));
            }
        }
    }

    fn add_entries(&mut self, view: &View, apex: &Name, complaints: &mut Vec<Complaint>) {
        for host in view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry)) {
            let Ok(name) = apex.prepend_label(host.id.as_str()) else {
                complaints.push(Complaint(format!("entry {}: its name below {apex} is too long", host.id)));
                continue;
            };
            for ip in public_addresses(host) {
                self.add_fixed(apex, &name, address_data(ip));
                self.add_fixed(apex, apex, address_data(ip));
            }
            self.entries.insert(host.id.clone(), host.own_ipv4().into_iter().collect());
            self.addresses.extend(host.public_ipv6.iter().map(|ip| (*ip, name.clone())));
        }
    }

    fn add_machines(&mut self, view: &View, apex: &Name, complaints: &mut Vec<Complaint>) {
        for machine in view.machines.values().filter(|machine| is_named(machine)) {
            match apex.prepend_label(machine.slug.as_str()) {
                Ok(name) => {
                    self.addresses.insert(machine.net.ipv6, name);
                    self.machines.insert(machine.slug.as_str().to_owned(), Arc::clone(machine));
                }
                Err(error) => complaints
                    .push(Complaint(format!("machine {}: no name below {apex}: {error}", machine.slug))),
            }
        }
    }

    /// Adds a record, and the names between it and the apex as empty non-terminals.
    fn add_fixed(&mut self, apex: &Name, name: &Name, data: RData) {
        let known = self.fixed.entry(LowerName::new(name)).or_default();
        if !known.contains(&data) {
            known.push(data);
        }
        let mut above = name.base_name();
        while apex.zone_of(&above) {
            self.fixed.entry(LowerName::new(&above)).or_default();
            above = above.base_name();
        }
    }
}

/// Whether both views give the same zone, serial aside. Found by comparing pointers and entries: hosts report every few seconds, and
/// a million names need not be projected again for that.
pub fn is_same(one: &View, two: &View) -> bool {
    fn entries(view: &View) -> impl Iterator<Item = (&HostId, &[Ipv4Addr], &[Ipv6Addr])> {
        let entries = view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry));
        entries.map(|host| (&host.id, host.public_ipv4.as_slice(), host.public_ipv6.as_slice()))
    }
    let machines = one.machines.values().zip(two.machines.values());
    one.config == two.config
        && one.machines.len() == two.machines.len()
        && machines.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
        && entries(one).eq(entries(two))
}

/// Whether a machine has a name: until somebody wants it destroyed.
fn is_named(machine: &Machine) -> bool {
    let wanted = match machine.desired {
        Desired::Started | Desired::Stopped => true,
        Desired::Destroyed => false,
    };
    let there = match machine.state {
        MachineState::Created
        | MachineState::Starting
        | MachineState::Started
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Failed => true,
        MachineState::Destroying | MachineState::Destroyed => false,
    };
    wanted && there
}

fn name_servers(config: &FleetConfig, complaints: &mut Vec<Complaint>) -> Vec<(Name, Vec<IpAddr>)> {
    let mut servers = Vec::new();
    for server in &config.name_servers {
        match Name::from_ascii(&server.name) {
            Ok(name) => servers.push((absolute(name), server.addresses.clone())),
            Err(error) => {
                complaints
                    .push(Complaint(format!("name server {:?} is not a DNS name: {error}", server.name)));
            }
        }
    }
    if servers.is_empty() {
        complaints
            .push(Complaint("the fleet's configuration names no name server: the zones have no NS".into()));
    }
    servers
}

fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

fn public_addresses(host: &Host) -> impl Iterator<Item = IpAddr> {
    let v4 = host.own_ipv4().map(IpAddr::V4).into_iter();
    v4.chain(host.public_ipv6.iter().copied().map(IpAddr::V6))
}

fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The SOA's serial: the revision's low 32 bits. Serial arithmetic (RFC 1982) takes care of the wrap.
fn serial(revision: u64) -> u32 {
    let [.., a, b, c, d] = revision.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
