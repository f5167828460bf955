//! Tells secondaries of new serials (RFC 1996), each until it has heard, or a few times. One that never hears looks by itself when its
//! SOA's refresh says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::copy::ZoneCopy;
use super::publish::Board;
use super::secondary::Secondary;
use crate::message::Message;
use crate::name::Name;
use crate::tsig::Conversation;

/// The opcode.
pub const OPCODE: u8 = 4;

/// Questions before a secondary is given up until the next change; the first waits [`FIRST_WAIT`], each further one twice as long.
const TRIES: u32 = 5;

const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Tells one secondary for ever. `from` are our own addresses: it may know us by one of them only.
pub async fn tell(
    secondary: Secondary,
    from: Vec<IpAddr>,
    mut board: watch::Receiver<Arc<Board>>,
    now: impl Fn() -> u64,
) {
    let mut heard: BTreeMap<Name, u32> = BTreeMap::new();
    loop {
        let current = Arc::clone(&board.borrow_and_update());
        for (apex, published) in current.iter() {
            let copy = published.copy();
            if heard.get(apex) == Some(&copy.serial()) {
                continue;
            }
            // Heard or not: it is not told the same twice.
            heard.insert(apex.clone(), copy.serial());
            match ask(&secondary, &from, copy, &board, &now).await {
                Told::Heard => {
                    info!(secondary = secondary.name, zone = %apex, serial = copy.serial(), "was notified")
                }
                Told::Overtaken => {
                    heard.remove(apex);
                }
                Told::Refused(code) => {
                    warn!(secondary = secondary.name, zone = %apex, code, "refuses to be notified: does it know the zone, our address and the key?");
                }
                Told::Silent => warn!(
                    secondary = secondary.name, zone = %apex, address = %secondary.address,
                    "does not hear of a new serial: it will look by itself when its refresh is over"
                ),
            }
        }
        heard.retain(|apex, _| current.contains_key(apex));
        if board.has_changed().is_ok_and(|changed| !changed) && board.changed().await.is_err() {
            return;
        }
        if board.has_changed().is_err() {
            return;
        }
    }
}

enum Told {
    Heard,
    /// There is a newer serial to tell of.
    Overtaken,
    Refused(u8),
    Silent,
}

async fn ask(
    secondary: &Secondary,
    from: &[IpAddr],
    copy: &ZoneCopy,
    board: &watch::Receiver<Arc<Board>>,
    now: &impl Fn() -> u64,
) -> Told {
    let mut wait = FIRST_WAIT;
    for attempt in 0..TRIES {
        if attempt > 0 && board.has_changed().unwrap_or(false) {
            return Told::Overtaken;
        }
        match once(secondary, from, copy, now(), wait).await {
            Ok(Some(0)) => return Told::Heard,
            Ok(Some(code)) => return Told::Refused(code),
            Ok(None) => {}
            Err(error) => {
                debug!(secondary = secondary.name, %error, "notifying");
                tokio::time::sleep(wait).await;
            }
        }
        wait *= 2;
    }
    Told::Silent
}

/// The code of its answer; none in time.
async fn once(
    secondary: &Secondary,
    from: &[IpAddr],
    copy: &ZoneCopy,
    now: u64,
    wait: Duration,
) -> std::io::Result<Option<u8>> {
    let mut packet = request(copy, rand::random());
    let conversation = secondary.key.clone().map(|key| Conversation::ask(key, &mut packet, now));
    let any: IpAddr = match secondary.address {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let own = from.iter().copied().find(|ip| ip.is_ipv4() == any.is_ipv4()).unwrap_or(any);
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(secondary.address).await?;
    socket.send(&packet).await?;
    let answered = async {
        let mut buffer = [0; 1500];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = buffer.get(..length).and_then(|bytes| Message::parse(bytes).ok());
            let ours = |answer: &Message<'_>| {
                let header = answer.header;
                let about = header.is_response()
                    && header.opcode() == OPCODE
                    && packet.starts_with(&header.id.to_be_bytes());
                about
                    && conversation
                        .as_ref()
                        .is_none_or(|asked| asked.is_answered_by(answer, now) || header.rcode() != 0)
            };
            if let Some(answer) = answer.filter(ours) {
                return Ok(answer.header.rcode());
            }
        }
    };
    match timeout(wait, answered).await {
        Ok(answer) => answer.map(Some),
        Err(_) => Ok(None),
    }
}

fn request(copy: &ZoneCopy, id: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(512);
    // Opcode NOTIFY, AA; one question, one answer.
    for word in [id, 0x2400, 1, u16::from(copy.soa().is_some()), 0, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend_from_slice(copy.apex().as_wire());
    packet.extend(crate::kind::SOA.to_be_bytes());
    packet.extend(1u16.to_be_bytes());
    packet.extend(copy.soa().iter().flat_map(|soa| soa.iter()));
    packet
}
