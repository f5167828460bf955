//! The projection: the same names whichever way they came about, in canonical order, and all of them found.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{config, entry, fleet, machine, view};
use mashines_dns::kind;
use mashines_dns::name::{Name, Path};
use mashines_dns::zone::{Lookup, Owner, Projector, Touched, Zones};
use mashines_fleet::view::{Batch, Change, View};
use proptest::prelude::*;
use serde_json::json;

fn project(view: &Arc<View>) -> Zones {
    let mut projector = Projector::default();
    projector.apply(view, None);
    projector.zones()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Each name with its sets as text.
fn listing(zones: &Zones) -> Vec<String> {
    let mut lines = Vec::new();
    for zone in zones.iter() {
        for owner in zones.walk(zone) {
            let sets = owner.sets.iter().filter(|set| set.kind != kind::SOA);
            let sets =
                sets.map(|set| format!("{} {} {:?}", set.kind, set.ttl, set.data.iter().collect::<Vec<_>>()));
            lines.push(format!("{} {} {:?}", zone.apex(), owner.name, sets.collect::<Vec<_>>()));
        }
    }
    lines
}

fn serials(zones: &Zones) -> Vec<u32> {
    zones.iter().map(|zone| zone.serial()).collect()
}

/// A step of the fleet's life: which machine, with what slug, and what becomes of it.
fn steps() -> impl Strategy<Value = Vec<Change>> {
    let extra = prop::sample::select(vec![
        json!({}),
        json!({"state": "stopped", "desired": "stopped"}),
        json!({"desired": "destroyed"}),
        json!({"host_key_public": common::HOST_KEY}),
        json!({"records": [{"name": "x.y", "type": "TXT", "ttl": 60, "data": "\"a\""}]}),
        json!({"records": [{"name": "*", "type": "A", "ttl": 60, "data": "192.0.2.1"},
                           {"name": "", "type": "CNAME", "ttl": 60, "data": "a.example."}]}),
    ]);
    let one = (10u64..16, 10u64..16, extra, any::<bool>()).prop_map(|(id, slug, extra, deleted)| {
        let mut change = machine(id, &format!("m{slug}"), &format!("2001:db8:160::{slug}"), extra);
        if deleted {
            change.value = None;
        }
        change
    });
    let challenge = (0u64..4, 10u64..16, any::<bool>()).prop_map(|(id, slug, deleted)| {
        let name = if slug == 15 { "www.example.org".to_owned() } else { format!("m{slug}.mashine.dev") };
        let value = json!({"name": name, "show": {"type": "dns01", "value": "text"}, "expires_at": 1});
        Change { key: format!("challenges/{id:026}"), value: (!deleted).then_some(value) }
    });
    prop::collection::vec(prop_oneof![4 => one, 1 => challenge], 1..40)
}

/// Two living machines never have the same slug or address: control sees to it.
fn is_possible(view: &View) -> bool {
    let living = view.machines.values().filter(|m| m.desired != mashines_fleet::record::Desired::Destroyed);
    let (mut slugs, mut addresses) = (HashSet::new(), HashSet::new());
    living.into_iter().all(|m| slugs.insert(m.slug.as_str()) && addresses.insert(m.net.ipv6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_gives_the_same_names_as_all_at_once(changes in steps(), is_looked_at in prop::collection::vec(any::<bool>(), 40)) {
        let mut view = (*fleet()).clone();
        let mut projector = Projector::default();
        projector.apply(&Arc::new(view.clone()), None);
        let mut unseen = 0;
        for (change, is_looked_at) in changes.into_iter().zip(is_looked_at) {
            let mut next = view.clone();
            next.apply(&Batch { revision: view.revision + 1, changes: vec![change] });
            if !is_possible(&next) {
                continue;
            }
            view = next;
            // Changes come faster than they are looked at.
            unseen += 1;
            if !is_looked_at {
                continue;
            }
            let view = Arc::new(view.clone());
            let before = projector.zones();
            let applied = projector.apply(&view, None);
            let (now, anew) = (projector.zones(), project(&view));
            prop_assert_eq!(listing(&now), listing(&anew));
            let (moved, other) = (serials(&before) != serials(&now), listing(&before) != listing(&now));
            prop_assert!(moved || !other, "the serial moves with the content, {:?}", applied.touched);
            // Several at once may take a name from one machine and give it to another that has the same to say.
            prop_assert!(other || !moved || unseen > 1, "and not without it, {:?}", applied.touched);
            unseen = 0;
        }
    }

    #[test]
    fn names_come_in_canonical_order_and_each_is_found(changes in steps()) {
        let mut view = (*fleet()).clone();
        for change in changes {
            let mut next = view.clone();
            next.apply(&Batch { revision: view.revision + 1, changes: vec![change] });
            if is_possible(&next) {
                view = next;
            }
        }
        let zones = project(&Arc::new(view));
        for zone in zones.iter() {
            let owners: Vec<Owner<'_>> = zones.walk(zone).collect();
            prop_assert!(owners.is_sorted_by(|one, two| one.name < two.name));
            prop_assert_eq!(&owners[0].name, zone.apex());
            for owner in &owners {
                let Lookup::Found { node, .. } = zones.lookup(&Path::new(owner.name.as_wire()), kind::A) else {
                    return Err(TestCaseError::fail(format!("{} is not found", owner.name)));
                };
                let kinds = |sets: &[mashines_dns::rrset::RrSet<'_>]| sets.iter().map(|set| set.kind).collect::<Vec<_>>();
                prop_assert_eq!(kinds(&node.sets()), kinds(&owner.sets), "{}", &owner.name);
                prop_assert_eq!(kinds(&zones.owner(zone, &owner.name).unwrap().sets), kinds(&owner.sets));
                for set in &owner.sets {
                    prop_assert!(set.data.iter().is_sorted(), "canonical order of data");
                }
            }
        }
    }
}

#[test]
fn what_changes_no_name_moves_no_serial() {
    let mut projector = Projector::default();
    let before = fleet();
    projector.apply(&before, None);
    let serial = serials(&projector.zones());
    let mut next = |changes: Vec<Change>| {
        let mut view = (*before).clone();
        view.apply(&Batch { revision: before.revision + 1, changes });
        let touched = projector.apply(&Arc::new(view), None).touched;
        (touched, serials(&projector.zones()))
    };
    let mut report = entry();
    report.value.as_mut().unwrap()["seen_at"] = json!(9);
    assert_eq!(next(vec![report]), (vec![], serial.clone()), "a host's report");
    let stopped = machine(2, "db", "2001:db8:160::2", json!({"state": "stopped", "desired": "stopped"}));
    assert_eq!(next(vec![stopped]), (vec![], serial.clone()), "a machine that sleeps");
    let (touched, after) = next(vec![machine(3, "new", "2001:db8:160::3", json!({}))]);
    assert_eq!(touched[0], Touched::Below(name("new.mashine.dev")));
    assert!(after.iter().all(|serial| *serial == 8), "{after:?}: the revision's low 32 bits");
    let mut moved = entry();
    moved.value.as_mut().unwrap()["public_ipv4"] = json!(["198.51.100.161"]);
    assert!(!next(vec![moved]).0.is_empty(), "an entry's new address");
}

#[test]
fn records_that_cannot_be_served_are_told_and_the_rest_is_served() {
    let records = json!({"records": [
        {"name": "", "type": "CNAME", "ttl": 60, "data": "a.example."},
        {"name": "a", "type": "NS", "ttl": 60, "data": "ns.example."},
        {"name": "b", "type": "A", "ttl": 60, "data": "nonsense"},
        {"name": "c", "type": "CNAME", "ttl": 60, "data": "a.example."},
        {"name": "c", "type": "TXT", "ttl": 60, "data": "x"},
        {"name": "mail", "type": "MX", "ttl": 300, "data": "10 mail.example."},
    ]});
    let view = view(vec![config("2001:db8:160::/48"), machine(1, "web", "2001:db8:160::1", records)]);
    let mut projector = Projector::default();
    let complaints = projector.apply(&view, None).complaints;
    assert_eq!(complaints.len(), 4, "{complaints:?}");
    let zones = projector.zones();
    let zone = zones.zone(&name("mashine.dev")).unwrap();
    assert_eq!(zones.owner(zone, &name("mail.web.mashine.dev")).unwrap().sets[0].kind, kind::MX);
    assert_eq!(zones.owner(zone, &name("c.web.mashine.dev")).unwrap().sets[0].kind, kind::TXT);
}

#[test]
fn a_hundred_thousand_machines_are_projected_in_a_moment_and_one_more_at_once() {
    let mut changes = vec![config("2001:db8:160::/48"), entry()];
    changes.extend((0..100_000).map(|n| {
        machine(n, &format!("m{n}"), &format!("2001:db8:160::{:x}:{:x}", n >> 16, n & 0xffff), json!({}))
    }));
    let big = view(changes);
    let mut projector = Projector::default();
    let since = Instant::now();
    assert_eq!(projector.apply(&big, None).complaints, []);
    // Unoptimized and on a busy machine; it is a guard against quadratic projections, not a figure.
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    let mut next = (*big).clone();
    next.apply(&Batch { revision: big.revision + 1, changes: vec![web_at(100_001)] });
    let next = Arc::new(next);
    let since = Instant::now();
    let applied = projector.apply(&next, None);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(applied.touched.len(), 2, "{applied:?}");
}

fn web_at(id: u64) -> Change {
    machine(id, "brand-new", "2001:db8:160::ffff:1", json!({}))
}
