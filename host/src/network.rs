//! What this daemon asks of its host's netd: the machine's port, and the lines that a monitor sends at a hand-over.

use std::path::{Path, PathBuf};

use ipnetwork::Ipv6Network;
use mashines_fleet::host_api::MachineSpec;
use mashines_fleet::id::{Epoch, HostId, MachineId};
use mashines_vmm::api::Hook;
use netd::api::{GUEST_MTU, Instance, Port, Reply, Request, tap_name};

use crate::error::{Context, HostError, Result};

/// The length of an account's private prefix.
const ACCOUNT_PREFIX: u8 = 48;

/// This host's netd, by its socket.
#[derive(Debug, Clone)]
pub struct Netd {
    socket: PathBuf,
}

/// The identifier of an account's overlay: the last 24 bits of its /48, so that every daemon derives the same without asking.
pub fn vni(private_prefix: std::net::Ipv6Addr) -> u32 {
    let [_, _, _, a, b, c, ..] = private_prefix.octets();
    u32::from_be_bytes([0, a, b, c])
}

/// A machine's port, as netd is told of it.
pub fn port(spec: &MachineSpec, epoch: Epoch) -> Result<Port> {
    let mac = spec.net.mac.parse().map_err(|e| HostError::invalid(format!("machine {}: {e}", spec.id)))?;
    let account = Ipv6Network::new(spec.private_prefix, ACCOUNT_PREFIX).map_err(|e| {
        HostError::invalid(format!("machine {}: private prefix {}: {e}", spec.id, spec.private_prefix))
    })?;
    Ok(Port {
        machine_id: spec.id.to_string(),
        epoch: epoch.0,
        tap: tap_name(spec.id.as_str()),
        mac,
        mtu: GUEST_MTU,
        ipv6: spec.net.ipv6,
        private6: Some(spec.net.private6),
        ipv4: None,
        account,
        vni: vni(spec.private_prefix),
    })
}

/// Routes the machine's addresses to its tap.
pub fn activate(machine: &MachineId, epoch: Epoch) -> Request {
    Request::Activate(instance(machine, epoch))
}

/// Takes the route back.
pub fn suppress(machine: &MachineId, epoch: Epoch) -> Request {
    Request::Suppress(instance(machine, epoch))
}

/// Tells the neighbours.
pub fn announce(machine: &MachineId, epoch: Epoch) -> Request {
    Request::Announce(instance(machine, epoch))
}

/// Takes the port away; a redirect stays.
pub fn remove(machine: &MachineId, epoch: Epoch) -> Request {
    Request::Remove(instance(machine, epoch))
}

/// Turns the machine's addresses to the host where it runs in `epoch`.
pub fn redirect(machine: &MachineId, epoch: Epoch, to_host: &HostId) -> Request {
    Request::Redirect { machine: machine.to_string(), epoch: epoch.0, to_host: to_host.to_string() }
}

fn instance(machine: &MachineId, epoch: Epoch) -> Instance {
    Instance { machine: machine.to_string(), epoch: epoch.0 }
}

impl Netd {
    /// The netd behind `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Asks, and waits for `ok`.
    pub async fn call(&self, request: Request) -> Result<Reply> {
        let socket = self.socket.clone();
        let asked = tokio::task::spawn_blocking(move || netd::client::call(&socket, &request));
        asked.await.doing(|| "ask netd".to_owned())?.map_err(|e| HostError::internal(e.to_string()))
    }

    /// The request as a line that a monitor sends on its own.
    pub fn hook(&self, request: &Request) -> Result<Hook> {
        let line = serde_json::to_string(request).doing(|| "write a request to netd".to_owned())?;
        Ok(Hook { socket: self.socket.clone(), line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_get_their_overlay_from_their_prefix() {
        assert_eq!(vni("fd12:3456:789a::".parse().unwrap()), 0x56_789a);
    }

    #[test]
    fn a_hook_is_the_line_that_netd_reads() {
        let netd = Netd::new(Path::new("/run/netd.sock"));
        let id: MachineId = "0123456789abcd".parse().unwrap();
        let hook = netd.hook(&activate(&id, Epoch(3))).unwrap();
        assert_eq!(hook.line, r#"{"op":"activate","machine":"0123456789abcd","epoch":3}"#);
    }
}
