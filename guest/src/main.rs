//! `mashines-guest`: one static binary that is `/init` of every machine's initrd, and afterwards its agent.
//!
//! ```text
//! mashines-guest            as process 1: init (see init::run); it becomes the image's own init
//! mashines-guest agent      the agent (see agent::run); started by init, outlives it
//! mashines-guest git …      git's end of a push or fetch (see deploy::git); run by sshd
//! mashines-guest certificate …  a certificate whose key stays here (see certificate); run by the agent for control
//! mashines-guest deploy …   what a push deploys, and what follows from it (see deploy)
//! ```

use std::io::Read as _;
use std::path::Path;

mod agent;
mod bench;
mod deploy;
mod init;
mod log;

fn main() {
    if std::process::id() == 1 {
        init::main();
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("agent", _)) => agent::run(),
        Some(("git", rest)) => std::process::exit(deploy::git(rest)),
        Some(("certificate", rest)) => std::process::exit(certificate(rest)),
        Some(("deploy", rest)) => std::process::exit(deploy::main(rest)),
        Some(_) | None => {
            eprintln!(
                "mashines-guest is a machine's init and agent. By hand there are: deploy releases, deploy rollback, \
                 deploy redeploy, deploy config"
            );
            std::process::exit(2);
        }
    }
}

/// `certificate request NAME…` prints a request; `certificate install NAME` takes the chain from standard input.
fn certificate(words: &[String]) -> i32 {
    use mashines_guest::certificate::{DIRECTORY, HOOK, MAX_CHAIN, install, request};
    let (root, hook) = (Path::new(DIRECTORY), Path::new(HOOK));
    let done = match words {
        [verb, names @ ..] if verb == "request" => request(root, names).map(|pem| print!("{pem}")),
        [verb, name] if verb == "install" => {
            let most = u64::try_from(MAX_CHAIN).unwrap_or(u64::MAX).saturating_add(1);
            let mut chain = String::new();
            let read = std::io::stdin().take(most).read_to_string(&mut chain);
            read.map_err(Into::into).and_then(|_| install(root, name, &chain, hook))
        }
        _ => {
            eprintln!("certificate request NAME…, or certificate install NAME < CHAIN");
            return 2;
        }
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    }
}
