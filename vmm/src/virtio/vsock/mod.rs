//! The vsock device: streams between programs in the guest and unix sockets of the host, as Firecracker lays them out.
//!
//! ```text
//! host client ──connect──► SOCKET, "CONNECT 1024\n" ──► guest port 1024     ◄── "OK <host port>\n"
//! guest client ──connect──► (cid 2, port 52) ──► SOCKET_52
//! ```
//!
//! `packet` is the wire format, `connection` one stream's flow control (no I/O), `mux` the table of streams and the
//! sockets, `device` the queues.
//!
//! Streams do not survive a migration: their far end is a process of the old host. The destination sends
//! `TRANSPORT_RESET`, whereupon the guest closes all of them and its listeners stay.

mod connection;
mod device;
mod mux;
mod packet;

pub use device::Vsock;

/// The host's context id.
const HOST_CID: u64 = 2;
