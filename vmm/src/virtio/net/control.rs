//! The control queue: the driver acknowledges an announcement; nothing else is offered.

use std::io::{Read, Write};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::CONTROL;
use crate::virtio::Rings;

/// Works the queue off; true when an announcement was acknowledged.
pub fn serve(rings: &mut Rings<'_>) -> bool {
    let mut acknowledged = false;
    while !rings.gate.is_closed() {
        let Some(chain) = rings.pop(CONTROL) else { break };
        let head = chain.head_index();
        let mut written = 0;
        if let (Ok(mut reader), Ok(mut writer)) =
            (chain.clone().reader(rings.memory), chain.writer(rings.memory))
        {
            let mut command = [0; 2];
            let known = reader.read_exact(&mut command).is_ok()
                && command.map(u32::from) == [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK];
            acknowledged |= known;
            let status = if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            if writer.write_all(&[u8::try_from(status).unwrap_or(1)]).is_ok() {
                written = 1;
            }
        }
        rings.push(CONTROL, head, written);
        rings.signal(CONTROL);
    }
    acknowledged
}
