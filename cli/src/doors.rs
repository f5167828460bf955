//! The three doors of a machine, as ssh command lines: its own IPv6 address, a shared IPv4 port, the gateway.

use mashines_fleet::api::Machine;
use serde::Serialize;

use crate::text;

/// The exact lines to type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doors {
    /// Straight to the machine's own sshd: the address is routed, nothing is between.
    pub ipv6: String,
    /// The same line works over IPv4: the machine has an address of the entry, shared with other accounts.
    pub ipv4: bool,
    /// Over IPv4: an entry's port that belongs to this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Through the gateway's own port 22.
    pub gateway: String,
}

/// A machine and its doors: the JSON of `launch` and `show`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The machine, as the API gives it.
    #[serde(flatten)]
    pub machine: Machine,
    /// How to get in.
    pub doors: Doors,
}

impl Doors {
    /// The doors of `machine`.
    pub fn of(machine: &Machine) -> Self {
        Self {
            ipv6: format!("ssh root@{}", machine.fqdn),
            ipv4: machine.entry_ipv4.is_some(),
            port: machine.ssh.as_ref().map(|door| format!("ssh -p {} root@{}", door.port, door.ipv4_host)),
            gateway: format!("ssh {}@{}", machine.slug, gateway(machine)),
        }
    }

    fn everywhere(&self) -> &'static str {
        if self.ipv4 {
            "by IPv6, straight to the machine; by IPv4, through the gateway"
        } else {
            "by IPv6, straight to the machine"
        }
    }

    /// One line each, with what it is.
    pub fn render(&self) -> String {
        let port = self.port.as_deref().unwrap_or_default();
        let lines = [
            (self.ipv6.as_str(), self.everywhere()),
            (port, "by IPv4, through its shared port"),
            (self.gateway.as_str(), "through the gateway"),
        ];
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let shown = lines.iter().filter(|(line, _)| !line.is_empty());
        shown.map(|(line, what)| format!("  {line:<width$}   {what}\n")).collect()
    }
}

impl From<Machine> for Shown {
    fn from(machine: Machine) -> Self {
        let doors = Doors::of(&machine);
        Self { machine, doors }
    }
}

/// The name of the gateway: the apex, which the fleet's DNS answers with the entries' addresses.
pub fn gateway(machine: &Machine) -> &str {
    let own = machine.fqdn.strip_prefix(machine.slug.as_str()).and_then(|rest| rest.strip_prefix('.'));
    own.unwrap_or(&machine.fqdn)
}

/// `2001:db8::1`, and the shared port: the addresses as `show` and `launch` list them.
pub fn addresses(machine: &Machine) -> String {
    let shared = machine.ssh.as_ref().map(|door| {
        let addresses: Vec<String> = door.ipv4.iter().map(ToString::to_string).collect();
        match addresses.is_empty() {
            true => format!("{} port {}", door.ipv4_host, door.port),
            false => format!("{} ({}) port {}", door.ipv4_host, addresses.join(", "), door.port),
        }
    });
    let shared = [machine.entry_ipv4.map(|address| address.to_string()), shared];
    let shared = shared.into_iter().flatten().collect::<Vec<_>>().join(", ");
    text::fields([
        ("  name", machine.fqdn.clone()),
        ("  IPv6", machine.ipv6.to_string()),
        ("  IPv4", shared),
        ("  mesh", machine.private_ip.to_string()),
    ])
}
