//! What this host was told about its machines, and which instructions it still obeys.
//!
//! Pure: no clock, no I/O. A machine's [`Entry`] is what [`crate::store`] keeps on disk; [`Ledger::check`] decides about a
//! request, [`Ledger::apply`] follows it.
//!
//! Invariants:
//! - A refused request changes nothing; a repeated one changes nothing and is accepted.
//! - A port is never replaced by one of an older epoch, nor made active below the epoch of a redirect or of the fleet's records.
//! - A redirect's epoch never falls, and is above that of any active port.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::{GUEST_MTU, Instance, Phase, Port, TAP_PREFIX};
use crate::plan::Known;
use crate::view::{MachineRoute, NetView};

/// The smallest MTU that IPv6 allows.
const MIN_MTU: u16 = 1280;

/// What this host was told about one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its port here.
    pub port: Option<LocalPort>,
    /// Where it went from here.
    pub redirect: Option<Redirect>,
    /// The highest epoch of a port that was removed here.
    pub floor: Option<Floor>,
}

/// A port and where its life stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPort {
    /// As prepared.
    pub port: Port,
    /// Where its life stands.
    pub phase: Phase,
}

/// A machine that moved away; held until the fleet's records say so too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// The epoch in which it runs there.
    pub epoch: u64,
    /// The host it moved to.
    pub to_host: String,
    /// How the overlay reached that host then: a restarted netd may know no hosts yet.
    pub via: std::net::IpAddr,
    /// Its addresses, since neither the port nor the records need outlast the redirect.
    pub addresses: Addresses,
}

/// What a route needs to know of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The public /128.
    pub ipv6: std::net::Ipv6Addr,
    /// The private /128.
    pub private6: Option<std::net::Ipv6Addr>,
    /// The private /32.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// The overlay's network identifier.
    pub vni: u32,
}

/// Keeps an instruction of an older epoch from being obeyed after the port is gone and before the records tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The epoch.
    pub epoch: u64,
    /// The revision of the records when it was set.
    pub revision: u64,
}

impl From<&Port> for Addresses {
    fn from(port: &Port) -> Self {
        Self { ipv6: port.ipv6, private6: port.private6, ipv4: port.ipv4, vni: port.vni }
    }
}

impl From<&MachineRoute> for Addresses {
    fn from(machine: &MachineRoute) -> Self {
        Self { ipv6: machine.ipv6, private6: machine.private6, ipv4: machine.ipv4, vni: machine.vni }
    }
}

impl Entry {
    /// The port, when routes may lead to it.
    pub fn active_port(&self) -> Option<&Port> {
        match &self.port {
            Some(LocalPort { port, phase: Phase::Active | Phase::Announced }) => Some(port),
            Some(LocalPort { phase: Phase::Suppressed, .. }) | None => None,
        }
    }

    fn is_empty(&self) -> bool {
        self.port.is_none() && self.redirect.is_none() && self.floor.is_none()
    }
}

/// A change of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A port with a tap.
    Prepare(Box<Port>),
    /// Another phase for the port of this epoch.
    Phase(Instance, Phase),
    /// The machine runs elsewhere.
    Redirect {
        /// The machine.
        machine: String,
        /// The epoch there.
        epoch: u64,
        /// The host.
        to_host: String,
    },
    /// The port is gone.
    Remove(Instance),
}

/// What follows from an accepted change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The machine's entry becomes this.
    Becomes(Box<Entry>),
    /// It is so already.
    Already,
}

/// Why a request is refused; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// All entries of this host.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
}

impl Ledger {
    /// The ledger as it was kept.
    pub fn new(entries: BTreeMap<String, Entry>) -> Self {
        Self { entries }
    }

    /// The entry of a machine.
    pub fn get(&self, machine: &str) -> Option<&Entry> {
        self.entries.get(machine)
    }

    /// All entries, by machine.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter()
    }

    /// Replaces a machine's entry; an empty one is dropped.
    pub fn set(&mut self, machine: &str, entry: Entry) {
        if entry.is_empty() {
            self.entries.remove(machine);
        } else {
            self.entries.insert(machine.to_owned(), entry);
        }
    }

    /// Decides about a change; nothing is changed yet.
    pub fn check(&self, change: &Change, known: Known<'_>) -> Result<Verdict, Refusal> {
        let entry = |machine: &str| self.entries.get(machine).cloned().unwrap_or_default();
        match change {
            Change::Prepare(port) => {
                well_formed(port)?;
                self.unclaimed(port)?;
                prepare(entry(&port.machine_id), port, known)
            }
            Change::Phase(at, phase) => set_phase(entry(&at.machine), at, *phase, known),
            Change::Redirect { machine, epoch, to_host } => {
                redirect(entry(machine), machine, *epoch, to_host, known)
            }
            Change::Remove(at) => remove(entry(&at.machine), at, known.view),
        }
    }

    /// Drops what the records of `view` have caught up with; answers which entries changed.
    pub fn follow(&mut self, view: &NetView) -> Vec<String> {
        let mut changed = Vec::new();
        self.entries.retain(|machine, entry| {
            let before = entry.clone();
            let recorded = view.machines.get(machine).map(|m| m.epoch);
            entry.redirect.take_if(|redirect| recorded.is_some_and(|epoch| epoch >= redirect.epoch));
            entry.floor.take_if(|floor| match recorded {
                Some(epoch) => epoch >= floor.epoch,
                None => view.revision > floor.revision,
            });
            if *entry != before {
                changed.push(machine.clone());
            }
            !entry.is_empty()
        });
        changed
    }

    /// Two machines with one tap or one address would take each other's packets.
    fn unclaimed(&self, port: &Port) -> Result<(), Refusal> {
        let others = self.entries.values().filter_map(|e| e.port.as_ref()).map(|p| &p.port);
        for other in others.filter(|p| p.machine_id != port.machine_id) {
            let clash = if other.tap == port.tap {
                format!("tap {}", port.tap)
            } else if other.ipv6 == port.ipv6 {
                format!("address {}", port.ipv6)
            } else if let Some(private6) = port.private6.filter(|a| other.private6 == Some(*a)) {
                format!("private address {private6}")
            } else if let Some(ipv4) = port.ipv4.filter(|a| other.ipv4 == Some(*a)) {
                format!("IPv4 address {ipv4}")
            } else {
                continue;
            };
            return Err(Refusal(format!(
                "prepare {}: {clash} belongs to machine {} on this host: remove that port first",
                port.machine_id, other.machine_id
            )));
        }
        Ok(())
    }
}

fn prepare(mut entry: Entry, port: &Port, known: Known<'_>) -> Result<Verdict, Refusal> {
    not_older(&entry, "prepare", &port.machine_id, port.epoch, known)?;
    match &entry.port {
        Some(local) if local.port == *port => return Ok(Verdict::Already),
        Some(local) if local.port.epoch == port.epoch => {
            return Err(Refusal(format!(
                "prepare {}: it is prepared in epoch {} with other settings: remove it first, or raise the epoch",
                port.machine_id, port.epoch
            )));
        }
        Some(_) | None => {}
    }
    entry.port = Some(LocalPort { port: port.clone(), phase: Phase::Suppressed });
    entry.floor = None;
    Ok(Verdict::Becomes(Box::new(entry)))
}

fn set_phase(mut entry: Entry, at: &Instance, to: Phase, known: Known<'_>) -> Result<Verdict, Refusal> {
    let verb = match to {
        Phase::Suppressed => "suppress",
        Phase::Active => "activate",
        Phase::Announced => "announce",
    };
    if to != Phase::Suppressed {
        not_older(&entry, verb, &at.machine, at.epoch, known)?;
    }
    let Some(local) = &mut entry.port else {
        // Nothing leads to a port that does not exist: suppressed already.
        return if to == Phase::Suppressed {
            Ok(Verdict::Already)
        } else {
            Err(Refusal(format!("{verb} {}: this host has no port for it: prepare it first", at.machine)))
        };
    };
    if local.port.epoch > at.epoch {
        return Err(older(verb, at, local.port.epoch, "its port here is of"));
    }
    if local.port.epoch < at.epoch {
        return Err(Refusal(format!(
            "{verb} {} in epoch {}: its port here is of epoch {}: prepare the new epoch first",
            at.machine, at.epoch, local.port.epoch
        )));
    }
    match (local.phase, to) {
        (Phase::Suppressed, Phase::Announced) => Err(Refusal(format!(
            "announce {} in epoch {}: its route is suppressed: activate it first",
            at.machine, at.epoch
        ))),
        // Activating what is announced is a repetition.
        (Phase::Announced, Phase::Active) => Ok(Verdict::Already),
        (phase, to) if phase == to => Ok(Verdict::Already),
        (_, to) => {
            local.phase = to;
            Ok(Verdict::Becomes(Box::new(entry)))
        }
    }
}

fn redirect(
    mut entry: Entry,
    machine: &str,
    epoch: u64,
    to_host: &str,
    known: Known<'_>,
) -> Result<Verdict, Refusal> {
    let view = known.view;
    let at = Instance { machine: machine.to_owned(), epoch };
    if to_host == known.config.host_id {
        return Err(Refusal(format!(
            "redirect {machine} to {to_host}: that is this host: activate it instead"
        )));
    }
    let Some(destination) = view.hosts.get(to_host) else {
        return Err(Refusal(format!(
            "redirect {machine} to {to_host}: no host of that id in revision {} of the fleet's records",
            view.revision
        )));
    };
    let recorded = view.machines.get(machine);
    let heard = [
        recorded.map(|m| (m.epoch, m.host_id.as_deref())),
        entry.redirect.as_ref().map(|r| (r.epoch, Some(r.to_host.as_str()))),
    ];
    for (known_epoch, known_host) in heard.into_iter().flatten() {
        if known_epoch == epoch && known_host == Some(to_host) {
            return Ok(Verdict::Already);
        }
        if known_epoch >= epoch {
            return Err(older("redirect", &at, known_epoch, "this host knows it in"));
        }
    }
    if let Some(local) = entry.port.as_ref().filter(|local| local.port.epoch >= epoch) {
        return Err(Refusal(format!(
            "redirect {machine} in epoch {epoch}: its port here is of epoch {}; a redirect carries the epoch at the destination",
            local.port.epoch
        )));
    }
    let addresses = match (&entry.port, &entry.redirect, recorded) {
        (Some(local), ..) => Addresses::from(&local.port),
        (None, Some(redirect), _) => redirect.addresses.clone(),
        (None, None, Some(machine)) => Addresses::from(machine),
        (None, None, None) => {
            return Err(Refusal(format!("redirect {machine}: this host knows no machine of that id")));
        }
    };
    if let Some(local) = &mut entry.port {
        local.phase = Phase::Suppressed;
    }
    entry.redirect =
        Some(Redirect { epoch, to_host: to_host.to_owned(), via: known.via(destination), addresses });
    Ok(Verdict::Becomes(Box::new(entry)))
}

fn remove(mut entry: Entry, at: &Instance, view: &NetView) -> Result<Verdict, Refusal> {
    let Some(local) = &entry.port else { return Ok(Verdict::Already) };
    if local.port.epoch > at.epoch {
        return Err(older("remove", at, local.port.epoch, "its port here is of"));
    }
    entry.port = None;
    entry.floor = Some(Floor { epoch: at.epoch, revision: view.revision });
    Ok(Verdict::Becomes(Box::new(entry)))
}

/// Refuses an epoch in which the machine no longer runs here, for all that this host knows.
fn not_older(entry: &Entry, verb: &str, machine: &str, epoch: u64, known: Known<'_>) -> Result<(), Refusal> {
    let at = Instance { machine: machine.to_owned(), epoch };
    if let Some(local) = entry.port.as_ref().filter(|local| local.port.epoch > epoch) {
        return Err(older(verb, &at, local.port.epoch, "its port here is of"));
    }
    if let Some(floor) = entry.floor.filter(|floor| floor.epoch > epoch) {
        return Err(older(verb, &at, floor.epoch, "its last port here was of"));
    }
    if let Some(redirect) = entry.redirect.as_ref().filter(|redirect| redirect.epoch >= epoch) {
        let place = format!("it moved to host {} in", redirect.to_host);
        return Err(older(verb, &at, redirect.epoch, &place));
    }
    if let Some(recorded) = known.view.machines.get(machine) {
        let place = match recorded.host_id.as_deref() {
            Some(host) => format!("the fleet's records place it on {host} in"),
            None => "the fleet's records have it stopped in".to_owned(),
        };
        let elsewhere = recorded.host_id.as_deref().is_some_and(|host| host != known.config.host_id);
        if recorded.epoch > epoch || (recorded.epoch == epoch && elsewhere) {
            return Err(older(verb, &at, recorded.epoch, &place));
        }
    }
    Ok(())
}

fn older(verb: &str, at: &Instance, known: u64, place: &str) -> Refusal {
    Refusal(format!(
        "{verb} {} in epoch {}: {place} epoch {known}: this order is out of date and was not followed",
        at.machine, at.epoch
    ))
}

/// Nothing of a port may surprise the kernel, the filters or the file system.
fn well_formed(port: &Port) -> Result<(), Refusal> {
    let refuse = |what: String| Err(Refusal(format!("prepare {:?}: {what}", truncated(&port.machine_id))));
    if !is_id(&port.machine_id) {
        return refuse("a machine id is 1 to 64 letters, digits, - or _".to_owned());
    }
    let suffix = port.tap.strip_prefix(TAP_PREFIX).unwrap_or_default();
    if port.tap.len() > 15 || !is_id(suffix) {
        return refuse(format!(
            "{:?} is no tap of ours: the name is {TAP_PREFIX} and 1 to 12 letters or digits",
            truncated(&port.tap)
        ));
    }
    if port.mac.0[0] & 1 == 1 || port.mac.0 == [0; 6] || port.mac == crate::api::GATEWAY_MAC {
        return refuse(format!("{} cannot be a machine's address: give a unicast one of its own", port.mac));
    }
    if port.mtu < MIN_MTU || port.mtu > 9000 {
        return refuse(format!("MTU {}: give {MIN_MTU} to 9000, normally {GUEST_MTU}", port.mtu));
    }
    if port.vni >= 1 << 24 {
        return refuse(format!("VNI {}: it has 24 bits", port.vni));
    }
    let ula = port.account.prefix() == 48 && port.account.ip().octets()[0] & 0xfe == 0xfc;
    if !ula {
        return refuse(format!("account prefix {}: give a /48 within fc00::/7", port.account));
    }
    if port.private6.is_some_and(|address| !port.account.contains(address)) {
        return refuse(format!("its private address lies outside the account's prefix {}", port.account));
    }
    let public = port.ipv6;
    if public.is_unspecified()
        || public.is_loopback()
        || public.is_multicast()
        || public.is_unicast_link_local()
    {
        return refuse(format!("{public} cannot be a machine's address"));
    }
    Ok(())
}

/// 1 to 64 characters that are safe as a file name and within a filter's text.
pub fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn truncated(text: &str) -> String {
    text.chars().take(80).collect()
}
