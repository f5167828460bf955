//! Starting ssh and scp towards a machine: which door is open from here, and how its host key is known.
//!
//! The platform's SSH CA signs every machine's host key. Its `@cert-authority` line is written beside the settings and handed to
//! ssh, so that no machine, through whichever door, ever asks "are you sure".

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mashines_fleet::api::{Account, Machine};
use tokio::net::TcpStream;

use crate::doors;
use crate::error::{CliError, Exit};

/// How long a door may take to answer a knock.
const KNOCK: Duration = Duration::from_secs(2);

/// A door of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Its own IPv6 address
    Ipv6,
    /// Its shared IPv4 port
    Port,
    /// The gateway's port 22
    Gateway,
}

/// What ssh and scp are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `root`, or at the gateway the machine's name.
    pub user: String,
    /// Address or name, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `-o` values.
    pub options: Vec<String>,
}

impl Target {
    /// The machine behind `via`.
    fn new(machine: &Machine, via: Via, known_hosts: Option<&Path>) -> Result<Self, CliError> {
        let (user, host, port) = match via {
            Via::Ipv6 => ("root", machine.ipv6.to_string(), 22),
            Via::Port => {
                let door = machine.ssh.as_ref().ok_or_else(|| {
                    CliError::new(Exit::Transport, format!("`{}` has no shared IPv4 port", machine.slug))
                        .next(format!("mashines enter {} --via gateway", machine.slug))
                })?;
                let host = door.ipv4.first().map_or_else(|| door.ipv4_host.clone(), ToString::to_string);
                ("root", host, door.port)
            }
            Via::Gateway => (machine.slug.as_str(), doors::gateway(machine).to_owned(), 22),
        };
        let mut options = Vec::new();
        if via != Via::Gateway {
            // One machine, one key, whatever address it was reached by.
            options.push(format!("HostKeyAlias={}", machine.fqdn));
        }
        if let Some(file) = known_hosts {
            options.push(format!("UserKnownHostsFile=~/.ssh/known_hosts \"{}\"", file.display()));
        }
        Ok(Self { user: user.to_owned(), host, port, options })
    }

    /// `-o …` for each option.
    pub fn option_arguments(&self) -> impl Iterator<Item = String> + '_ {
        self.options.iter().flat_map(|option| ["-o".to_owned(), option.clone()])
    }

    /// `root@[2001:db8::1]:path`, as scp wants it.
    pub fn scp_path(&self, path: &str) -> String {
        match self.host.contains(':') {
            true => format!("{}@[{}]:{path}", self.user, self.host),
            false => format!("{}@{}:{path}", self.user, self.host),
        }
    }
}

/// The way into `machine`: the door asked for, or the first that answers of IPv6, the shared port and the gateway.
pub async fn target(
    machine: &Machine,
    via: Option<Via>,
    known_hosts: Option<&Path>,
) -> Result<Target, CliError> {
    if let Some(via) = via {
        return Target::new(machine, via, known_hosts);
    }
    let mut tried = Vec::new();
    for via in [Via::Ipv6, Via::Port, Via::Gateway] {
        if via == Via::Port && machine.ssh.is_none() {
            continue;
        }
        let target = Target::new(machine, via, known_hosts)?;
        match knock(&target).await {
            Ok(()) => return Ok(target),
            Err(error) => tried.push(format!("{} port {}: {error}", target.host, target.port)),
        }
    }
    Err(CliError::new(
        Exit::Transport,
        format!("no door of `{}` answers: {}", machine.slug, tried.join("; ")),
    )
    .next(format!("mashines show {}", machine.slug)))
}

async fn knock(target: &Target) -> io::Result<()> {
    let connect = TcpStream::connect((target.host.as_str(), target.port));
    match tokio::time::timeout(KNOCK, connect).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("silent for {} s", KNOCK.as_secs()))),
    }
}

/// Runs ssh or scp on this terminal and gives its exit code.
pub async fn run(program: &str, arguments: Vec<String>) -> Result<Exit, CliError> {
    let status = tokio::process::Command::new(program).args(&arguments).status().await.map_err(|error| {
        CliError::new(Exit::Transport, format!("cannot start `{program}`: {error}"))
            .next("install OpenSSH's client (Debian: apt install openssh-client)")
    })?;
    Ok(Exit::Remote(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255)))
}

/// The lines that make ssh trust every machine and the gateway of this fleet; empty for a fleet without an SSH CA.
pub fn known_hosts(account: &Account) -> String {
    let domain = &account.domain;
    match &account.ssh_ca {
        Some(ca) => format!("@cert-authority *.{domain},{domain},[*.{domain}]:* {}\n", ca.trim()),
        None => String::new(),
    }
}

/// Writes those lines beside the settings. None for a fleet without an SSH CA: ssh then asks, as for any host.
pub fn write_known_hosts(account: &Account, directory: &Path) -> Result<Option<PathBuf>, CliError> {
    let lines = known_hosts(account);
    if lines.is_empty() {
        return Ok(None);
    }
    let file = directory.join("known_hosts");
    if std::fs::read_to_string(&file).is_ok_and(|there| there == lines) {
        return Ok(Some(file));
    }
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&file, lines));
    written.map_err(|e| CliError::failed(format!("cannot write {}: {e}", file.display())))?;
    Ok(Some(file))
}
