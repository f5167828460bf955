//! Who may enter what: one pure function, [`route`].
//!
//! | asked for | answer |
//! | --- | --- |
//! | a session as `web@`, `web` one of the person's machines | that machine |
//! | a session as `web@`, `web` another account's | refused |
//! | a session as anything else: `lobby@`, `ann@` | the lobby |
//! | TCP to `web`, `web.mashine.dev` or its address (`ssh -J`, `-W`, `-L`) | that machine's port, straight |
//! | TCP to anything else as `web@` | from inside that machine: its own localhost, its own network |
//! | TCP to anything else | refused: the gateway is no open relay |
//!
//! A refusal always says why and what to do. That a name is taken is no secret (DNS answers for it), so it is said.

use std::sync::Arc;

use mashines_fleet::id::AccountId;
use mashines_fleet::record::Machine;

use crate::directory::{Directory, Person, not_running};

/// What a client asks for, once it is known who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    /// A shell, a command, a subsystem.
    Session,
    /// A TCP connection (`direct-tcpip`).
    Tcp {
        /// As the client wrote it.
        host: &'a str,
        /// The port.
        port: u32,
    },
    /// A unix socket inside the machine (`direct-streamlocal`).
    UnixSocket,
}

/// Where somebody is let in.
#[derive(Debug, Clone, PartialEq)]
pub enum Door {
    /// The CLI's commands, for that account.
    Lobby(AccountId),
    /// Through the machine's sshd.
    Machine(Arc<Machine>),
    /// Straight to a port of the machine.
    Port(Arc<Machine>, u16),
    /// Nowhere, and why.
    Refuse(String),
}

/// The names that always mean the lobby, whatever machines are called.
const LOBBY: [&str; 2] = ["lobby", "mashines"];

/// Where `person`, who logged in as `user`, is let in for `destination`.
pub fn route(directory: &Directory, user: &str, person: &Person, destination: Destination<'_>) -> Door {
    match destination {
        Destination::Session => session(directory, user, person),
        Destination::Tcp { host, port } => tcp(directory, user, person, host, port),
        Destination::UnixSocket => match session(directory, user, person) {
            Door::Lobby(_) => Door::Refuse(no_machine("a forwarded socket", directory)),
            door @ (Door::Machine(_) | Door::Port(..) | Door::Refuse(_)) => door,
        },
    }
}

fn session(directory: &Directory, user: &str, person: &Person) -> Door {
    if LOBBY.contains(&user) {
        return Door::Lobby(person.home.clone());
    }
    match directory.named(user) {
        None => Door::Lobby(person.home.clone()),
        Some(machine) => enter(directory, machine, person),
    }
}

fn enter(directory: &Directory, machine: &Arc<Machine>, person: &Person) -> Door {
    if !person.accounts.contains(&machine.account) {
        return Door::Refuse(format!(
            "machine {} belongs to another account than {}. Your own machines: ssh lobby@{} ls",
            machine.slug,
            person.home,
            directory.domain(),
        ));
    }
    match not_running(machine) {
        Some(why) => Door::Refuse(why),
        None => Door::Machine(Arc::clone(machine)),
    }
}

fn tcp(directory: &Directory, user: &str, person: &Person, host: &str, port: u32) -> Door {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
        return Door::Refuse(format!("{port} is no TCP port"));
    };
    let inside = match session(directory, user, person) {
        Door::Machine(machine) => Some(machine),
        Door::Lobby(_) | Door::Port(..) | Door::Refuse(_) => None,
    };
    match (directory.at(host), inside) {
        (Some(machine), inside) if !(host == "localhost" && inside.is_some()) => {
            match enter(directory, machine, person) {
                Door::Machine(machine) => Door::Port(machine, port),
                door @ (Door::Lobby(_) | Door::Port(..) | Door::Refuse(_)) => door,
            }
        }
        (_, Some(machine)) => Door::Machine(machine),
        (_, None) => Door::Refuse(format!(
            "{host} is none of your machines, and the gateway leads nowhere else. Your machines: ssh lobby@{} ls",
            directory.domain(),
        )),
    }
}

fn no_machine(what: &str, directory: &Directory) -> String {
    format!("{what} needs a machine: log in as one of yours, as in ssh web@{}", directory.domain())
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::MachineState;

    use super::*;
    use crate::directory::tests::{ANN, BOB, directory, machine, person};

    fn ask(user: &str, key: &str, destination: Destination<'_>) -> String {
        let off = Machine {
            state: MachineState::Stopped,
            reason: Some("out of money".into()),
            ..machine("off", "ann")
        };
        let machines = [machine("web", "ann"), machine("db", "bob"), machine("shared", "team"), off];
        let directory = directory(&machines);
        match route(&directory, user, &person(&directory, key), destination) {
            Door::Lobby(account) => format!("lobby of {account}"),
            Door::Machine(machine) => format!("machine {}", machine.slug),
            Door::Port(machine, port) => format!("port {port} of {}", machine.slug),
            Door::Refuse(why) => format!("refused: {why}"),
        }
    }

    fn session(user: &str, key: &str) -> String {
        ask(user, key, Destination::Session)
    }

    fn tcp(user: &str, host: &str, port: u32) -> String {
        ask(user, ANN, Destination::Tcp { host, port })
    }

    #[test]
    fn a_session_goes_to_the_machine_that_is_named_or_to_the_lobby() {
        assert_eq!(session("web", ANN), "machine web");
        assert_eq!(session("web.mashine.dev", ANN), "machine web");
        assert_eq!(session("shared", ANN), "machine shared", "a key may be in several accounts");
        assert_eq!(session("shared", BOB), "machine shared");
        for user in ["lobby", "mashines", "ann", "root", "", "no-such"] {
            assert_eq!(session(user, ANN), "lobby of ann", "{user}");
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        assert!(session("web", BOB).contains("belongs to another account than bob"));
        assert!(session("db", ANN).contains("ssh lobby@mashine.dev ls"));
        let off = session("off", ANN);
        assert!(off.contains("stopped (out of money)") && off.contains("mashines start off"), "{off}");
        assert!(session("off", BOB).contains("another account"), "why it is stopped is its owner's affair");
    }

    #[test]
    fn tcp_goes_to_own_machines_only() {
        for user in ["lobby", "ann", "web", "db"] {
            assert_eq!(tcp(user, "web", 22), "port 22 of web", "{user}");
            assert_eq!(tcp(user, "web.mashine.dev", 8080), "port 8080 of web", "{user}");
            assert!(tcp(user, "db", 22).contains("another account"), "{user}");
        }
        assert_eq!(tcp("web", "localhost", 5432), "machine web", "from inside");
        assert_eq!(tcp("web", "10.0.0.7", 80), "machine web", "from inside");
        for host in ["localhost", "127.0.0.1", "::1", "example.org", "2001:db8::ffff:1"] {
            assert!(tcp("lobby", host, 22).contains("none of your machines"), "{host}");
        }
        for port in [0, 65_536, u32::MAX] {
            assert!(tcp("web", "web", port).contains("is no TCP port"), "{port}");
        }
        assert!(tcp("lobby", "off", 22).contains("is stopped"));
    }

    #[test]
    fn unix_sockets_are_in_machines() {
        assert_eq!(ask("web", ANN, Destination::UnixSocket), "machine web");
        assert!(ask("lobby", ANN, Destination::UnixSocket).contains("needs a machine"));
        assert!(ask("db", ANN, Destination::UnixSocket).contains("another account"));
    }
}
