//! Records as the API shows them.

use std::sync::Arc;
use std::time::Instant;

use mashines_fleet::api;
use mashines_fleet::id::{Epoch, HostId};
use mashines_fleet::record::{Host, Machine, Migration, Volume};
use mashines_fleet::view::View;

use super::auth::Caller;
use crate::control::Control;
use crate::scheduler::used;
use crate::time::{now, rfc3339};

fn region(view: &View, host: Option<&HostId>) -> String {
    host.and_then(|id| view.hosts.get(id)).map(|host| host.region.clone()).unwrap_or_default()
}

fn domain(view: &View) -> String {
    view.config.as_ref().map(|config| config.domain.clone()).unwrap_or_default()
}

/// A machine as the caller may see it. Whoever it is shared with to look at only does not see what it was given: environment and
/// files may hold secrets.
pub fn machine_for(control: &Control, caller: &Caller, record: &Machine) -> api::Machine {
    let mut shown = machine(&control.view(), record);
    shown.checks = control.checks.of(record, Instant::now());
    if record.account != caller.account.id {
        let share = record.share_with(&caller.account.id, now());
        shown.shared = share.map(|(role, end)| api::Shared { role, expires_at: end.map(rfc3339) });
        if !caller.standing_at(record).is_some_and(|standing| standing.may_operate()) {
            shown.config.env.clear();
            shown.config.files.clear();
            shown.config.other.clear();
        }
    }
    shown
}

/// A machine.
pub fn machine(view: &View, machine: &Machine) -> api::Machine {
    let place = machine.place.as_ref();
    let host = place.map(|place| place.host.clone());
    let domain = domain(view);
    api::Machine {
        id: machine.id.clone(),
        name: machine.slug.clone(),
        slug: machine.slug.clone(),
        app: machine.app.clone(),
        account: machine.account.clone(),
        state: machine.state,
        reason: machine.reason.clone(),
        region: region(view, host.as_ref()),
        host,
        epoch: place.map_or(Epoch(0), |place| place.epoch),
        instance_id: machine.instance_id.clone(),
        image_ref: api::ImageRef {
            repository: machine.config.image.clone(),
            digest: machine.image_digest.clone(),
        },
        ipv6: machine.net.ipv6,
        private_ip: machine.net.private6,
        fqdn: format!("{}.{domain}", machine.slug),
        ssh: machine.net.ssh_port.as_ref().map(|door| api::SshDoor {
            ipv4_host: format!("{}.{domain}", door.entry),
            ipv4: view.hosts.get(&door.entry).and_then(|entry| entry.own_ipv4()).into_iter().collect(),
            port: door.port,
        }),
        entry_ipv4: machine.net.entry_ipv4,
        created_at: rfc3339(machine.created_at),
        updated_at: rfc3339(machine.updated_at),
        config: machine.config.clone(),
        events: machine.events.clone(),
        checks: Vec::new(),
        migration: view.migration_of(&machine.id).map(|migration| migration.id.clone()),
        shared: None,
    }
}

/// A migration.
pub fn migration(view: &View, migration: &Migration) -> api::Migration {
    let machine = view.machines.get(&migration.machine);
    api::Migration {
        id: migration.id.clone(),
        machine: migration.machine.clone(),
        slug: machine.map(|machine| machine.slug.to_string()).unwrap_or_default(),
        source: migration.source.clone(),
        destination: migration.destination.clone(),
        epoch: migration.epoch,
        step: migration.step,
        done: migration.step.is_final(),
        phase: migration.phase.clone(),
        error: migration.error.clone(),
        figures: migration.figures.clone(),
        requested_by: migration.requested_by.clone(),
        created_at: rfc3339(migration.created_at),
        updated_at: rfc3339(migration.updated_at),
    }
}

/// A volume.
pub fn volume(view: &View, volume: &Volume) -> api::Volume {
    let state = match (&volume.attached_machine, &volume.host) {
        (Some(_), _) => "attached",
        (None, Some(_)) => "detached",
        (None, None) => "created",
    };
    api::Volume {
        id: volume.id.clone(),
        name: volume.name.clone(),
        app: volume.app.clone(),
        state: state.to_owned(),
        size_gb: volume.size_mib.div_ceil(1024),
        size_mib: volume.size_mib,
        region: region(view, volume.host.as_ref()),
        host: volume.host.clone(),
        attached_machine_id: volume.attached_machine.clone(),
        created_at: rfc3339(volume.created_at),
    }
}

/// A host.
pub fn host(control: &Control, host: &Arc<Host>) -> api::Host {
    let view = control.view();
    let here = view.machines.values().filter(|machine| {
        machine.state != mashines_fleet::record::MachineState::Destroyed
            && machine.place.as_ref().is_some_and(|place| place.host == host.id)
    });
    api::Host {
        id: host.id.clone(),
        roles: host.roles.clone(),
        region: host.region.clone(),
        capacity: host.capacity,
        used: used(&view, &host.id),
        images: host.images.clone(),
        cordoned: host.cordoned,
        alive: control.hosts.alive(host),
        seen_at: host.seen_at,
        underlay: host.underlay,
        machines: here.map(|machine| machine.id.clone()).collect(),
    }
}

/// An account.
pub fn account(view: &View, account: &mashines_fleet::record::Account) -> api::Account {
    api::Account {
        id: account.id.clone(),
        ssh_keys: account.ssh_keys.clone(),
        admin: account.admin,
        domain: domain(view),
        ssh_ca: view.config.as_ref().and_then(|config| config.ssh_ca.clone()),
    }
}
