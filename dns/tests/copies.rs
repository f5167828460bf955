//! Copies for secondaries, whatever changes: one made from the one before is as good as one made anew, the difference leads from one to the
//! other, and the chain of NSEC goes through every name that is signed, once around.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{config, entry, machine, put, zone_keys};
use mashines_dns::name::Name;
use mashines_dns::transfer::copy::{Wire, ZoneCopy};
use mashines_dns::transfer::journal::{Published, Since};
use mashines_dns::zone::Projector;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::{Batch, Change, View};
use proptest::prelude::*;
use serde_json::json;

const RRSIG: u16 = 46;
const NSEC: u16 = 47;

/// A record's name, type, and data.
fn parts(record: &[u8]) -> (Name, u16, &[u8]) {
    let mut end = 0;
    while record[end] != 0 {
        end += 1 + usize::from(record[end]);
    }
    let (name, rest) = record.split_at(end + 1);
    (Name::from_wire(name).unwrap(), u16::from_be_bytes([rest[0], rest[1]]), &rest[10..])
}

fn records(copy: &ZoneCopy) -> Vec<Wire> {
    let mut all = Vec::new();
    let mut place = None;
    while let Some((next, record)) = copy.after(place.as_ref()) {
        all.push(Arc::clone(record));
        place = Some(next);
    }
    all
}

fn sorted(mut records: Vec<Wire>) -> Vec<Wire> {
    records.sort();
    records
}

/// Signatures differ from one making to the next.
fn unsigned(copy: &ZoneCopy) -> Vec<Wire> {
    sorted(records(copy).into_iter().filter(|record| parts(record).1 != RRSIG).collect())
}

fn assert_chain(copy: &ZoneCopy) {
    let all = records(copy);
    let chain: BTreeMap<Name, Name> = all
        .iter()
        .map(|record| parts(record))
        .filter(|(_, kind, _)| *kind == NSEC)
        .map(|(name, _, data)| {
            let mut end = 0;
            while data[end] != 0 {
                end += 1 + usize::from(data[end]);
            }
            (name, Name::from_wire(&data[..=end]).unwrap())
        })
        .collect();
    let names: Vec<&Name> = chain.keys().collect();
    assert_eq!(names.first(), Some(&copy.apex()));
    for (at, name) in names.iter().enumerate() {
        assert_eq!(&chain[*name], names[(at + 1) % names.len()]);
    }
    // Every set is signed but glue and delegations, and these have no signature at all.
    for (name, kind, _) in all.iter().map(|record| parts(record)).filter(|(_, kind, _)| *kind != RRSIG) {
        let covered = all.iter().any(|record| {
            let (owner, is, data) = parts(record);
            owner == name && is == RRSIG && data[..2] == kind.to_be_bytes()
        });
        let text = name.to_string();
        let unsigned = text == "ns.cut.mashine.dev." || text == "cut.mashine.dev." && kind == 2;
        assert_eq!(covered, !unsigned, "{text} {kind}");
    }
}

fn change(id: u64, is_there: bool, text: u8, cname: bool) -> Change {
    let own = match cname {
        true => json!({"name": "x.y", "type": "CNAME", "ttl": 60, "data": format!("t{text}.example.")}),
        false => json!({"name": "x.y", "type": "TXT", "ttl": 60, "data": format!("\"{text}\"")}),
    };
    let mut change =
        machine(id, &format!("m{id}"), &format!("2001:db8:160::{id}"), json!({"records": [own]}));
    if !is_there {
        change.value = None;
    }
    change
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_copy_follows_its_zone(steps in prop::collection::vec((0u64..6, any::<bool>(), 0u8..3, any::<bool>(), 0u8..12), 1..14)) {
        let secret = EntrySecret::random();
        let mut fleet = config("2001:db8:160::/48");
        fleet.value.as_mut().unwrap()["zones"] = json!([{"name": "mashine.dev", "records": [
            {"name": "cut", "type": "NS", "ttl": 60, "data": "ns.cut.mashine.dev."},
            {"name": "ns.cut", "type": "A", "ttl": 60, "data": "192.0.2.1"},
        ]}]);
        let keys = || zone_keys("mashine.dev", &["active"], &secret);
        let mut view = View::default();
        view.apply(&Batch { revision: 1, changes: vec![fleet, entry(), keys()] });
        let mut projector = Projector::default();
        let apex: Name = "mashine.dev".parse().unwrap();
        let mut period = 1;
        let mut published: Option<Published> = None;
        let mut history: Vec<Arc<ZoneCopy>> = Vec::new();
        for (revision, (id, is_there, text, cname, what)) in (2..).zip(steps) {
            let changes = match what {
                0 => vec![keys()],
                1 => vec![put("kinds-to-come/x".into(), json!({}))],
                _ => vec![change(id, is_there, text, cname)],
            };
            period += u64::from(what == 2);
            view.apply(&Batch { revision, changes });
            projector.apply(&Arc::new(view.clone()), Some(&secret));
            let zones = projector.zones();
            let zone = zones.zone(&apex).unwrap();
            let old = history.last().cloned();
            let new = Arc::new(ZoneCopy::of(&zones, zone, period, old.as_deref()).unwrap());
            let anew = ZoneCopy::of(&zones, zone, period, None).unwrap();
            prop_assert_eq!(unsigned(&new), unsigned(&anew));
            assert_chain(&new);
            if let Some(old) = &old {
                let difference = new.since(old);
                let mut led = records(old);
                for gone in &difference.removed {
                    let at = led.iter().position(|record| record == gone);
                    prop_assert!(at.is_some(), "what is to be removed is there");
                    led.remove(at.unwrap());
                }
                led.extend(difference.added.iter().cloned());
                prop_assert_eq!(sorted(led), sorted(records(&new)));
                prop_assert!(new.serial() != old.serial() || difference.removed.len() == difference.added.len());
            }
            published = Some(match published {
                Some(known) if known.copy().serial() != new.serial() => known.then(Arc::clone(&new)),
                Some(known) => known,
                None => Published::first(Arc::clone(&new)),
            });
            if history.last().is_none_or(|last| last.serial() != new.serial()) {
                history.push(new);
            }
        }
        // Whoever has any version gets from it to the newest.
        let published = published.unwrap();
        for old in &history {
            match published.since(old.serial()) {
                Since::Nothing => prop_assert_eq!(old.serial(), published.copy().serial()),
                Since::Everything => {}
                Since::Changes(steps) => {
                    let mut led = sorted(records(old));
                    let mut removes = false;
                    for record in steps {
                        // SOA, what is removed, SOA, what is added, and so on.
                        if parts(&record).1 == 6 {
                            removes = !removes;
                        } else if removes {
                            let at = led.iter().position(|known| *known == record);
                            prop_assert!(at.is_some());
                            led.remove(at.unwrap());
                        } else {
                            led.push(record);
                        }
                    }
                    prop_assert_eq!(sorted(led), sorted(records(published.copy())));
                }
            }
        }
        prop_assert!(matches!(published.since(published.copy().serial().wrapping_add(1)), Since::Nothing));
        prop_assert!(matches!(published.since(published.copy().serial().wrapping_sub(1_000_000)), Since::Everything));
    }
}
