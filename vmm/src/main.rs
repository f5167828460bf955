//! `mashines-vmm`: runs one machine. Started by the host daemon; see `mashines_vmm::api` for the protocol.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mashines_vmm::run::{Options, Start, run};

/// Runs one microVM.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The machine's spec, JSON.
    #[arg(long)]
    spec: PathBuf,
    /// The control socket to serve.
    #[arg(long)]
    socket: PathBuf,
    /// Build everything, then wait for a migration instead of booting.
    #[arg(long)]
    incoming: bool,
    /// Take a snapshot up instead of booting.
    #[arg(long, value_name = "DIR", conflicts_with = "incoming")]
    restore: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let start = match arguments.restore {
        Some(directory) => Start::Restore(directory),
        None if arguments.incoming => Start::Incoming,
        None => Start::Boot,
    };
    let options = Options { spec: arguments.spec, socket: arguments.socket, start };
    match run(&options) {
        Ok(ending) => ExitCode::from(ending.code()),
        Err(error) => {
            eprintln!("mashines-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
