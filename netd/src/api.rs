//! What netd is told and what it answers.
//!
//! netd serves a unix stream socket: one JSON [`Request`] a line in, one JSON [`Reply`] a line out, in order, any number a
//! connection. A reply is `{"ok":true}`, `{"ok":true,"status":{…}}` or `{"ok":false,"error":"…"}`.
//!
//! The life of a machine's port on one host, and who says so:
//!
//! ```text
//!                 prepare             activate              announce
//!   (no port) ───────────▶ suppressed ────────▶ active ───────────────▶ announced
//!       ▲                    ▲    │   suppress    │                          │
//!       │      remove        │    │◀──────────────┴──────────────────────────┤
//!       └────────────────────┴────┘            redirect (the machine now runs elsewhere)
//! ```
//!
//! | request    | who sends it, when |
//! | ---        | --- |
//! | `prepare`  | host daemon, before it starts a monitor; also for the destination of a migration |
//! | `activate` | host daemon once the guest is ready; in a migration the destination's monitor when all is loaded |
//! | `announce` | whoever sent `activate`, once the guest runs |
//! | `suppress` | the destination's monitor after a failure before the hand-over |
//! | `redirect` | the source's monitor, the moment its hand-over is durable |
//! | `remove`   | host daemon, when the monitor's process has ended |
//!
//! Invariants:
//! - Every request is idempotent: repeating one that was answered changes nothing and is answered the same.
//! - Every request carries the epoch of the instance that it is about. One older than what this host knows of the machine is
//!   refused, and nothing changes.
//! - A reply with `ok` means that the kernel has taken the change and that a netd killed right after it will restore it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv6Network;
use serde::{Deserialize, Serialize};

pub use crate::mac::Mac;

/// The longest line either side of the socket accepts, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Every tap that netd makes or removes starts so; no other interface of the host may.
pub const TAP_PREFIX: &str = "mt-";

/// The gateway of every machine, the same on every host: its neighbour cache survives a move.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The gateway of every machine with an IPv4 address (on-link, outside the machine's own prefix).
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The Ethernet address of both gateways, on every host.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0x6d, 0x61, 0x73, 0x68, 0x01]);

/// The MTU of a machine's interface over a 1500-byte underlay: 1500 − 80 (WireGuard over IPv6) − 56 (VXLAN-GPE over IPv6)
/// leaves 1364.
pub const GUEST_MTU: u16 = 1360;

/// The tap's name for a machine: [`TAP_PREFIX`] and 12 characters that depend on the id alone, 15 bytes in all (the most
/// that Linux takes).
pub fn tap_name(machine_id: &str) -> String {
    // FNV-1a, written out because the name must be the same in every build for ever.
    let hash = machine_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let digits = b"0123456789abcdefghjkmnpqrstvwxyz";
    let suffix = (0..12).map(|i| {
        let five_bits = usize::try_from((hash >> (i * 5)) & 31).unwrap_or(0);
        char::from(digits[five_bits])
    });
    TAP_PREFIX.chars().chain(suffix).collect()
}

/// One machine's place in this host's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The machine: 1 to 64 letters, digits, `-` or `_`.
    pub machine_id: String,
    /// The epoch of the instance that will use the tap.
    pub epoch: u64,
    /// The tap's name, normally [`tap_name`] of the machine.
    pub tap: String,
    /// The machine's Ethernet address. Unicast, the same on every host.
    pub mac: Mac,
    /// The MTU of the tap, 1280 to [`GUEST_MTU`] unless the underlay carries more.
    pub mtu: u16,
    /// The public address, a /128.
    pub ipv6: Ipv6Addr,
    /// The private address inside `account`, a /128.
    #[serde(default)]
    pub private6: Option<Ipv6Addr>,
    /// The private IPv4 address, for egress only, a /32.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// The account's private prefix, a ULA /48: nobody outside it reaches `private6`, and the machine reaches no other
    /// private address.
    pub account: Ipv6Network,
    /// The overlay's network identifier, 24 bits.
    pub vni: u32,
}

/// What netd can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Makes the tap, its addresses and its filters. No packet is routed to it yet.
    Prepare(Port),
    /// Routes the machine's addresses to its tap. Safe before the guest runs: frames wait in the tap's queue, of which there
    /// is one only while a monitor holds the tap.
    Activate(Instance),
    /// Undoes `activate`: the addresses go where the fleet's records say.
    Suppress(Instance),
    /// Tells the neighbours on a shared L2 that the addresses are here; nothing to tell where the ingress is anchored.
    Announce(Instance),
    /// Turns the machine's addresses to another host, in one message each, until the fleet's records say so too.
    Redirect {
        /// The machine.
        machine: String,
        /// The epoch in which it runs at `to_host`.
        epoch: u64,
        /// The host's id, as in the fleet's records.
        to_host: String,
    },
    /// Takes the tap and its filters away. A redirect stays.
    Remove(Instance),
    /// Answers with [`Status`].
    Status,
}

/// A machine in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The machine.
    pub machine: String,
    /// The epoch.
    pub epoch: u64,
}

/// What netd answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireReply", into = "WireReply")]
pub enum Reply {
    /// Done.
    Done,
    /// To `status`.
    Status(Box<Status>),
    /// Not done. Nothing changed, or what the error says.
    Refused(String),
}

/// What netd holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This host.
    pub host_id: String,
    /// The revision of the fleet's records that the routes follow; 0 before any was seen.
    pub revision: u64,
    /// The ports of this host, by machine.
    pub ports: BTreeMap<String, PortStatus>,
    /// The redirects still held, by machine: `(epoch, host)`.
    pub redirects: BTreeMap<String, (u64, String)>,
    /// The routes in netd's table, by prefix, as `tap NAME` or `host ADDRESS`.
    pub routes: BTreeMap<String, String>,
    /// This host's WireGuard public key, base64; none when the underlay is plain.
    pub wireguard_public_key: Option<String>,
    /// Changes that the kernel refused and that are tried again, each with its last error.
    pub troubles: Vec<String>,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// As prepared.
    pub port: Port,
    /// Where its life stands.
    pub phase: Phase,
}

/// Where a port's life stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The tap exists; no route leads to it.
    Suppressed,
    /// The machine's addresses lead to the tap.
    Active,
    /// As `active`, and this host speaks for the addresses on a shared L2.
    Announced,
}

#[derive(Serialize, Deserialize)]
struct WireReply {
    // `ok` comes first: monitors look at the first bytes alone.
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<Box<Status>>,
}

impl From<Reply> for WireReply {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Done => Self { ok: true, error: None, status: None },
            Reply::Status(status) => Self { ok: true, error: None, status: Some(status) },
            Reply::Refused(error) => Self { ok: false, error: Some(error), status: None },
        }
    }
}

impl TryFrom<WireReply> for Reply {
    type Error = &'static str;

    fn try_from(wire: WireReply) -> Result<Self, Self::Error> {
        match wire {
            WireReply { ok: true, error: None, status: None } => Ok(Self::Done),
            WireReply { ok: true, error: None, status: Some(status) } => Ok(Self::Status(status)),
            WireReply { ok: false, error: Some(error), status: None } => Ok(Self::Refused(error)),
            WireReply { .. } => Err("a reply has ok and status, or not ok and an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_documented() {
        let redirect = Request::Redirect { machine: "m1".into(), epoch: 4, to_host: "b".into() };
        let line = serde_json::to_string(&redirect).unwrap();
        assert_eq!(line, r#"{"op":"redirect","machine":"m1","epoch":4,"to_host":"b"}"#);
        let activate: Request =
            serde_json::from_str(r#"{"op":"activate","machine":"m1","epoch":4}"#).unwrap();
        assert_eq!(activate, Request::Activate(Instance { machine: "m1".into(), epoch: 4 }));
    }

    #[test]
    fn replies_start_with_ok() {
        assert_eq!(serde_json::to_string(&Reply::Done).unwrap(), r#"{"ok":true}"#);
        let refused = Reply::Refused("no".into());
        let line = serde_json::to_string(&refused).unwrap();
        assert_eq!(line, r#"{"ok":false,"error":"no"}"#);
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), refused);
        assert!(serde_json::from_str::<Reply>(r#"{"ok":true,"error":"x"}"#).is_err());
    }

    #[test]
    fn a_tap_name_fits_an_interface_name() {
        assert_eq!(tap_name("01JD3Z8M5N6P7Q8R9STVWXYZAB").len(), 15);
        assert_ne!(tap_name("a"), tap_name("b"));
        assert_eq!(tap_name("a"), tap_name("a"));
    }
}
