//! From the replica to [`Zones`]: all of it once, afterwards what changed.
//!
//! A million machines cost a second once; a change of one costs what changed ([`View::changed_machines`]) and the copy of one leaf. What
//! leaves the content as it is (a machine that stops, a host's report) leaves the serial as it is, too.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use mashines_fleet::id::{DomainName, HostId, MachineId};
use mashines_fleet::record::{Desired, FleetConfig, Host, HostRole, Machine, MachineState, Show, ZoneKeys};
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use smol_str::SmolStr;

use super::machine::{CHALLENGE, MachineNames, Shared, number_of};
use super::ordered::Ordered;
use super::platform::{Entry, Platform, servers_of, soa};
use super::{Complaint, Zone, ZoneKind, Zones};
use crate::name::{Labels, Name};
use crate::reverse::NibblePrefix;
use crate::rrset::OwnedSet;
use crate::sign::KeySet;

/// Texts that issuers want to see below machines, by slug: relative name and text.
type MachineChallenges = BTreeMap<SmolStr, Vec<(Vec<u8>, String)>>;

/// Keeps [`Zones`] in step with the replica.
#[derive(Debug, Default)]
pub struct Projector {
    zones: Zones,
    shown: Option<Arc<View>>,
    platform: Option<Platform>,
    challenges: MachineChallenges,
    /// Numbers of entries, given once.
    entries: HashMap<HostId, u16>,
    pointers_of_entries: BTreeMap<Ipv6Addr, SmolStr>,
    opened: HashMap<DomainName, (Arc<ZoneKeys>, Arc<KeySet>)>,
    secret: Option<EntrySecret>,
}

/// What a view brought.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Where content changed; nothing did when empty.
    pub touched: Vec<Touched>,
    /// What could not be used, of what was looked at.
    pub complaints: Vec<Complaint>,
    /// The view before. To let go of a million records takes longer than all else: that is to be done where nobody waits for it.
    pub replaced: Option<Arc<View>>,
}

/// A part of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Anything may have changed.
    All,
    /// The zone with this apex: anything but its machines and pointers.
    Fixed(Name),
    /// This name and those below it.
    Below(Name),
}

impl Projector {
    /// What is to be served now: a copy that stays as it is.
    pub fn zones(&self) -> Zones {
        self.zones.clone()
    }

    /// Takes the newest view, and what opens the keys in it.
    pub fn apply(&mut self, view: &Arc<View>, secret: Option<&EntrySecret>) -> Applied {
        let mut applied = Applied::default();
        let before = self.shown.replace(Arc::clone(view));
        applied.replaced.clone_from(&before);
        if self.secret.as_ref() != secret {
            self.secret = secret.cloned();
            self.opened.clear();
        }
        let Some(config) = &view.config else {
            applied.complaints.push(Complaint("the replica holds no fleet configuration yet".into()));
            self.forget(&mut applied);
            return applied;
        };
        let apex = match config.domain.parse::<Name>() {
            Ok(apex) if apex.label_count() > 0 => apex,
            Ok(_) => {
                applied.complaints.push(Complaint("the fleet's domain is empty".into()));
                self.forget(&mut applied);
                return applied;
            }
            Err(error) => {
                applied.complaints.push(Complaint(format!("the fleet's domain: {error}")));
                self.forget(&mut applied);
                return applied;
            }
        };
        let anew = before.as_ref().is_none_or(|before| before.config != view.config);
        if anew {
            self.forget(&mut applied);
            applied.touched.push(Touched::All);
        }
        self.zones.domain = Some(apex.clone());
        let platform =
            Platform::of(view, config, apex, self.keys(view, &mut applied), &mut applied.complaints);
        let challenges = machine_challenges(view, &platform);
        match before.filter(|_| !anew) {
            Some(before) => self.change_machines(&before, view, &platform.apex, &challenges, &mut applied),
            None => self.all_machines(view, &challenges, &mut applied),
        }
        self.challenges = challenges;
        self.point_to_entries(&platform, &mut applied);
        self.share(&platform, &mut applied);
        self.make_zones(view, config, platform, anew, &mut applied);
        applied
    }

    /// Moves every zone's serial to that of the view, though nothing changed: signatures in copies at secondaries are to be renewed.
    pub fn renew_serials(&mut self) {
        let Some(view) = &self.shown else { return };
        for zone in &mut self.zones.zones {
            set_serial(zone, view.revision);
        }
    }

    fn forget(&mut self, applied: &mut Applied) {
        if !self.zones.zones.is_empty() {
            applied.touched.push(Touched::All);
        }
        self.zones = Zones::default();
        self.platform = None;
        self.challenges.clear();
        self.pointers_of_entries.clear();
    }

    /// The opened keys, as far as they can be opened.
    fn keys(&mut self, view: &View, applied: &mut Applied) -> BTreeMap<DomainName, Option<Arc<KeySet>>> {
        let mut keys = BTreeMap::new();
        for (id, record) in view.zone_keys.iter().filter(|(_, record)| !record.keys.is_empty()) {
            let known = self.opened.get(id).filter(|(known, _)| Arc::ptr_eq(known, record));
            let opened = match (known, &self.secret) {
                (Some((_, set)), _) => Some(Arc::clone(set)),
                (None, None) => {
                    let text = format!(
                        "zone {id} has keys, and this server has not got of control yet what opens them"
                    );
                    applied.complaints.push(Complaint(text));
                    None
                }
                (None, Some(secret)) => {
                    let zone = id.as_str().parse::<Name>().unwrap_or_else(|_| Name::root());
                    match KeySet::open(record, &zone, secret) {
                        Ok(set) => {
                            self.opened.insert(id.clone(), (Arc::clone(record), Arc::clone(&set)));
                            Some(set)
                        }
                        Err(error) => {
                            applied.complaints.push(Complaint(format!("the keys of zone {id}: {error}")));
                            None
                        }
                    }
                }
            };
            keys.insert(id.clone(), opened);
        }
        self.opened.retain(|id, _| keys.contains_key(id));
        keys
    }

    fn all_machines(&mut self, view: &View, challenges: &MachineChallenges, applied: &mut Applied) {
        let named = || view.machines.values().filter(|machine| is_named(machine));
        let pointers =
            named().map(|machine| (machine.net.ipv6, SmolStr::new(machine.slug.as_str()))).collect();
        let mut machines = Vec::with_capacity(view.machines.len());
        for machine in named() {
            let slug = SmolStr::new(machine.slug.as_str());
            let names = self.names_of(machine, challenges, &mut applied.complaints);
            machines.push((slug, names));
        }
        self.zones.machines = Ordered::from_unsorted(machines);
        self.zones.pointers = Ordered::from_unsorted(pointers);
    }

    fn change_machines(
        &mut self,
        before: &View,
        view: &View,
        apex: &Name,
        challenges: &MachineChallenges,
        applied: &mut Applied,
    ) {
        let mut changed = view.changed_machines(before);
        for slug in differing(&self.challenges, challenges) {
            let id = self.zones.machines.get(slug.as_str()).map(|names| format!("{:014x}", names.id));
            let machine = id.and_then(|id| view.machines.get(&id.parse::<MachineId>().ok()?));
            changed.extend(machine.map(|machine| (Some(machine), Some(machine))));
        }
        // What goes, goes first: a name or an address may have a new owner in the same change.
        for (old, new) in &changed {
            let Some(old) = old.filter(|old| is_named(old)) else { continue };
            let new = new.filter(|new| is_named(new));
            let slug = old.slug.as_str();
            let ours = self.zones.machines.get(slug).is_some_and(|names| names.id == number_of(old));
            if ours && new.is_none_or(|new| new.slug != old.slug) {
                self.zones.machines.remove(slug);
                touch_child(apex, slug, applied);
            }
            let ours = self.zones.pointers.get(&old.net.ipv6).is_some_and(|label| label == slug);
            if ours && new.is_none_or(|new| new.net.ipv6 != old.net.ipv6) {
                self.zones.pointers.remove(&old.net.ipv6);
                applied.touched.push(Touched::Below(NibblePrefix::of(old.net.ipv6).name()));
            }
        }
        for machine in changed.iter().filter_map(|(_, new)| new.filter(|new| is_named(new))) {
            let slug = SmolStr::new(machine.slug.as_str());
            let names = self.names_of(machine, challenges, &mut applied.complaints);
            if self.zones.machines.get(slug.as_str()) != Some(&names) {
                self.zones.machines.insert(slug.clone(), names);
                touch_child(apex, &slug, applied);
            }
            if self.zones.pointers.get(&machine.net.ipv6) != Some(&slug) {
                self.zones.pointers.insert(machine.net.ipv6, slug);
                applied.touched.push(Touched::Below(NibblePrefix::of(machine.net.ipv6).name()));
            }
        }
    }

    fn names_of(
        &mut self,
        machine: &Machine,
        challenges: &MachineChallenges,
        complaints: &mut Vec<Complaint>,
    ) -> MachineNames {
        let own = challenges.get(machine.slug.as_str()).map(Vec::as_slice).unwrap_or_default();
        MachineNames::project(machine, own, |entry| self.number(entry), complaints)
    }

    /// An entry's number. More entries than numbers share the last, which has no address.
    fn number(&mut self, entry: &HostId) -> u16 {
        let next = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        *self.entries.entry(entry.clone()).or_insert(next)
    }

    fn point_to_entries(&mut self, platform: &Platform, applied: &mut Applied) {
        let addresses = platform.entries.iter().flat_map(|entry| {
            let label = SmolStr::new(entry.id.as_str());
            entry.ipv6.iter().map(move |ip| (*ip, label.clone()))
        });
        let pointers: BTreeMap<_, _> = addresses.collect();
        if pointers == self.pointers_of_entries {
            return;
        }
        for address in self.pointers_of_entries.keys().filter(|ip| !pointers.contains_key(*ip)) {
            self.zones.pointers.remove(address);
            applied.touched.push(Touched::Below(NibblePrefix::of(*address).name()));
        }
        for (address, label) in &pointers {
            self.zones.pointers.insert(*address, label.clone());
            applied.touched.push(Touched::Below(NibblePrefix::of(*address).name()));
        }
        self.pointers_of_entries = pointers;
    }

    /// What machines have in common.
    fn share(&mut self, platform: &Platform, applied: &mut Applied) {
        for entry in &platform.entries {
            self.number(&entry.id);
        }
        let mut entries = vec![Box::default(); self.entries.len()];
        for Entry { id, ipv4, .. } in &platform.entries {
            let slot = self.entries.get(id).and_then(|number| entries.get_mut(usize::from(*number)));
            if let Some(slot) = slot {
                *slot = ipv4.iter().map(|ip| ip.octets()).collect();
            }
        }
        let shared = Shared { entries, https: platform.https() };
        if *self.zones.shared != shared {
            // Every machine's A or HTTPS may be another now.
            applied.touched.push(Touched::All);
            self.zones.shared = Arc::new(shared);
        }
    }

    fn make_zones(
        &mut self,
        view: &View,
        config: &FleetConfig,
        platform: Platform,
        anew: bool,
        applied: &mut Applied,
    ) {
        if anew || self.platform.as_ref() != Some(&platform) {
            let servers = servers_of(config, &mut Vec::new());
            let mut zones = Vec::new();
            for (apex, kind) in platform.apexes(config) {
                let fixed = platform.fixed(config, &apex, kind, &mut applied.complaints);
                let keys = platform.keys_of(&apex);
                let old = self.zones.zone(&apex);
                if let Some(old) = old.filter(|old| *old.fixed == fixed && keys.are_those_of(old)) {
                    zones.push(Arc::clone(old));
                    continue;
                }
                applied.touched.push(Touched::Fixed(apex.clone()));
                zones.push(Arc::new(Zone {
                    labels: apex.label_count(),
                    soa: soa(&apex, &servers, 0),
                    apex,
                    kind,
                    serial: 0,
                    fixed: Arc::new(fixed),
                    keys: keys.set,
                    keys_missing: keys.is_locked,
                }));
            }
            zones.sort_by_key(|zone| std::cmp::Reverse(zone.labels));
            self.zones.zones = zones;
            self.platform = Some(platform);
        }
        for zone in &mut self.zones.zones {
            let is_touched = applied.touched.iter().any(|touched| match touched {
                Touched::All => true,
                Touched::Fixed(apex) => *apex == zone.apex,
                Touched::Below(name) => name.is_within(&zone.apex) && zone.kind != ZoneKind::Static,
            });
            if is_touched {
                set_serial(zone, view.revision);
            }
        }
    }
}

fn set_serial(zone: &mut Arc<Zone>, revision: u64) {
    let zone = Arc::make_mut(zone);
    zone.serial = serial(revision);
    zone.soa = with_serial(&zone.soa, zone.serial);
}

/// The SOA with another serial, which is before the last four numbers (RFC 1035 §3.3.13).
fn with_serial(soa: &OwnedSet, serial: u32) -> OwnedSet {
    let data = soa.data().iter().map(|data| {
        let mut data = data.clone();
        let at = data.len().saturating_sub(20);
        if let Some(place) = data.get_mut(at..at + 4) {
            place.copy_from_slice(&serial.to_be_bytes());
        }
        data
    });
    OwnedSet::new(soa.kind, soa.ttl, data.collect())
}

/// The SOA's serial: the revision's low 32 bits. Serial arithmetic (RFC 1982) takes care of the wrap.
fn serial(revision: u64) -> u32 {
    let [.., a, b, c, d] = revision.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn touch_child(apex: &Name, label: &str, applied: &mut Applied) {
    applied.touched.extend(apex.child(label.as_bytes()).ok().map(Touched::Below));
}

fn differing(one: &MachineChallenges, two: &MachineChallenges) -> Vec<SmolStr> {
    let mut slugs: Vec<_> = one.iter().filter(|(slug, texts)| two.get(*slug) != Some(*texts)).collect();
    slugs.extend(two.iter().filter(|(slug, _)| !one.contains_key(*slug)));
    slugs.into_iter().map(|(slug, _)| slug.clone()).collect()
}

/// The texts that belong below machines' names; all others are the platform's.
fn machine_challenges(view: &View, platform: &Platform) -> MachineChallenges {
    let mut found = MachineChallenges::new();
    for challenge in view.challenges.values() {
        let Show::Dns01 { value } = &challenge.show else { continue };
        let Ok(name) = challenge.name.as_str().parse::<Name>() else { continue };
        if let Some((slug, above)) = platform.machine_of(&name) {
            let relative = [CHALLENGE, above].concat();
            found.entry(slug).or_default().push((relative, value.clone()));
        }
    }
    for texts in found.values_mut() {
        texts.sort();
    }
    found
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

/// Entries as the zones show them.
pub(super) fn entries(view: &View) -> Vec<Entry> {
    let entries = view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry));
    let of = |host: &Arc<Host>| Entry {
        id: host.id.clone(),
        ipv4: host.own_ipv4().into_iter().collect(),
        ipv6: host.public_ipv6.clone(),
    };
    entries.map(of).collect()
}

/// Addresses of an entry, both families.
pub(super) fn addresses(entry: &Entry) -> impl Iterator<Item = IpAddr> {
    let v4 = entry.ipv4.iter().copied().map(IpAddr::V4);
    v4.chain(entry.ipv6.iter().copied().map(IpAddr::V6))
}

/// The last label of a relative wire name, as text.
pub(super) fn top_label(relative: &[u8]) -> Option<&str> {
    Labels::of(relative).last().and_then(|label| std::str::from_utf8(label).ok())
}
