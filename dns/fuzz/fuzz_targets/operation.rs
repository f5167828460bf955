//! What any packet does that is more than a question: updates, transfers, signatures. The first byte says whether it is signed first with
//! a key that the server knows, so that what is behind a good signature is reached too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_dns::message::{Header, Message};
use mashines_dns::tsig::{self, Algorithm, Conversation, Key};
use mashines_dns::update::{self, Owner};
use mashines_fleet::dns_update::{apply, in_scope};

const NOW: u64 = 1_800_000_000;
const KEY: &[u8] = b"\x01w\x01m\x03dev\x00";

fn key() -> Key {
    Key::new(KEY, Algorithm::Sha256, b"a secret of sixteen")
}

fuzz_target!(|data: &[u8]| {
    let Some((sign, packet)) = data.split_first() else { return };
    let mut packet = packet.to_vec();
    if sign % 2 == 1 && packet.len() >= 12 {
        Conversation::ask(key(), &mut packet, NOW);
    }
    let Ok(message) = Message::parse(&packet) else { return };
    assert_eq!(Header::read(&packet), Some(message.header));
    for record in message.sections.iter().flatten() {
        let _serial = message.serial(record);
    }
    let Ok(machine) = "0000000000000a".parse() else { return };
    let owner = Owner { machine: &machine, name: KEY, zone: b"\x01m\x03dev\x00" };
    if let Ok(update) = update::read(&message, owner) {
        let mut records = Vec::new();
        apply(&mut records, &update);
        assert!(records.iter().all(|record| in_scope(&record.name) && record.kind == "TXT"));
    }
    if let Ok(Some(found)) = tsig::find(&message) {
        let known = (found.key == KEY).then(key);
        let reply = match tsig::verify(&message, found, known, NOW) {
            Ok(mut conversation) => {
                let mut reply = message.reply(0, true);
                conversation.sign(&mut reply, NOW);
                reply
            }
            Err(refusal) => refusal.reply(&message, NOW),
        };
        assert!(Message::parse(&reply).is_ok_and(|reply| matches!(tsig::find(&reply), Ok(Some(_)))));
    }
});
