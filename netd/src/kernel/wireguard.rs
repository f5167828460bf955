//! The host mesh: a kernel WireGuard device with one peer a host.
//!
//! AllowedIPs hold each host's one static address and never a machine's: a machine that moves must not touch WireGuard, whose
//! AllowedIPs cannot be handed from one peer to another without a gap.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::error::Error;
use crate::store::replace;

/// A WireGuard key.
pub type Key = [u8; 32];

/// The peers of a device, by public key.
pub type Peers = BTreeMap<Key, Peer>;

/// One peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its packets go.
    pub endpoint: SocketAddr,
    /// Its one address on the mesh.
    pub mesh_addr: Ipv6Addr,
}

/// This host's private key, made on the first call: 32 bytes in base64, readable by root alone.
pub fn private_key(path: &Path) -> Result<Key, Error> {
    let wrap = |operation: &'static str| {
        move |source: io::Error| Error::File { operation, path: path.to_owned(), source }
    };
    match fs::read_to_string(path) {
        Ok(text) => parse_key(text.trim()).ok_or_else(|| {
            wrap("read the WireGuard key in")(io::Error::other(
                "it is not 32 bytes in base64; restore it or delete it",
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key: Key = rand::random();
            replace(path, format!("{}\n", BASE64_STANDARD.encode(key)).as_bytes(), 0o600)?;
            // The fleet will know this host by this key: it must not be lost with the power.
            fs::File::open(path).and_then(|file| file.sync_all()).map_err(wrap("sync"))?;
            Ok(key)
        }
        Err(error) => Err(wrap("read the WireGuard key in")(error)),
    }
}

/// The public key of a private one, in base64.
pub fn public_key(private: Key) -> String {
    BASE64_STANDARD.encode(PublicKey::from(&StaticSecret::from(private)).as_bytes())
}

/// A key from base64.
pub fn parse_key(text: &str) -> Option<Key> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// Gives a device its key and port.
pub async fn set_device(device: &str, private: Key, port: u16) -> Result<(), Error> {
    let attributes = vec![
        WireguardAttribute::IfName(device.to_owned()),
        WireguardAttribute::PrivateKey(private),
        WireguardAttribute::ListenPort(port),
    ];
    talk(WireguardCmd::SetDevice, attributes, NLM_F_ACK).await.map(drop).map_err(wrap("configure", device))
}

/// The peers that a device has.
pub async fn peers(device: &str) -> Result<Peers, Error> {
    let attributes = vec![WireguardAttribute::IfName(device.to_owned())];
    let answers = talk(WireguardCmd::GetDevice, attributes, NLM_F_DUMP)
        .await
        .map_err(wrap("read the peers of", device))?;
    let peers =
        answers.iter().flat_map(|answer| &answer.attributes).filter_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => Some(peers),
            _ => None,
        });
    Ok(peers.flatten().filter_map(read_peer).collect())
}

/// Turns the peers that a device has into those wanted. A peer that stays as it is keeps its session.
pub async fn set_peers(device: &str, held: &Peers, wanted: &Peers) -> Result<(), Error> {
    let gone = held.keys().filter(|key| !wanted.contains_key(*key)).map(|key| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*key),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ])
    });
    let new = wanted.iter().filter(|(key, peer)| held.get(*key) != Some(*peer)).map(|(key, peer)| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*key),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
            WireguardPeerAttribute::Endpoint(peer.endpoint),
            WireguardPeerAttribute::AllowedIps(vec![allowed(peer.mesh_addr)]),
        ])
    });
    let changes: Vec<WireguardPeer> = gone.chain(new).collect();
    // A netlink attribute holds 64 KiB; a peer needs about 130 bytes.
    for changes in changes.chunks(256) {
        let attributes =
            vec![WireguardAttribute::IfName(device.to_owned()), WireguardAttribute::Peers(changes.to_vec())];
        talk(WireguardCmd::SetDevice, attributes, NLM_F_ACK)
            .await
            .map_err(wrap("set the peers of", device))?;
    }
    Ok(())
}

fn allowed(address: Ipv6Addr) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv6),
        WireguardAllowedIpAttr::IpAddr(address.into()),
        WireguardAllowedIpAttr::Cidr(128),
    ])
}

/// None for a peer that netd cannot have made; it is replaced or removed.
fn read_peer(peer: &WireguardPeer) -> Option<(Key, Peer)> {
    let mut key = None;
    let mut endpoint = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let mut mesh_addr = Ipv6Addr::UNSPECIFIED;
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(*bytes),
            WireguardPeerAttribute::Endpoint(address) => endpoint = *address,
            WireguardPeerAttribute::AllowedIps(allowed) => {
                let addresses = allowed.iter().flat_map(|a| &a.0);
                mesh_addr = match addresses.filter_map(ip).next() {
                    Some(IpAddr::V6(address)) if allowed.len() == 1 => address,
                    _ => Ipv6Addr::UNSPECIFIED,
                };
            }
            _ => {}
        }
    }
    key.map(|key| (key, Peer { endpoint, mesh_addr }))
}

fn ip(attribute: &WireguardAllowedIpAttr) -> Option<IpAddr> {
    match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    }
}

/// One request on a socket of its own: the mesh changes when hosts come and go, not when machines move.
async fn talk(
    cmd: WireguardCmd,
    attributes: Vec<WireguardAttribute>,
    flags: u16,
) -> io::Result<Vec<WireguardMessage>> {
    let (connection, mut handle, _) = genetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let mut message = NetlinkMessage::from(GenlMessage::from_payload(WireguardMessage { cmd, attributes }));
    message.header.flags = NLM_F_REQUEST | flags;
    let mut answers = Vec::new();
    let result = async {
        let mut stream = handle.request(message).await.map_err(|e| io::Error::other(e.to_string()))?;
        while let Some(answer) = stream.next().await {
            match answer.map_err(|e| io::Error::other(e.to_string()))?.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => answers.push(message.payload),
                _ => {}
            }
        }
        Ok(())
    };
    let result = result.await;
    driver.abort();
    result.map(|()| answers)
}

fn wrap(operation: &'static str, device: &str) -> impl FnOnce(io::Error) -> Error {
    let object = format!("WireGuard device {device}");
    move |source| Error::Kernel { operation, object, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_its_public_half_follows_rfc_7748() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let key = private_key(&path).unwrap();
        assert_eq!(private_key(&path).unwrap(), key);
        // RFC 7748, 5.2: the first iteration, X25519(9, 9); 9 is the base point.
        let mut nine = [0; 32];
        nine[0] = 9;
        let public = hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        assert_eq!(parse_key(&public_key(nine)), Some(public));
    }

    fn hex(text: &str) -> Key {
        let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
        std::array::from_fn(byte)
    }
}
