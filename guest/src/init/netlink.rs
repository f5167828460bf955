//! The three rtnetlink messages init needs, encoded by hand: one socket, no dependency.
//!
//! Sources: `rtnetlink(7)`, the kernel's `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h`. Integers are in the
//! machine's byte order; attributes and messages are padded to 4.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: the platform gives an address to one machine only, and a second of silence at boot and
/// after a move is a second lost.
const IFA_F_NODAD: u8 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// The gateway is on the link although no prefix says so.
const RTNH_F_ONLINK: u32 = 4;

/// Brings a link up, with this MTU when one is given.
pub fn link_up(index: u32, mtu: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK);
    // struct ifinfomsg: family, pad, type, index, flags, change mask.
    message.bytes(&[0, 0]).u16(0).u32(index).u32(IFF_UP).u32(IFF_UP);
    if let Some(mtu) = mtu {
        message.attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    }
    message.finish()
}

/// Gives a link an address.
pub fn add_address(index: u32, address: IpAddr, prefix_length: u8) -> Vec<u8> {
    let (family, bytes) = octets(address);
    let mut message = Message::new(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
    // struct ifaddrmsg: family, prefix length, flags, scope (universe), index.
    message.bytes(&[family, prefix_length, IFA_F_NODAD, 0]).u32(index);
    message.attribute(IFA_LOCAL, &bytes).attribute(IFA_ADDRESS, &bytes);
    message.finish()
}

/// Routes everything of the gateway's family through it.
pub fn default_route(index: u32, gateway: IpAddr) -> Vec<u8> {
    let (family, bytes) = octets(gateway);
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
    // struct rtmsg: family, destination and source length, tos, table, protocol, scope (universe), type, flags.
    message.bytes(&[family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST]).u32(RTNH_F_ONLINK);
    message.attribute(RTA_GATEWAY, &bytes).attribute(RTA_OIF, &index.to_ne_bytes());
    message.finish()
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

struct Message {
    buffer: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self { buffer: Vec::with_capacity(128) };
        // struct nlmsghdr: length (set by `finish`), type, flags, sequence, port.
        message.u32(0).u16(kind).u16(flags).u32(1).u32(0);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Every value here is at most 16 bytes.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.u16(length).u16(kind).bytes(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        self.buffer[..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer
    }
}

/// A socket to the kernel's routing tables.
pub struct Route {
    socket: OwnedFd,
}

impl Route {
    /// Opens it.
    pub fn open() -> Result<Self> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .context("opening a netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("binding a netlink socket")?;
        Ok(Self { socket })
    }

    /// Sends one message and waits for the kernel's verdict.
    pub fn ask(&self, message: &[u8]) -> Result<()> {
        let fd = self.socket.as_raw_fd();
        sendto(fd, message, &NetlinkAddr::new(0, 0), MsgFlags::empty())
            .context("sending to the kernel's routing socket")?;
        let mut answer = [0; 4096];
        let length =
            recv(fd, &mut answer, MsgFlags::empty()).context("reading from the kernel's routing socket")?;
        verdict(&answer[..length.min(answer.len())])
    }
}

/// Reads an acknowledgement: a header, then a negative errno or 0.
fn verdict(answer: &[u8]) -> Result<()> {
    let (Some(kind), Some(code)) = (answer.get(4..6), answer.get(16..20)) else {
        bail!("the kernel's routing answer has {} bytes, an acknowledgement has 36", answer.len());
    };
    let kind = u16::from_ne_bytes([kind[0], kind[1]]);
    if kind != NLMSG_ERROR {
        bail!("the kernel answered with message type {kind} in place of an acknowledgement");
    }
    match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.saturating_neg()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_up_is_what_ip_link_set_up_mtu_sends() {
        let message = link_up(2, Some(1420));
        let expected: Vec<u8> = [
            &40_u32.to_ne_bytes()[..],              // length
            &[16, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0], // RTM_NEWLINK, REQUEST|ACK, sequence 1
            &[0, 0, 0, 0, 2, 0, 0, 0],              // ifinfomsg: index 2
            &[1, 0, 0, 0, 1, 0, 0, 0],              // up, mask up
            &[8, 0, 4, 0, 0x8c, 5, 0, 0],           // IFLA_MTU 1420
        ]
        .concat();
        assert_eq!(message, expected);
    }

    #[test]
    fn an_ipv6_address_is_added_without_duplicate_detection() {
        let message = add_address(3, "2001:db8::7".parse().unwrap(), 128);
        assert_eq!(message.len(), 16 + 8 + 20 + 20);
        assert_eq!(&message[16..24], &[10, 128, 2, 0, 3, 0, 0, 0]);
        assert_eq!(&message[24..28], &[20, 0, 2, 0]);
        assert_eq!(&message[28..32], &[0x20, 0x01, 0x0d, 0xb8]);
    }

    #[test]
    fn a_default_route_goes_to_a_gateway_that_no_prefix_holds() {
        let message = default_route(3, "169.254.1.1".parse().unwrap());
        assert_eq!(&message[16..28], &[2, 0, 0, 0, 254, 3, 0, 1, 4, 0, 0, 0]);
        assert_eq!(&message[28..36], &[8, 0, 5, 0, 169, 254, 1, 1]);
        assert_eq!(&message[36..44], &[8, 0, 4, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn the_kernels_refusal_comes_back_as_its_errno() {
        let mut answer = vec![0; 36];
        answer[4] = 2;
        assert!(verdict(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(verdict(&answer).unwrap_err().downcast_ref::<Errno>(), Some(&Errno::EEXIST));
        assert!(verdict(&answer[..10]).is_err());
    }

    #[test]
    fn the_kernel_of_this_machine_understands_the_messages() {
        // Link 0 does not exist anywhere: well-formed messages are refused for that reason and no other.
        let route = Route::open().unwrap();
        for message in [link_up(0, None), add_address(0, "10.255.255.1".parse().unwrap(), 32)] {
            let errno = *route.ask(&message).unwrap_err().downcast_ref::<Errno>().unwrap();
            assert!([Errno::EINVAL, Errno::ENODEV, Errno::EPERM].contains(&errno), "{errno}");
        }
    }
}
