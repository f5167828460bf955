//! What a resolver sees: each case is a question as bytes and what must come back, checked by decoding the answer.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{World, config, entry, fleet, machine, view, web};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use mashines_dns::answer::Transport;
use mashines_fleet::view::View;
use serde_json::json;

fn question(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn ask_message(view: &Arc<View>, query: &Message, transport: Transport) -> Message {
    let reply = World::new(view, None).answer(&query.to_vec().unwrap(), transport).expect("an answer");
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.id, query.id);
    reply
}

fn ask(view: &Arc<View>, name: &str, kind: RecordType) -> Message {
    ask_message(view, &question(name, kind), Transport::Udp)
}

/// `rcode aa`, then the answers' data, sorted.
fn told(reply: &Message) -> (ResponseCode, bool, Vec<String>) {
    let mut data: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    (reply.response_code, reply.authoritative, data)
}

fn is_nodata(reply: &Message) -> bool {
    negative(reply, ResponseCode::NoError)
}

fn is_nxdomain(reply: &Message) -> bool {
    negative(reply, ResponseCode::NXDomain)
}

fn negative(reply: &Message, code: ResponseCode) -> bool {
    reply.response_code == code
        && reply.authoritative
        && reply.answers.is_empty()
        && reply.authorities.iter().map(|r| (r.record_type(), r.ttl)).eq([(RecordType::SOA, 5)])
}

#[test]
fn a_machine_has_its_address_its_entrys_address_and_its_key() {
    let fleet = fleet();
    let yes = |data: &[&str]| (ResponseCode::NoError, true, data.iter().map(ToString::to_string).collect());
    assert_eq!(told(&ask(&fleet, "web.mashine.dev.", RecordType::AAAA)), yes(&["2001:db8:160::1"]));
    assert_eq!(told(&ask(&fleet, "web.mashine.dev.", RecordType::A)), yes(&["198.51.100.160"]));
    assert_eq!(ask(&fleet, "web.mashine.dev.", RecordType::SSHFP).answers.len(), 1);
    assert!(is_nodata(&ask(&fleet, "db.mashine.dev.", RecordType::A)), "no shared port, no A");
    assert!(is_nodata(&ask(&fleet, "web.mashine.dev.", RecordType::MX)));
    assert!(is_nodata(&ask(&fleet, "web.mashine.dev.", RecordType::CAA)), "Let's Encrypt needs the SOA here");
    assert!((30..=60).contains(&ask(&fleet, "web.mashine.dev.", RecordType::AAAA).answers[0].ttl));
}

#[test]
fn entries_and_the_apex_are_named() {
    let fleet = fleet();
    for name in ["mashine.dev.", "entry160.mashine.dev."] {
        assert_eq!(told(&ask(&fleet, name, RecordType::A)).2, ["198.51.100.160"], "{name}");
        assert_eq!(told(&ask(&fleet, name, RecordType::AAAA)).2, ["2001:db8:160::fff1"], "{name}");
    }
    let servers = ask(&fleet, "mashine.dev.", RecordType::NS);
    assert_eq!(told(&servers).2, ["a.ns.mashine.dev.", "ns.example.net.", "ns1.mashine.dev."]);
    let glue: Vec<String> = servers.additionals.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(
        glue,
        ["a.ns.mashine.dev.", "ns1.mashine.dev.", "ns1.mashine.dev."],
        "none for a foreign name"
    );
    let soa = ask(&fleet, "mashine.dev.", RecordType::SOA);
    assert!(told(&soa).2[0].contains(" 7 "), "the revision's low 32 bits: {:?}", told(&soa));
}

#[test]
fn names_that_do_not_exist_are_told_from_names_without_data() {
    let fleet = fleet();
    for name in ["nope.mashine.dev.", "x.nope.mashine.dev.", "*.mashine.dev.", "_acme-challenge.mashine.dev."]
    {
        assert!(is_nxdomain(&ask(&fleet, name, RecordType::AAAA)), "{name}");
    }
    assert!(is_nodata(&ask(&fleet, "ns.mashine.dev.", RecordType::A)), "an empty non-terminal");
    assert!(is_nodata(&ask(&fleet, "ns.mashine.dev.", RecordType::ANY)), "an empty non-terminal");
}

#[test]
fn destroyed_machines_have_no_name_and_stopped_ones_keep_theirs() {
    let at = "2001:db8:160::5";
    for (extra, there) in [
        (json!({"state": "stopped", "desired": "stopped"}), true),
        (json!({"state": "failed"}), true),
        (json!({"desired": "destroyed"}), false),
        (json!({"state": "destroying", "desired": "destroyed"}), false),
        (json!({"state": "destroyed", "desired": "destroyed"}), false),
    ] {
        let view = view(vec![config("2001:db8:160::/48"), machine(5, "job", at, extra.clone())]);
        let forward = ask(&view, "job.mashine.dev.", RecordType::AAAA);
        let reverse = ask(&view, &pointer_name("5"), RecordType::PTR);
        assert_eq!(forward.answers.len(), usize::from(there), "{extra}");
        assert_eq!(reverse.answers.len(), usize::from(there), "{extra}");
    }
}

#[test]
fn a_name_given_again_is_the_living_machines() {
    let dead = machine(9, "job", "2001:db8:160::9", json!({"state": "destroyed", "desired": "destroyed"}));
    let alive = machine(3, "job", "2001:db8:160::3", json!({}));
    let view = view(vec![config("2001:db8:160::/48"), alive, dead]);
    assert_eq!(told(&ask(&view, "job.mashine.dev.", RecordType::AAAA)).2, ["2001:db8:160::3"]);
}

#[test]
fn a_machine_cannot_take_a_name_of_the_platform() {
    let thief = machine(7, "ns1", "2001:db8:160::7", json!({}));
    let view = view(vec![config("2001:db8:160::/48"), entry(), thief]);
    assert_eq!(told(&ask(&view, "ns1.mashine.dev.", RecordType::AAAA)).2, ["2001:db8::53"]);
}

fn pointer_name(last: &str) -> String {
    format!("{last}.{}0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", "0.".repeat(19))
}

#[test]
fn the_reverse_zone_points_back_and_knows_its_empty_non_terminals() {
    let fleet = fleet();
    assert_eq!(told(&ask(&fleet, &pointer_name("1"), RecordType::PTR)).2, ["web.mashine.dev."]);
    assert!(is_nxdomain(&ask(&fleet, &pointer_name("e"), RecordType::PTR)));
    assert!(is_nodata(&ask(&fleet, "0.0.0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::PTR)));
    assert!(is_nxdomain(&ask(&fleet, "1.0.0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::PTR)));
    assert_eq!(ask(&fleet, "0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::SOA).answers.len(), 1);
    assert!(is_nodata(&ask(&fleet, "0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::PTR)));
    let above = ask(&fleet, "6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.", RecordType::PTR);
    assert_eq!(above.response_code, ResponseCode::Refused, "above the zone's apex");
}

#[test]
fn a_prefix_between_nibbles_is_served_as_several_zones() {
    let view = view(vec![config("2001:db8:160::/46"), web()]);
    for nibble in 0..4 {
        let name = format!("{nibble}.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.");
        assert_eq!(ask(&view, &name, RecordType::SOA).answers.len(), 1, "{name}");
    }
    assert_eq!(told(&ask(&view, &pointer_name("1"), RecordType::PTR)).2, ["web.mashine.dev."]);
}

#[test]
fn what_is_not_ours_is_refused() {
    let fleet = fleet();
    for name in ["example.org.", "dev.", ".", "notmashine.dev.", "mashine.dev.evil."] {
        let reply = ask(&fleet, name, RecordType::A);
        assert_eq!((reply.response_code, reply.authoritative), (ResponseCode::Refused, false), "{name}");
    }
    let transfer = question("mashine.dev.", RecordType::AXFR);
    assert_eq!(ask_message(&fleet, &transfer, Transport::Tcp).response_code, ResponseCode::Refused);
    let empty = Arc::new(View::default());
    assert_eq!(ask(&empty, "web.mashine.dev.", RecordType::A).response_code, ResponseCode::Refused);
}

#[test]
fn the_question_comes_back_in_its_letter_case() {
    let reply = ask(&fleet(), "wEb.MaShInE.dEv.", RecordType::AAAA);
    assert_eq!(told(&reply).2, ["2001:db8:160::1"]);
    assert_eq!(reply.queries[0].name().to_ascii(), "wEb.MaShInE.dEv.");
    assert_eq!(reply.answers[0].name.to_ascii(), "wEb.MaShInE.dEv.");
}

#[test]
fn any_gets_one_rrset() {
    let reply = ask(&fleet(), "web.mashine.dev.", RecordType::ANY);
    assert_eq!(reply.answers.iter().map(|r| r.record_type()).collect::<Vec<_>>(), [RecordType::A]);
}

#[test]
fn edns_is_answered_exactly_when_asked_with() {
    let fleet = fleet();
    let mut query = question("web.mashine.dev.", RecordType::AAAA);
    assert!(ask_message(&fleet, &query, Transport::Udp).edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    query.set_edns(edns.clone());
    let reply = ask_message(&fleet, &query, Transport::Udp);
    assert_eq!(reply.edns.as_ref().unwrap().max_payload(), 1232);
    edns.set_version(1);
    query.set_edns(edns);
    let reply = ask_message(&fleet, &query, Transport::Udp);
    // Code 16 is BADVERS here and BADSIG beside a TSIG; the decoder calls it the latter.
    assert_eq!((u16::from(reply.response_code), reply.answers.len()), (16, 0));
    assert_eq!(reply.edns.unwrap().version(), 0);
}

fn chaos(name: &str) -> Message {
    let mut chaos = question(name, RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    chaos
}

#[test]
fn the_server_tells_who_it_is_only_when_it_is_configured_to() {
    let ask = |name: &str| ask_message(&fleet(), &chaos(name), Transport::Udp);
    for (name, said) in
        [("version.bind.", "mashines"), ("id.server.", "entry160"), ("hostname.bind.", "entry160")]
    {
        let reply = ask(name);
        assert_eq!(told(&reply), (ResponseCode::NoError, true, vec![said.to_owned()]), "{name}");
        assert_eq!(reply.answers[0].dns_class, DNSClass::CH);
    }
    assert_eq!(ask("web.mashine.dev.").response_code, ResponseCode::Refused);
    let mut silent = World::new(&fleet(), None);
    silent.authority.version.clear();
    let reply = silent.answer(&chaos("version.bind.").to_vec().unwrap(), Transport::Udp).unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().response_code, ResponseCode::Refused);
}

/// A fleet whose apex has more entries than fit 1232 bytes.
fn many_entries() -> Arc<View> {
    let mut changes = vec![config("2001:db8:160::/48")];
    for n in 0..60 {
        let mut entry = entry();
        let value = entry.value.as_mut().unwrap();
        value["id"] = json!(format!("entry{n}"));
        value["public_ipv6"] = json!([format!("2001:db8:160::f{n}")]);
        entry.key = format!("hosts/entry{n}");
        changes.push(entry);
    }
    view(changes)
}

#[test]
fn an_answer_that_does_not_fit_is_truncated_and_whole_over_tcp() {
    let fleet = many_entries();
    let world = World::new(&fleet, None);
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(4096), 1232)] {
        let mut query = question("mashine.dev.", RecordType::AAAA);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            query.set_edns(edns);
        }
        let bytes = query.to_vec().unwrap();
        let reply = world.answer(&bytes, Transport::Udp).unwrap();
        assert!(reply.len() <= limit, "{} > {limit}", reply.len());
        let reply = Message::from_vec(&reply).unwrap();
        assert!(reply.truncation && reply.answers.is_empty());
        let whole = Message::from_vec(&world.answer(&bytes, Transport::Tcp).unwrap()).unwrap();
        assert_eq!((whole.truncation, whole.answers.len()), (false, 60));
    }
}

#[test]
fn other_operations_are_not_implemented_and_responses_are_not_answered() {
    let world = World::new(&fleet(), None);
    let mut query = question("web.mashine.dev.", RecordType::A);
    query.metadata.op_code = OpCode::Notify;
    assert_eq!(ask_message(&fleet(), &query, Transport::Udp).response_code, ResponseCode::NotImp);
    let response = question("web.mashine.dev.", RecordType::A).into_response();
    assert_eq!(world.answer(&response.to_vec().unwrap(), Transport::Udp), None);
}

#[test]
fn malformed_questions_are_told_so_with_their_id() {
    let world = World::new(&fleet(), None);
    let header = |questions: u8| vec![0x12, 0x34, 0x01, 0, 0, questions, 0, 0, 0, 0, 0, 0];
    let two = [header(2), b"\x01a\0\0\x01\0\x01\x01b\0\0\x01\0\x01".to_vec()].concat();
    for packet in [header(1), header(0), header(255), two] {
        let reply = Message::from_vec(&world.answer(&packet, Transport::Udp).unwrap()).unwrap();
        assert_eq!((reply.id, reply.response_code), (0x1234, ResponseCode::FormErr), "{packet:?}");
    }
}
