//! `mashines-guest`: one static binary that is `/init` of every machine's initrd, and afterwards its agent.
//!
//! ```text
//! mashines-guest            as process 1: init (see init::run); it becomes the image's own init
//! mashines-guest agent      the agent (see agent::run); started by init, outlives it
//! mashines-guest git …      git's end of a push or fetch (see deploy::git); run by sshd
//! mashines-guest deploy …   what a push deploys, and what follows from it (see deploy)
//! ```

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
