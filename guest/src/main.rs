//! `mashines-guest`: one static binary that is `/init` of every machine's initrd, and afterwards its agent.
//!
//! ```text
//! mashines-guest            as process 1: init (see init::run); it becomes the image's own init
//! mashines-guest agent      the agent (see agent::run); started by init, outlives it
//! ```

mod agent;
mod bench;
mod init;
mod log;

fn main() {
    if std::process::id() == 1 {
        init::main();
    } else if std::env::args().nth(1).as_deref() == Some("agent") {
        agent::run();
    } else {
        eprintln!("mashines-guest is a machine's init and agent; there is nothing to run it for by hand");
        std::process::exit(2);
    }
}
