//! Shared IPv4 ports: `entry:port` is spliced to port 22 of the machine that owns it.
//!
//! Which ports are open is a projection of the replica ([`wanted`]): those that a machine has at this entry. A listener looks its
//! machine up at each connection, so that a port given to another machine needs no new listener. Connections that stand are not
//! touched by any of this: through a move they go on, since the machine keeps its address.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mashines_fleet::id::HostId;
use mashines_fleet::record::Machine;
use mashines_fleet::view::View;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::accounts::Accounts;
use crate::control::Control;
use crate::dial::{dial, patience, prepare};
use crate::directory::{Directory, is_alive, not_running};
use crate::farewell::{farewell, turn_away};
use crate::limits::{Door, Limits};
use crate::metered::Metered;
use crate::proxied::Balancers;
use crate::{arrival, splice, wake};

/// Pause before a port that could not be bound, or an accept that failed, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The machines whose ports this entry listens on, by number.
pub fn wanted(view: &View, entry: &HostId) -> BTreeMap<u16, Arc<Machine>> {
    let here = view.machines.values().filter(|machine| is_alive(machine));
    let ports = here.filter_map(|machine| {
        let port = machine.net.ssh_port.as_ref().filter(|port| port.entry == *entry)?;
        Some((port.port, Arc::clone(machine)))
    });
    ports.collect()
}

/// The shared ports of one entry.
pub struct Ports {
    /// The entry whose ports these are.
    pub entry: HostId,
    /// Addresses that each port is bound at.
    pub bind: Vec<IpAddr>,
    /// The port of machines' sshd.
    pub machine_port: u16,
    /// Who speaks for others.
    pub balancers: Balancers,
    /// Connections allowed through all ports together.
    pub limits: Limits,
    /// What machines' accounts may move.
    pub accounts: Arc<Accounts>,
    /// Control, to start machines that start for whoever comes.
    pub control: Control,
    /// Where such a machine is seen to be up.
    pub directory: watch::Receiver<Arc<Directory>>,
}

impl Ports {
    /// Follows `views`; after the replica's end, the ports stay as they were.
    pub async fn serve(self, mut views: watch::Receiver<Arc<View>>) {
        let door = Door::new(self.limits);
        let (table, targets) = watch::channel(Arc::new(BTreeMap::new()));
        let mut listeners: BTreeMap<SocketAddr, Listening> = BTreeMap::new();
        loop {
            let now = wanted(&views.borrow_and_update(), &self.entry);
            let sockets = now.keys().flat_map(|port| self.bind.iter().map(|ip| SocketAddr::new(*ip, *port)));
            let sockets: Vec<SocketAddr> = sockets.collect();
            table.send_replace(Arc::new(now));
            listeners.retain(|socket, _| sockets.contains(socket));
            for socket in sockets {
                listeners.entry(socket).or_insert_with(|| {
                    let spliced = Spliced {
                        machine_port: self.machine_port,
                        balancers: self.balancers.clone(),
                        door: Arc::clone(&door),
                        accounts: Arc::clone(&self.accounts),
                        control: self.control.clone(),
                        directory: self.directory.clone(),
                    };
                    Listening(tokio::spawn(spliced.listen(socket, targets.clone())))
                });
            }
            if views.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// A listener that closes when dropped; its connections go on.
#[derive(Debug)]
struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The ports' machines, as they are now.
type Targets = watch::Receiver<Arc<BTreeMap<u16, Arc<Machine>>>>;

#[derive(Clone)]
struct Spliced {
    machine_port: u16,
    balancers: Balancers,
    door: Arc<Door>,
    accounts: Arc<Accounts>,
    control: Control,
    directory: watch::Receiver<Arc<Directory>>,
}

impl Spliced {
    async fn listen(self, socket: SocketAddr, targets: Targets) {
        let listener = bind(socket).await;
        info!(%socket, "shared port listens");
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    tokio::spawn(self.clone().receive(stream, peer, socket.port(), targets.clone()));
                }
                Err(error) => {
                    warn!(%error, %socket, "accepting on a shared port");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn receive(self, mut stream: TcpStream, peer: SocketAddr, port: u16, targets: Targets) {
        match arrival::of(&mut stream, peer, &self.balancers).await {
            Ok(arrival) => self.admit(stream, arrival.peer, port, &targets).await,
            Err(error) => {
                warn!(%peer, port, %error, "shared port: a load balancer's connection is refused");
            }
        }
    }

    async fn admit(&self, stream: TcpStream, peer: SocketAddr, port: u16, targets: &Targets) {
        let slot = match self.door.enter(peer.ip(), Instant::now()) {
            Ok(slot) => slot,
            Err(refusal) => {
                debug!(%peer, port, %refusal, "shared port: turned away");
                return turn_away(&stream, &refusal.to_string());
            }
        };
        let target = targets.borrow().get(&port).cloned();
        let outcome = match target {
            None => Err((stream, "no machine owns this port any more".to_owned())),
            Some(target) => self.connect(stream, &target).await,
        };
        match outcome {
            Ok(moved) => debug!(%peer, port, ?moved, "shared port: connection ended"),
            Err((stream, why)) => {
                debug!(%peer, port, %why, "shared port: turned away");
                farewell(stream, &why).await;
            }
        }
        drop(slot);
    }

    async fn connect(
        &self,
        mut client: TcpStream,
        target: &Arc<Machine>,
    ) -> Result<Option<splice::Moved>, (TcpStream, String)> {
        if let Some(why) = not_running(target) {
            return Err((client, why));
        }
        let awake = wake::awake(&self.control, &self.directory, Arc::clone(target)).await;
        let awake = match awake {
            Ok(awake) => awake,
            Err(why) => return Err((client, why)),
        };
        let address = SocketAddr::new(awake.net.ipv6.into(), self.machine_port);
        let machine = match dial(address, patience(&awake)).await {
            Ok(machine) => machine,
            Err(error) => return Err((client, format!("machine {} cannot be reached: {error}", awake.slug))),
        };
        if let Err(error) = prepare(&client) {
            return Err((client, format!("the connection broke: {error}")));
        }
        // A connection that ends in a reset is nobody's fault here: it only has no figures.
        let machine = Metered::new(machine, self.accounts.purse(&awake.account));
        Ok(machine.join(&mut client).await.ok())
    }
}

/// Binds, trying again for as long as the listener is wanted: whatever holds the port may let go of it.
async fn bind(socket: SocketAddr) -> TcpListener {
    let mut complained = false;
    loop {
        match TcpListener::bind(socket).await {
            Ok(listener) => return listener,
            Err(error) => {
                if !complained {
                    complain(socket, &error);
                    complained = true;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn complain(socket: SocketAddr, error: &io::Error) {
    warn!(%socket, %error, "a machine's shared port cannot be listened on; trying again every second: does something else hold it?");
}

#[cfg(test)]
mod tests {
    use mashines_fleet::record::{Desired, MachineState};

    use super::*;
    use crate::directory::tests::{machine, view};

    #[test]
    fn the_ports_are_those_of_living_machines_at_this_entry() {
        let elsewhere = {
            let mut machine = machine("elsewhere", "ann");
            machine.net.ssh_port.as_mut().unwrap().entry = "entry2".parse().unwrap();
            machine
        };
        let gone = Machine { desired: Desired::Destroyed, ..machine("gone", "ann") };
        let off = Machine { state: MachineState::Stopped, ..machine("off", "ann") };
        let view = view(&[machine("web", "ann"), off, gone, elsewhere]);
        let wanted = wanted(&view, &"entry1".parse().unwrap());
        let mut told: Vec<_> = wanted.values().map(|m| (m.slug.as_str(), not_running(m).is_some())).collect();
        told.sort_unstable();
        assert_eq!(told, [("off", true), ("web", false)], "a stopped machine's port says that it is stopped");
    }
}
