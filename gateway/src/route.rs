//! Who may enter what: one pure function, [`route`].
//!
//! | asked for | answer |
//! | --- | --- |
//! | a session as `web@`, `web` one of the person's machines | that machine |
//! | a session as `web@`, `web` another account's | refused |
//! | a session at an address that entries share among accounts | the one machine of the person at that address |
//! | a session as anything else: `lobby@`, `ann@` | the lobby |
//! | git, for `web` | that machine's repository; the lobby's account makes it where there is none |
//! | TCP to `web`, `web.mashine.dev` or its address (`ssh -J`, `-W`, `-L`) | that machine's port, straight |
//! | TCP to anything else as `web@` | from inside that machine: its own localhost, its own network |
//! | TCP to anything else | refused: the gateway is no open relay |
//!
//! A refusal always says why and what to do. That a name is taken is no secret (DNS answers for it), so it is said.

use std::net::IpAddr;
use std::sync::Arc;

use mashines_fleet::access::Standing;
use mashines_fleet::id::AccountId;
use mashines_fleet::record::{Machine, UnixMs};

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
    /// A remote forward: the machine listens for the client.
    Listen,
    /// A git repository in that machine.
    Git {
        /// The machine's name.
        machine: &'a str,
    },
}

/// Who asks, and where they came in.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The name that was logged in as.
    pub user: &'a str,
    /// Who it is.
    pub person: &'a Person,
    /// The address that they connected to.
    pub at: IpAddr,
    /// Now.
    pub now: UnixMs,
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

/// The names that always mean the lobby, whatever machines are called. `git` is what people write before a repository.
const LOBBY: [&str; 3] = ["lobby", "mashines", "git"];

/// Where `asker` is let in for `destination`.
pub fn route(directory: &Directory, asker: Asker<'_>, destination: Destination<'_>) -> Door {
    let terms = &asker.person.holder.terms;
    match destination {
        Destination::Session => session(directory, asker),
        Destination::Git { machine } => git(directory, asker, machine),
        Destination::Tcp { .. } | Destination::UnixSocket | Destination::Listen if !terms.forwarding => {
            Door::Refuse("your certificate permits no port forwarding".to_owned())
        }
        Destination::Tcp { host, port } => tcp(directory, asker, host, port),
        Destination::UnixSocket => machine_only(directory, asker, "a forwarded socket"),
        Destination::Listen => machine_only(directory, asker, "a remote forward"),
    }
}

fn session(directory: &Directory, asker: Asker<'_>) -> Door {
    if LOBBY.contains(&asker.user) {
        return lobby(asker);
    }
    let named = directory.named(asker.user);
    if let Some(machine) = named.filter(|machine| is_open(directory, asker, machine)) {
        return enter(directory, machine, asker);
    }
    if directory.is_shared_address(asker.at) {
        return at_entry(directory, asker);
    }
    match named {
        Some(machine) => enter(directory, machine, asker),
        None => lobby(asker),
    }
}

fn lobby(asker: Asker<'_>) -> Door {
    match &asker.person.home {
        Some(home) => Door::Lobby(home.clone()),
        None => {
            let machines: Vec<&str> = asker
                .person
                .holder
                .narrow
                .iter()
                .flat_map(|(_, _, names)| names)
                .map(String::as_str)
                .collect();
            Door::Refuse(format!(
                "your certificate is for single machines ({}), not for the lobby: log in as one of them",
                machines.join(", ")
            ))
        }
    }
}

/// The pair of who comes and which address they came to names a machine.
fn at_entry(directory: &Directory, asker: Asker<'_>) -> Door {
    match directory.at_entry(asker.at, asker.person, asker.now).as_slice() {
        [machine] => enter(directory, machine, asker),
        [] => Door::Refuse(format!(
            "none of your machines is at {}. Your machines: ssh lobby@{} ls",
            asker.at.to_canonical(),
            directory.domain()
        )),
        several => {
            let names: Vec<&str> = several.iter().map(|machine| machine.slug.as_str()).collect();
            Door::Refuse(format!(
                "{} is the address of {}, since you are in several accounts. Say which: ssh {}@{}",
                asker.at.to_canonical(),
                names.join(" and of "),
                names.first().unwrap_or(&"web"),
                directory.domain()
            ))
        }
    }
}

fn is_open(directory: &Directory, asker: Asker<'_>, machine: &Machine) -> bool {
    directory.standing(asker.person, machine, asker.now).is_some_and(Standing::may_operate)
}

fn enter(directory: &Directory, machine: &Arc<Machine>, asker: Asker<'_>) -> Door {
    let (slug, domain) = (&machine.slug, directory.domain());
    match directory.standing(asker.person, machine, asker.now) {
        None => {
            let who = asker.person.home.as_ref().map_or("yours", AccountId::as_str);
            Door::Refuse(format!(
                "machine {slug} belongs to another account than {who}. Your own machines: ssh lobby@{domain} ls"
            ))
        }
        Some(standing) if !standing.may_operate() => Door::Refuse(format!(
            "you may see machine {slug}, not enter it: you are {standing} there. Its owner can make you operator"
        )),
        Some(_) => match not_running(machine) {
            Some(why) => Door::Refuse(why),
            None => Door::Machine(Arc::clone(machine)),
        },
    }
}

fn tcp(directory: &Directory, asker: Asker<'_>, host: &str, port: u32) -> Door {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else {
        return Door::Refuse(format!("{port} is no TCP port"));
    };
    let inside = match session(directory, asker) {
        Door::Machine(machine) => Some(machine),
        Door::Lobby(_) | Door::Port(..) | Door::Refuse(_) => None,
    };
    match (directory.at(host), inside) {
        (Some(machine), inside) if !(host == "localhost" && inside.is_some()) => {
            match enter(directory, machine, asker) {
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

fn machine_only(directory: &Directory, asker: Asker<'_>, what: &str) -> Door {
    match session(directory, asker) {
        Door::Lobby(_) => Door::Refuse(format!(
            "{what} needs a machine: log in as one of yours, as in ssh web@{}",
            directory.domain()
        )),
        door @ (Door::Machine(_) | Door::Port(..) | Door::Refuse(_)) => door,
    }
}

/// A repository is named by its machine, whoever one logs in as. One that is not there may be made by pushing to it.
fn git(directory: &Directory, asker: Asker<'_>, name: &str) -> Door {
    match directory.named(name) {
        Some(machine) => enter(directory, machine, asker),
        None => lobby(asker),
    }
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::{MachineState, Role, Share};

    use super::*;
    use crate::directory::tests::{ANN, BOB, directory, machine, person};

    const GATEWAY: &str = "192.0.2.1";
    const SHARED: &str = "192.0.2.2";

    fn ask(user: &str, key: &str, destination: Destination<'_>) -> String {
        ask_at(GATEWAY, user, key, destination)
    }

    fn ask_at(at: &str, user: &str, key: &str, destination: Destination<'_>) -> String {
        let off = Machine {
            state: MachineState::Stopped,
            reason: Some("out of money".into()),
            ..machine("off", "ann")
        };
        let at_entry = |mut machine: Machine| {
            machine.net.entry_ipv4 = Some(SHARED.parse().unwrap());
            machine
        };
        let lent = Machine {
            shares: vec![Share { account: "bob".parse().unwrap(), role: Role::Viewer, expires_at: None }],
            ..machine("lent", "ann")
        };
        let web = at_entry(machine("web", "ann"));
        let machines = [web, at_entry(machine("db", "bob")), at_entry(machine("shared", "team")), off, lent];
        let directory = directory(&machines);
        let person = person(&directory, key);
        let asker = Asker { user, person: &person, at: at.parse().unwrap(), now: 0 };
        match route(&directory, asker, destination) {
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
    fn an_address_and_a_key_name_a_machine() {
        let at = |user: &str, key: &str| ask_at(SHARED, user, key, Destination::Session);
        assert!(at("root", ANN).contains("the address of web and of shared"), "{}", at("root", ANN));
        assert_eq!(at("web", ANN), "machine web", "a name is clearer");
        assert_eq!(at("lobby", ANN), "lobby of ann");
        assert!(at("db", ANN).contains("the address of web and of shared"), "another's name is no name here");
        assert_eq!(ask_at("192.0.2.3", "root", ANN, Destination::Session), "lobby of ann");
        assert_eq!(ask_at("::ffff:192.0.2.2", "web", ANN, Destination::Session), "machine web");
    }

    #[test]
    fn a_repository_is_its_machine_and_a_new_one_is_the_lobbys_affair() {
        let git = |machine: &str| ask("git", ANN, Destination::Git { machine });
        assert_eq!(git("web"), "machine web");
        assert_eq!(git("new-one"), "lobby of ann");
        assert!(git("db").contains("another account"));
    }

    #[test]
    fn who_may_only_see_a_machine_is_told_so() {
        assert!(session("lent", BOB).contains("you are viewer there"), "{}", session("lent", BOB));
        assert_eq!(session("lent", ANN), "machine lent");
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
