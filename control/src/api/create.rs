//! Launching a machine: one transaction makes its record, its volumes, its name, its addresses and its place; or nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::{Path, State};
use http::HeaderMap;
use ipnetwork::Ipv6Network;
use mashines_fleet::api::{self, CreateMachine};
use mashines_fleet::id::{AccountId, AppName, Epoch, HostId, MachineId, Slug};
use mashines_fleet::record::{
    Capacity, Desired, Host, HostRole, Machine, MachineNet, MachineState, Place, Role, SharedPort,
};
use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::auth::Caller;
use super::launch::{self, Owner};
use super::request::Payload;
use super::suggest::did_you_mean;
use super::{apps, render};
use crate::addresses::{mac, random_in, random_private, random_slug};
use crate::control::Control;
use crate::failure::{Failure, Kind, Result};
use crate::found::hash;
use crate::lifecycle::event;
use crate::records::{Edit, Private, retrying};
use crate::scheduler::Wanted;
use crate::ssh_ca;
use crate::time::now;

/// How long an idempotency key means the same machine, milliseconds.
const KEY_LIFE_MS: u64 = 24 * 3600 * 1000;
/// Names that the platform keeps for itself.
const RESERVED: [&str; 12] = [
    "api",
    "www",
    "gateway",
    "entry",
    "ns1",
    "ns2",
    "control",
    "localhost",
    "lobby",
    "mashines",
    "git",
    "signup",
];

/// What an idempotency key made.
#[derive(Serialize, Deserialize)]
struct Made {
    machine: MachineId,
    request: String,
    at: u64,
}

pub async fn create(
    State(control): State<Control>,
    caller: Caller,
    Path(app): Path<String>,
    headers: HeaderMap,
    Payload(body): Payload<CreateMachine>,
) -> Answer<api::Machine> {
    caller.must(Role::Admin, "make machines")?;
    let app = apps::of(&control, &caller, &app).await?;
    check_region(&control, body.region.as_deref())?;
    if body.host.is_some() {
        caller.must_be_admin("choose a host")?;
    }
    let key = headers.get("idempotency-key").map(|value| hash(&String::from_utf8_lossy(value.as_bytes())));
    let request = hash(&serde_json::to_string(&(app.as_str(), &body))?);
    let launch = Launch { control: &control, caller: &caller, app: &app, body: &body, key, request };
    let launch = &launch;
    let machine = retrying(|| launch.attempt()).await?;
    control.nudge.notify_one();
    Ok(Json(render::machine(&control.view(), &machine)))
}

struct Launch<'a> {
    control: &'a Control,
    caller: &'a Caller,
    app: &'a AppName,
    body: &'a CreateMachine,
    /// The hash of the idempotency key.
    key: Option<String>,
    /// The hash of the request.
    request: String,
}

impl Launch<'_> {
    async fn attempt(&self) -> Result<Machine> {
        let _placing = self.control.placing.lock().await;
        let mut edit = self.control.records.edit();
        if let Some(made) = self.made_before(&mut edit).await? {
            return Ok(made);
        }
        let id = MachineId::random();
        let slug = self.slug(&mut edit).await?;
        let account = &self.caller.account.id;
        let owner = Owner { machine: &id, account, app: self.app };
        let mut config = launch::without_mounts(self.control, &self.body.config)?;
        config.mounts = launch::mounts(&mut edit, self.control, &owner, &self.body.config.mounts).await?;
        let pinned = self.pinned(&config.mounts);
        let (made, disk_mib) = launch::new_volumes(&mut edit, &owner, &self.body.volumes).await?;
        config.mounts.extend(made);
        launch::check_mounts(&config.mounts)?;
        let room = Capacity { vcpus: config.guest.cpus.into(), memory_mib: config.guest.memory_mb, disk_mib };
        let host = self.control.choose(&Wanted {
            region: self.body.region.clone(),
            host: self.host()?,
            not: None,
            image: config.image.clone(),
            digest: None,
            room,
            pinned,
        })?;
        let image_digest = digest(&*self.control.host(&host)?, &config.image)?;
        let net = self.net(&mut edit, &id).await?;
        let host_key = ssh_ca::new_host_key()?;
        let start = !self.body.skip_launch;
        let now = now();
        let mut machine = Machine {
            id: id.clone(),
            slug: slug.clone(),
            account: account.clone(),
            app: self.app.clone(),
            instance_id: ulid::Ulid::generate().to_string(),
            config,
            image_digest,
            desired: if start { Desired::Started } else { Desired::Stopped },
            state: if start { MachineState::Starting } else { MachineState::Created },
            reason: None,
            // One that is not started takes no room: it is placed when it is.
            place: start.then_some(Place { host, epoch: Epoch(1) }),
            net,
            host_key_public: Some(host_key.public.clone()),
            shares: Vec::new(),
            records: Vec::new(),
            update_key: None,
            created_at: now,
            updated_at: now,
            events: Vec::new(),
        };
        event(&mut machine, "launch", if start { "started" } else { "created" }, "user", String::new(), now);
        edit.claim(Private::Slug(slug.as_str()), &id)?;
        edit.put_private(Private::HostKey(&id), &host_key)?;
        if let Some(key) = &self.key {
            let made = Made { machine: id, request: self.request.clone(), at: now };
            edit.put_private(Private::Idempotency(account, key), &made)?;
        }
        edit.put(&machine)?;
        edit.commit().await?;
        Ok(machine)
    }

    /// The machine that the same key made within a day.
    async fn made_before(&self, edit: &mut Edit<'_>) -> Result<Option<Machine>> {
        let Some(key) = &self.key else { return Ok(None) };
        let made: Option<Made> = edit.private(Private::Idempotency(&self.caller.account.id, key)).await?;
        let Some(made) = made.filter(|made| now().saturating_sub(made.at) < KEY_LIFE_MS) else {
            return Ok(None);
        };
        if made.request != self.request {
            return Err(Failure::conflict(format!(
                "this Idempotency-Key made machine {} from another request: use a new key",
                made.machine
            )));
        }
        Ok(Some((*self.control.machine(&made.machine)?).clone()))
    }

    async fn slug(&self, edit: &mut Edit<'_>) -> Result<Slug> {
        let Some(name) = &self.body.name else { return free_slug(edit).await };
        let slug: Slug =
            name.parse().map_err(|error: mashines_fleet::id::BadId| Failure::invalid(error.to_string()))?;
        let view = self.control.view();
        if RESERVED.contains(&name.as_str()) || view.hosts.keys().any(|host| host.as_str() == name) {
            return Err(Failure::conflict(format!("the name {slug} is the platform's own: choose another")));
        }
        // Slugs and ids share the paths of the API.
        if name.parse::<MachineId>().is_ok() {
            return Err(Failure::invalid(format!(
                "the name {slug} looks like a machine's id: choose another"
            )));
        }
        let taken: Option<MachineId> = edit.private(Private::Slug(name)).await?;
        match taken {
            None => Ok(slug),
            Some(_) => Err(Failure::conflict(format!(
                "the name {slug} is taken: choose another, or none to get a free one"
            ))),
        }
    }

    fn pinned(&self, mounts: &[mashines_fleet::record::Mount]) -> Vec<HostId> {
        let view = self.control.view();
        mounts.iter().filter_map(|mount| view.volumes.get(&mount.volume)?.host.clone()).collect()
    }

    /// The host that was asked for.
    fn host(&self) -> Result<Option<HostId>> {
        let Some(name) = &self.body.host else { return Ok(None) };
        super::hosts::find(self.control, name).map(|host| Some(host.id.clone()))
    }

    async fn net(&self, edit: &mut Edit<'_>, id: &MachineId) -> Result<MachineNet> {
        let view = self.control.view();
        let config =
            view.config.as_ref().ok_or_else(|| Failure::internal("the fleet has no configuration"))?;
        let full = |prefix: Ipv6Network| {
            Failure::new(Kind::NoRoom, format!("the prefix {prefix} has no address to give"))
        };
        let ipv6 = random_in(config.prefix).ok_or_else(|| full(config.prefix))?;
        let private = self.caller.account.private_prefix;
        let private6 =
            random_private(private).ok_or_else(|| Failure::internal("the account's prefix is full"))?;
        edit.claim(Private::Address(ipv6), id)?.claim(Private::Address(private6), id)?;
        let entries = view.hosts.values().filter(|host| host.roles.contains(&HostRole::Entry));
        let with_door = entries.filter(|entry| !entry.public_ipv4.is_empty());
        let taken: Vec<&SharedPort> = view
            .machines
            .values()
            .filter(|m| m.state != MachineState::Destroyed)
            .filter_map(|m| m.net.ssh_port.as_ref())
            .collect();
        let ssh_port = free_port(with_door.map(|entry| &**entry), config.ssh_ports, &taken)?;
        if let Some(port) = &ssh_port {
            edit.claim(Private::Port(&port.entry, port.port), id)?;
        }
        let entry_ipv4 = ssh_port.as_ref().and_then(|port| {
            let of_entry = view.hosts.get(&port.entry)?.shared_ipv4();
            let account = &self.caller.account.id;
            free_address(of_entry, account, view.machines.values().map(|machine| &**machine))
        });
        if let Some(address) = entry_ipv4 {
            edit.claim(Private::EntryAddress(&self.caller.account.id, address), id)?;
        }
        Ok(MachineNet { ipv6, private6, mac: mac(id), ssh_port, entry_ipv4 })
    }
}

async fn free_slug(edit: &mut Edit<'_>) -> Result<Slug> {
    for _ in 0..16 {
        let name = random_slug();
        let taken: Option<MachineId> = edit.private(Private::Slug(&name)).await?;
        if taken.is_none() {
            return name.parse().map_err(|_| Failure::internal("a made-up name is none"));
        }
    }
    Err(Failure::conflict("no free name was found by chance: choose one"))
}

fn digest(host: &Host, image: &mashines_fleet::id::ImageName) -> Result<String> {
    let found = host.images.iter().find(|held| held.name == *image);
    found
        .map(|held| held.digest.clone())
        .ok_or_else(|| Failure::internal(format!("{} lost the image {image} meanwhile: try again", host.id)))
}

/// The lowest free port of the entry with the most free ones; none when no entry has a public IPv4 address. Ports of destroyed
/// machines are free again, but a claim in the store has the last word.
fn free_port<'a>(
    entries: impl Iterator<Item = &'a Host>,
    (first, last): (u16, u16),
    taken: &[&SharedPort],
) -> Result<Option<SharedPort>> {
    let mut none = true;
    let mut best: Option<(usize, SharedPort)> = None;
    for entry in entries {
        none = false;
        let here: Vec<u16> =
            taken.iter().filter(|port| port.entry == entry.id).map(|port| port.port).collect();
        let mut free = (first..=last).filter(|port| !here.contains(port));
        let Some(port) = free.next() else { continue };
        if best.as_ref().is_none_or(|(least, _)| here.len() < *least) {
            best = Some((here.len(), SharedPort { entry: entry.id.clone(), port }));
        }
    }
    match (best, none) {
        (Some((_, port)), _) => Ok(Some(port)),
        (None, true) => Ok(None),
        (None, false) => Err(Failure::new(
            Kind::NoRoom,
            format!(
                "all shared IPv4 ports {first} to {last} are taken: add an entry, widen the range, or destroy machines"
            ),
        )),
    }
}

/// Of an entry's shared addresses, one that no machine of the account has: the one with the fewest machines of others. None when the
/// account has a machine at each.
fn free_address<'a>(
    shared: &[Ipv4Addr],
    account: &AccountId,
    machines: impl Iterator<Item = &'a Machine>,
) -> Option<Ipv4Addr> {
    let mut users: BTreeMap<Ipv4Addr, Option<usize>> =
        shared.iter().map(|address| (*address, Some(0))).collect();
    for machine in machines.filter(|machine| machine.state != MachineState::Destroyed) {
        let Some(count) = machine.net.entry_ipv4.and_then(|address| users.get_mut(&address)) else {
            continue;
        };
        *count = count.filter(|_| machine.account != *account).map(|count| count + 1);
    }
    users.into_iter().filter_map(|(address, count)| Some((count?, address))).min().map(|(_, address)| address)
}

/// For an unknown region, which there are.
fn check_region(control: &Control, region: Option<&str>) -> Result<()> {
    let Some(region) = region else { return Ok(()) };
    let view = control.view();
    let known: std::collections::BTreeSet<&str> =
        view.hosts.values().map(|host| host.region.as_str()).collect();
    if known.contains(region) {
        return Ok(());
    }
    let hint = did_you_mean(region, known.iter().copied());
    let list = known.into_iter().collect::<Vec<_>>().join(", ");
    Err(Failure::invalid(format!("there is no region {region:?}{hint} (regions: {list})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, machine};

    #[test]
    fn an_address_is_shared_between_accounts_and_never_within_one() {
        let pool: Vec<Ipv4Addr> =
            ["192.0.2.2", "192.0.2.3"].iter().map(|text| text.parse().unwrap()).collect();
        let at = |account: &str, address: usize| {
            let mut machine = machine(None);
            machine.account = account.parse().unwrap();
            machine.net.entry_ipv4 = Some(pool[address]);
            machine
        };
        let ann = "ann".parse().unwrap();
        let free = |machines: &[Machine]| free_address(&pool, &ann, machines.iter());
        assert_eq!(free(&[]), Some(pool[0]));
        assert_eq!(free(&[at("bob", 0)]), Some(pool[1]), "the one with the fewest");
        assert_eq!(free(&[at("bob", 1), at("cem", 1), at("bob", 0)]), Some(pool[0]));
        assert_eq!(free(&[at("ann", 0)]), Some(pool[1]));
        assert_eq!(free(&[at("ann", 0), at("ann", 1)]), None);
        assert_eq!(free_address(&[], &ann, [].into_iter()), None);
    }

    #[test]
    fn a_shared_port_is_given_once_and_running_out_is_told() {
        let entry = host("entry160");
        let port = |port| SharedPort { entry: "entry160".parse().unwrap(), port };
        let (a, b) = (port(2200), port(2201));
        let given = free_port([&entry].into_iter(), (2200, 2202), &[&a]).unwrap();
        assert_eq!(given, Some(port(2201)));
        assert!(free_port([&entry].into_iter(), (2200, 2201), &[&a, &b]).is_err());
        assert_eq!(free_port([].into_iter(), (2200, 2201), &[]).unwrap(), None);
    }
}
