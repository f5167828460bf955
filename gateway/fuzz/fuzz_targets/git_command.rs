//! What git's client has the server run: a machine's name is a name, and what is passed on holds nothing that a shell would read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_gateway::git;

fuzz_target!(|line: &str| {
    let plain =
        |text: &str, more: &[u8]| text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    if let Some(Ok(command)) = git::parse(line) {
        assert!(plain(command.machine.as_str(), b"-"));
    }
    if let Some(protocol) = git::protocol(line) {
        assert!(plain(protocol, b"=:._-") && protocol.len() <= 100);
    }
});
