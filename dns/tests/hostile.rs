//! Packets from anywhere: no bytes make the server panic, and no answer breaks its size or its id.

// A failed unwrap in a test is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::LazyLock;

use common::{World, fleet};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use mashines_dns::answer::Transport;
use proptest::prelude::*;

static WORLD: LazyLock<World> = LazyLock::new(|| World::new(&fleet(), None));

fn check(packet: &[u8]) -> Result<(), TestCaseError> {
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let Some(reply) = WORLD.answer(packet, transport) else { continue };
        prop_assert!(reply.len() <= limit);
        prop_assert_eq!(&reply[..2], &packet[..2], "the id");
        prop_assert!(reply[2] & 0x80 != 0, "marked as a response, so no two servers answer each other");
        prop_assert!(Message::from_vec(&reply).is_ok(), "the answer decodes");
        // RFC 1035 §4.1.1: recursion is not offered, and nothing but the low bits of ours is echoed.
        prop_assert!(reply[3] & 0x80 == 0);
    }
    Ok(())
}

fn valid() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "web.mashine.dev.",
        "mashine.dev.",
        "ns.mashine.dev.",
        "nope.mashine.dev.",
        "example.org.",
        ".",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.1.0.8.b.d.0.1.0.0.2.ip6.arpa.",
    ]);
    (names, any::<u16>(), any::<u16>(), any::<Option<u16>>()).prop_map(|(name, id, kind, payload)| {
        let mut query = Message::query();
        query.metadata.id = id;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::from(kind)));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            query.set_edns(edns);
        }
        query.to_vec().unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&packet)?;
    }

    #[test]
    fn a_plausible_header_and_random_bytes_do_no_harm(
        counts in prop::array::uniform4(0u8..3),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let [q, an, ns, ar] = counts;
        let mut packet = vec![7, 7, 1, 0, 0, q, 0, an, 0, ns, 0, ar];
        packet.extend(body);
        check(&packet)?;
    }

    #[test]
    fn a_valid_question_is_answered(packet in valid()) {
        prop_assert!(WORLD.answer(&packet, Transport::Udp).is_some());
        check(&packet)?;
    }

    #[test]
    fn a_mutilated_question_does_no_harm(
        packet in valid(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut packet = packet;
        for (at, byte) in flips {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        packet.extend(tail);
        check(&packet)?;
        packet.truncate(cut.index(packet.len()));
        check(&packet)?;
    }
}
