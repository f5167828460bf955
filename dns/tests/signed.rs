//! What signatures add to an answer, and when there is none.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{World, authority, config, every_shape, signed, view, web, zone_keys};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mashines_dns::answer::Transport;
use mashines_fleet::sealed::EntrySecret;

/// A question that asks for signatures, perhaps with the bit for compact answers.
fn question(name: &str, kind: RecordType, compact: bool) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    edns.set_dnssec_ok(true);
    query.set_edns(edns);
    let mut bytes = query.to_vec().unwrap();
    if compact {
        // The flags are four bytes before the end: the OPT has no options.
        let at = bytes.len() - 4;
        bytes[at] |= 0x40;
    }
    bytes
}

fn ask(world: &World, name: &str, kind: RecordType, transport: Transport) -> Message {
    Message::from_vec(&world.answer(&question(name, kind, false), transport).unwrap()).unwrap()
}

fn kinds(records: &[hickory_proto::rr::Record]) -> Vec<u16> {
    records.iter().map(|record| record.record_type().into()).collect()
}

const RRSIG: u16 = 46;

#[test]
fn a_denial_is_nxdomain_to_who_takes_it_and_to_who_asks_for_no_proof() {
    let secret = EntrySecret::random();
    let world = World::new(&signed(&secret), Some(&secret));
    let name = "nope.mashine.dev.";
    let proven = ask(&world, name, RecordType::A, Transport::Udp);
    assert_eq!(proven.response_code, ResponseCode::NoError);
    assert_eq!(kinds(&proven.authorities), [6, RRSIG, 47, RRSIG]);
    let compact = world.answer(&question(name, RecordType::A, true), Transport::Udp).unwrap();
    let compact = Message::from_vec(&compact).unwrap();
    assert_eq!(compact.response_code, ResponseCode::NXDomain);
    assert_eq!(kinds(&compact.authorities), [6, RRSIG, 47, RRSIG]);
    let mut plain = Message::query();
    plain.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let plain = world.answer(&plain.to_vec().unwrap(), Transport::Udp).unwrap();
    let plain = Message::from_vec(&plain).unwrap();
    assert_eq!((plain.response_code, kinds(&plain.authorities)), (ResponseCode::NXDomain, vec![6]));
    let absurd = ask(&world, name, RecordType::from(128), Transport::Udp);
    assert_eq!(absurd.response_code, ResponseCode::FormErr, "NXNAME cannot be asked for");
}

#[test]
fn names_that_are_made_up_do_not_use_up_the_signatures_of_those_that_exist() {
    let secret = EntrySecret::random();
    let mut world = World::new(&signed(&secret), Some(&secret));
    world.authority = authority(10);
    let mut truncated = 0;
    for n in 0..40 {
        let reply = ask(&world, &format!("nope{n}.mashine.dev."), RecordType::A, Transport::Udp);
        truncated += usize::from(reply.truncation);
    }
    assert!(truncated >= 20, "{truncated} of 40 were told to come by TCP");
    let last = ask(&world, "nope99.mashine.dev.", RecordType::A, Transport::Tcp);
    assert_eq!((last.response_code, last.authorities.len()), (ResponseCode::ServFail, 0));
    let ours = ask(&world, "web.mashine.dev.", RecordType::AAAA, Transport::Udp);
    assert_eq!(kinds(&ours.answers), [28, RRSIG]);
}

#[test]
fn a_zone_whose_keys_cannot_be_opened_is_not_served_unsigned() {
    let secret = EntrySecret::random();
    let fleet = signed(&secret);
    for other in [None, Some(EntrySecret::random())] {
        let world = World::new(&fleet, other.as_ref());
        let reply = ask(&world, "web.mashine.dev.", RecordType::AAAA, Transport::Udp);
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    }
    let unsigned = World::new(&view(every_shape()), None);
    let reply = ask(&unsigned, "web.mashine.dev.", RecordType::AAAA, Transport::Udp);
    assert_eq!(kinds(&reply.answers), [28], "no keys, no signatures");
}

#[test]
fn during_a_rollover_all_keys_sign_the_keys_and_the_active_one_the_rest() {
    let secret = EntrySecret::random();
    for (states, of_keys, of_data) in [
        (&["active"][..], 1, 1),
        (&["active", "published"], 2, 1),
        (&["retired", "active"], 2, 1),
        (&["published"], 1, 1),
    ] {
        let fleet = view(vec![config("2001:db8:160::/48"), web(), zone_keys("mashine.dev", states, &secret)]);
        let world = World::new(&fleet, Some(&secret));
        let count = |name, kind| {
            let reply = ask(&world, name, kind, Transport::Tcp);
            let kinds = kinds(&reply.answers);
            (
                kinds.iter().filter(|kind| **kind != RRSIG).count(),
                kinds.iter().filter(|kind| **kind == RRSIG).count(),
            )
        };
        assert_eq!(count("mashine.dev.", RecordType::from(48)), (states.len(), of_keys), "{states:?}");
        assert_eq!(count("web.mashine.dev.", RecordType::AAAA), (1, of_data), "{states:?}");
    }
}

#[test]
fn a_signature_is_asked_for_alone_and_any_brings_one_set_with_it() {
    let secret = EntrySecret::random();
    let world = World::new(&signed(&secret), Some(&secret));
    assert_eq!(
        kinds(&ask(&world, "web.mashine.dev.", RecordType::from(RRSIG), Transport::Udp).answers),
        [RRSIG]
    );
    assert_eq!(kinds(&ask(&world, "web.mashine.dev.", RecordType::ANY, Transport::Udp).answers), [1, RRSIG]);
    assert_eq!(
        kinds(&ask(&world, "web.mashine.dev.", RecordType::from(47), Transport::Udp).answers),
        [47, RRSIG]
    );
}
