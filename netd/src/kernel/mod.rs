//! The only part that speaks to the kernel: rtnetlink ([`routes`] and here), the tap's ioctls ([`tap`]), /proc/sys ([`sysctl`]), generic netlink
//! ([`wireguard`]) and the raw socket for announcements ([`announce`]).
//!
//! rtnetlink changes its interface often and gives no extended acknowledgement, so it appears in no other module, and every call
//! is wrapped with what was tried on which object. Nothing here decides anything.

pub mod announce;
pub mod routes;
pub mod rules;
pub mod sysctl;
pub mod tap;
pub mod wireguard;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, LinkWireguard};

use crate::error::Error;
use crate::mac::Mac;

/// The IANA port of VXLAN-GPE (RFC 8726 keeps it apart from VXLAN's 4789).
pub const GPE_PORT: u16 = 4790;

/// The mark that machines' packets carry on the host that runs them; the egress rule looks for it.
pub const MACHINE_MARK: u32 = 0x6d61;

/// The routing table of [`crate::plan::Table::Machines`].
pub const MACHINES_TABLE: u8 = 109;

/// The routing table of [`crate::plan::Table::Egress`].
pub const EGRESS_TABLE: u8 = 110;

/// The routing table by which an entry takes machines' web ports itself.
pub const WEB_TABLE: u8 = 111;

/// How often, and how far apart, [`Kernel::wait_until_it_sends`] looks: 200 ms in all.
const READY_TRIES: u32 = 200;
const READY_PAUSE: Duration = Duration::from_millis(1);

/// A network interface, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
}

/// What an interface shall become.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkSettings {
    /// Its MTU in bytes.
    pub mtu: Option<u16>,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// The packets that its queue holds.
    pub queue: Option<u32>,
}

/// The connection to the kernel's routing socket, in the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens the socket. Runs its traffic on the current tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| Error::Kernel {
            operation: "open",
            object: "the routing socket".into(),
            source,
        })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(wrap("list", || "the interfaces".into()))?;
        Ok(links.iter().filter_map(read_link).collect())
    }

    /// The interface of a name, where there is one.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name);
        let found: Result<Vec<LinkMessage>, _> = request.execute().try_collect().await;
        match found.map_err(wrap("find", || format!("interface {name}"))) {
            Ok(links) => Ok(links.iter().find_map(read_link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface of a name.
    pub async fn link(&self, name: &str) -> Result<Link, Error> {
        let missing = || Error::Kernel {
            operation: "find",
            object: format!("interface {name}"),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        };
        self.find_link(name).await?.ok_or_else(missing)
    }

    /// Waits until an interface that just got its carrier also sends: the kernel swaps its queue in a moment later, and drops
    /// what comes in between. One without a carrier is not waited for.
    pub async fn wait_until_it_sends(&self, name: &str) -> Result<(), Error> {
        for _ in 0..READY_TRIES {
            let request = self.handle.link().get().match_name(name.to_owned());
            let found: Result<Vec<LinkMessage>, _> = request.execute().try_collect().await;
            let links = found.map_err(wrap("find", || format!("interface {name}")))?;
            if !links.iter().any(waits_for_its_queue) {
                return Ok(());
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
        tracing::warn!(interface = name, "has a carrier but does not come up; going on");
        Ok(())
    }

    /// Makes the overlay's device: one for all peers, told by each route where to send. IPv6 outer headers come without a UDP
    /// checksum; without `udp6zerocsumrx` the receiver would drop them all and count nothing.
    pub async fn add_overlay(&self, name: &str) -> Result<(), Error> {
        let gpe = LinkVxlan::new(name, 0).collect_metadata(true).gpe().port(GPE_PORT);
        let gpe = gpe.learning(false).udp_zero_csum6_rx(true).udp_zero_csum6_tx(true).build();
        let added = self.handle.link().add(gpe).execute().await;
        added.map_err(wrap("add", || format!("VXLAN-GPE device {name}")))
    }

    /// Makes a WireGuard device.
    pub async fn add_wireguard(&self, name: &str) -> Result<(), Error> {
        let added = self.handle.link().add(LinkWireguard::new(name).build()).execute().await;
        added.map_err(wrap("add", || format!("WireGuard device {name}")))
    }

    /// Changes an interface and brings it up.
    pub async fn set_up(&self, link: &Link, settings: LinkSettings) -> Result<(), Error> {
        let mut message = LinkUnspec::new_with_index(link.index);
        if let Some(mtu) = settings.mtu {
            message = message.mtu(mtu.into());
        }
        if let Some(mac) = settings.mac.filter(|mac| link.mac != Some(*mac)) {
            message = message.address(mac.0.to_vec());
        }
        if let Some(queue) = settings.queue {
            message = message.txqueuelen(queue);
        }
        let set = self.handle.link().set(message.up().build()).execute().await;
        set.map_err(wrap("set up", || format!("interface {}", link.name)))
    }

    /// Deletes an interface; one that is not there is deleted already.
    pub async fn delete_link(&self, link: &Link) -> Result<(), Error> {
        let deleted = self.handle.link().del(link.index).execute().await;
        absent_is_fine(deleted.map_err(wrap("delete", || format!("interface {}", link.name))))
    }

    /// Gives an interface an address, without asking the neighbours whether they have it too.
    pub async fn add_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut request = self.handle.address().add(link.index, address, prefix);
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let added = request.replace().execute().await;
        present_is_fine(added.map_err(wrap("add", || format!("address {address}/{prefix} on {}", link.name))))
    }

    /// Tells the kernel a neighbour's Ethernet address for good, so that the first packet waits for no resolution.
    pub async fn add_neighbour(&self, link: &Link, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let request = self.handle.neighbours().add(link.index, address).link_layer_address(&mac.0);
        let added = request.replace().execute().await;
        added.map_err(wrap("add", || format!("neighbour {address} at {mac} on {}", link.name)))
    }

    /// Answers neighbour solicitations for an address on an interface.
    pub async fn add_proxy(&self, link: &Link, address: Ipv6Addr) -> Result<(), Error> {
        let request = self.handle.neighbours().add(link.index, address.into()).flags(NeighbourFlags::Proxy);
        let added = request.replace().execute().await;
        added.map_err(wrap("add", || format!("neighbour proxy {address} on {}", link.name)))
    }

    /// Undoes [`Self::add_proxy`].
    pub async fn delete_proxy(&self, link: &Link, address: Ipv6Addr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.ifindex = link.index;
        message.header.flags = NeighbourFlags::Proxy;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)));
        let deleted = self.handle.neighbours().del(message).execute().await;
        absent_is_fine(
            deleted.map_err(wrap("delete", || format!("neighbour proxy {address} on {}", link.name))),
        )
    }

    /// The addresses that are answered for on an interface.
    pub async fn proxies(&self, link: &Link) -> Result<Vec<Ipv6Addr>, Error> {
        let request = self.handle.neighbours().get().proxies().set_address_family(AddressFamily::Inet6);
        let found: Vec<NeighbourMessage> =
            request.execute().try_collect().await.map_err(wrap("list", || "the neighbour proxies".into()))?;
        let ours = found.iter().filter(|n| n.header.ifindex == link.index);
        let addresses = ours.flat_map(|n| &n.attributes).filter_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

fn waits_for_its_queue(message: &LinkMessage) -> bool {
    let carrier = message.header.flags.contains(LinkFlags::LowerUp);
    carrier
        && message
            .attributes
            .iter()
            .any(|a| matches!(a, LinkAttribute::OperState(state) if *state != State::Up))
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link { index: message.header.index, name: String::new(), mac: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// One error for a list of failures, or none.
pub fn all_or_several(mut failures: Vec<Error>) -> Result<(), Error> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Error::Several(failures)),
    }
}

/// Turns rtnetlink's error into ours, with what was tried on which object.
fn wrap(operation: &'static str, object: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Error::Kernel { operation, object: object(), source }
    }
}

fn present_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn absent_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    let absent = [libc::ESRCH, libc::ENOENT, libc::ENODEV, libc::EADDRNOTAVAIL];
    match result {
        Err(error) if error.errno().is_some_and(|errno| absent.contains(&errno)) => Ok(()),
        other => other,
    }
}
