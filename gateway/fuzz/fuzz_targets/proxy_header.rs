//! A balancer's first bytes and what follows: no panic, nothing read that is not the header's, and the speech told apart.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_gateway::arrival::{Arrival, Speech};
use mashines_gateway::proxied;

fuzz_target!(|bytes: &[u8]| {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    let balancer = Arrival { peer: ([192, 0, 2, 9], 4000).into(), at: [192, 0, 2, 10].into() };
    let mut rest = bytes;
    // Without a timer: a slice is never waited for.
    let header = runtime.block_on(proxied::read(&mut rest));
    if let Ok(header) = header {
        assert_eq!([&header[..], rest].concat(), bytes, "nothing is lost and nothing is read twice");
        let _told = proxied::told(&header, balancer);
    }
    if let Some(first) = rest.first() {
        assert_eq!(Speech::of(*first) == Speech::Ssh, rest.starts_with(b"S"));
    }
});
