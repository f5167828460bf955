//! Unsolicited neighbour advertisements (RFC 4861, 7.2.6): "this address is at my Ethernet address now".

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

use super::Link;
use crate::error::Error;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER_AND_OVERRIDE: u8 = 0x80 | 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// Says once on `link` that `address` is here. With Override, which the kernel's own proxy answers lack: without it a neighbour
/// that still believes in the old place goes on doing so for up to 8 s.
pub fn announce(link: &Link, address: Ipv6Addr) -> Result<(), Error> {
    send(link, address).map_err(|source| Error::Kernel {
        operation: "announce",
        object: format!("{address} on {}", link.name),
        source,
    })
}

fn send(link: &Link, address: Ipv6Addr) -> io::Result<()> {
    let mac = link.mac.ok_or_else(|| io::Error::other("the interface has no Ethernet address"))?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    socket.set_multicast_if_v6(link.index)?;
    // Receivers drop any neighbour message that a router may have forwarded.
    socket.set_multicast_hops_v6(255)?;
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, link.index);
    socket.send_to(&advertisement(address, mac.0), &to.into())?;
    Ok(())
}

/// The message; the kernel fills the checksum in.
fn advertisement(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, ROUTER_AND_OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_has_the_layout_of_rfc_4861() {
        let bytes = advertisement("2001:db8::1".parse().unwrap(), [2, 0, 0, 0, 0, 9]);
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..8], [136, 0, 0, 0, 0xa0, 0, 0, 0]);
        assert_eq!(bytes[8..12], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(bytes[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }
}
