//! A line typed in the lobby: parted into words that a shell would read the same way, then run, with a control that does not answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_cli::client::{Answer, CallError, Request, Transport};
use mashines_cli::{Client, Session, words};

struct Nobody;

impl Transport for Nobody {
    fn call<'a>(&'a self, _: Request<'a>) -> Answer<'a> {
        Box::pin(async { Err(CallError::Unreachable("nobody".to_owned())) })
    }
}

fuzz_target!(|line: &str| {
    let Ok(parted) = words::split(line) else { return };
    let joined = words::join(parted.iter().map(String::as_str));
    assert_eq!(words::split(&joined).ok().as_ref(), Some(&parted), "{joined}");
    let _known = mashines_cli::complete(line);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    let nowhere = || Box::new(tokio::io::sink());
    let mut session = Session::lobby(Client::new(Nobody), "mashine.dev", nowhere(), nowhere());
    runtime.block_on(mashines_cli::run(&parted, &mut session));
});
