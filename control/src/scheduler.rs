//! Where a machine goes: a pure choice among hosts, with a reason for each that was passed over.
//!
//! A host will do when it is alive, not cordoned, of the region, holds the image's very bytes and all the machine's placed
//! volumes, and has the vCPUs, memory and disk. Of those that do, the one with the most free memory: machines spread.

use std::fmt;

use mashines_fleet::id::{HostId, ImageName, MachineId};
use mashines_fleet::record::{Capacity, Desired, Host, HostRole, Machine, MachineState};
use mashines_fleet::view::View;

/// What is wanted of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The region, when it matters.
    pub region: Option<String>,
    /// This host and no other.
    pub host: Option<HostId>,
    /// Not this one.
    pub not: Option<HostId>,
    /// The image's name.
    pub image: ImageName,
    /// Its bytes; any of that name when none (a new machine).
    pub digest: Option<String>,
    /// What has to be free.
    pub room: Capacity,
    /// The hosts that hold its volumes already.
    pub pinned: Vec<HostId>,
}

/// A host with what is taken of it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// The host.
    pub host: &'a Host,
    /// It reports.
    pub alive: bool,
    /// What is promised there.
    pub used: Capacity,
}

/// No host will do; each with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoHost(pub Vec<(HostId, String)>);

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the fleet has no host that runs machines: join one with `mashinesd join`");
        }
        let reasons: Vec<String> = self.0.iter().map(|(host, why)| format!("{host}: {why}")).collect();
        write!(f, "no host will do: {}", reasons.join("; "))
    }
}

/// Chooses a host.
///
/// # Errors
/// [`NoHost`].
pub fn choose(wanted: &Wanted, candidates: &[Candidate<'_>]) -> Result<HostId, NoHost> {
    let mut refused = Vec::new();
    let mut best: Option<(u64, &HostId)> = None;
    for candidate in candidates {
        if !candidate.host.roles.contains(&HostRole::Host) {
            continue;
        }
        let id = &candidate.host.id;
        match refusal(wanted, candidate) {
            Some(why) => refused.push((id.clone(), why)),
            None => {
                let free = candidate.host.capacity.memory_mib.saturating_sub(candidate.used.memory_mib);
                // Of equals the first by name, so that the choice does not depend on chance.
                if best.is_none_or(|(most, _)| free > most) {
                    best = Some((free, id));
                }
            }
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(NoHost(refused))
}

fn refusal(wanted: &Wanted, candidate: &Candidate<'_>) -> Option<String> {
    let Candidate { host, alive, used } = candidate;
    if wanted.not.as_ref() == Some(&host.id) {
        return Some("the machine is there already".to_owned());
    }
    if let Some(only) = wanted.host.as_ref().filter(|only| **only != host.id) {
        return Some(format!("{only} was asked for"));
    }
    if !alive {
        return Some("does not report".to_owned());
    }
    if host.cordoned {
        return Some("is cordoned".to_owned());
    }
    if let Some(region) = wanted.region.as_ref().filter(|region| **region != host.region) {
        return Some(format!("is in region {}, not {region}", host.region));
    }
    if let Some(pin) = wanted.pinned.iter().find(|pin| **pin != host.id) {
        return Some(format!("a volume's bytes are on {pin}"));
    }
    let image = host.images.iter().find(|image| {
        image.name == wanted.image && wanted.digest.as_ref().is_none_or(|digest| *digest == image.digest)
    });
    if image.is_none() {
        return Some(format!("does not hold the image {}", wanted.image));
    }
    missing(wanted.room, host.capacity, *used)
}

/// What is missing for `room`, in words; none when it fits.
pub fn missing(room: Capacity, capacity: Capacity, used: Capacity) -> Option<String> {
    let short = |what: &str, unit: &str, need: u64, has: u64, used: u64| {
        let free = has.saturating_sub(used);
        (need > free).then(|| format!("needs {need}{unit} {what}, {free}{unit} of {has}{unit} is free"))
    };
    let vcpus = short("vCPU", "", room.vcpus.into(), capacity.vcpus.into(), used.vcpus.into());
    let memory = short("memory", " MiB", room.memory_mib, capacity.memory_mib, used.memory_mib);
    let disk = short("disk", " MiB", room.disk_mib, capacity.disk_mib, used.disk_mib);
    let all: Vec<String> = [vcpus, memory, disk].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What a machine takes of a host while it runs.
pub fn needs(view: &View, machine: &Machine) -> Capacity {
    let volumes = machine.config.mounts.iter().filter_map(|mount| view.volumes.get(&mount.volume));
    Capacity {
        vcpus: machine.config.guest.cpus.into(),
        memory_mib: machine.config.guest.memory_mb,
        disk_mib: volumes.map(|volume| volume.size_mib).sum::<u64>(),
    }
}

/// What is promised on a host: machines placed there and machines on their way there. One that is stopped keeps its disk only.
pub fn used(view: &View, host: &HostId) -> Capacity {
    let mut sum = Capacity { vcpus: 0, memory_mib: 0, disk_mib: 0 };
    let mut add = |need: Capacity, runs: bool| {
        if runs {
            sum.vcpus = sum.vcpus.saturating_add(need.vcpus);
            sum.memory_mib = sum.memory_mib.saturating_add(need.memory_mib);
        }
        sum.disk_mib = sum.disk_mib.saturating_add(need.disk_mib);
    };
    for machine in view.machines.values().filter(|machine| machine.state != MachineState::Destroyed) {
        let here = machine.place.as_ref().is_some_and(|place| place.host == *host);
        if here {
            add(needs(view, machine), runs(machine));
        } else if arrives(view, &machine.id, host) {
            add(needs(view, machine), true);
        }
    }
    // Volumes that lie here without a machine take their disk all the same.
    for volume in view.volumes.values().filter(|volume| volume.attached_machine.is_none()) {
        if volume.host.as_ref() == Some(host) {
            sum.disk_mib = sum.disk_mib.saturating_add(volume.size_mib);
        }
    }
    sum
}

/// Memory is taken while it runs or is about to, or until it has stopped.
fn runs(machine: &Machine) -> bool {
    machine.desired == Desired::Started
        || matches!(machine.state, MachineState::Starting | MachineState::Started | MachineState::Stopping)
}

fn arrives(view: &View, machine: &MachineId, host: &HostId) -> bool {
    view.migration_of(machine).is_some_and(|migration| migration.destination == *host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;

    fn wanted() -> Wanted {
        let room = Capacity { vcpus: 2, memory_mib: 512, disk_mib: 1024 };
        let image = "container-os".parse().unwrap();
        Wanted { region: None, host: None, not: None, image, digest: None, room, pinned: vec![] }
    }

    const NONE: Capacity = Capacity { vcpus: 0, memory_mib: 0, disk_mib: 0 };

    #[test]
    fn the_host_with_the_most_free_memory_is_chosen_and_the_first_by_name_of_equals() {
        let (a, b) = (host("hosta"), host("hostb"));
        let some = Capacity { vcpus: 0, memory_mib: 1, disk_mib: 0 };
        let at = |host, used| Candidate { host, alive: true, used };
        assert_eq!(choose(&wanted(), &[at(&a, some), at(&b, NONE)]).unwrap().as_str(), "hostb");
        assert_eq!(choose(&wanted(), &[at(&a, NONE), at(&b, NONE)]).unwrap().as_str(), "hosta");
    }

    #[test]
    fn each_reason_is_told_by_host() {
        let mut cordoned = host("hostb");
        cordoned.cordoned = true;
        let mut bare = host("hostc");
        bare.images.clear();
        let (full, far, dead, entry) = (host("hosta"), host("hostd"), host("hoste"), {
            let mut entry = host("entry1");
            entry.roles = vec![HostRole::Entry];
            entry
        });
        let far = Host { region: "far".to_owned(), ..far };
        let taken = Capacity { vcpus: 7, memory_mib: 4000, disk_mib: 0 };
        let candidates: Vec<_> = [
            (&full, true, taken),
            (&cordoned, true, NONE),
            (&bare, true, NONE),
            (&far, true, NONE),
            (&dead, false, NONE),
            (&entry, true, NONE),
        ]
        .map(|(host, alive, used)| Candidate { host, alive, used })
        .into();
        let wanted = Wanted { region: Some("here".to_owned()), ..wanted() };
        let text = choose(&wanted, &candidates).unwrap_err().to_string();
        for part in [
            "hosta: needs 2 vCPU, 1 of 8 is free, needs 512 MiB memory, 96 MiB of 4096 MiB is free",
            "hostb: is cordoned",
            "hostc: does not hold the image container-os",
            "hostd: is in region far, not here",
            "hoste: does not report",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(!text.contains("entry1"));
    }

    #[test]
    fn a_volume_pins_its_machine_and_another_digest_is_another_image() {
        let (a, b) = (host("hosta"), host("hostb"));
        let candidates = [
            Candidate { host: &a, alive: true, used: NONE },
            Candidate { host: &b, alive: true, used: NONE },
        ];
        let pinned = Wanted { pinned: vec!["hostb".parse().unwrap()], ..wanted() };
        assert_eq!(choose(&pinned, &candidates).unwrap().as_str(), "hostb");
        let other = Wanted { digest: Some("sha256:other".to_owned()), ..wanted() };
        assert!(choose(&other, &candidates).is_err());
    }
}
