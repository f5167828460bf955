//! The resolver for machines: `.internal` names of their own account, everything else forwarded.
//!
//! ```text
//! machine ──▶ who asks? (source address) ── nobody's ──▶ REFUSED
//!                      │
//!                      ├─ .internal, private addresses ──▶ names.rs, at once
//!                      └─ the rest ──▶ forward.rs, bounded in all, for each account and address ──▶ resolvers of the world
//! ```
//!
//! It listens at an address of its own, which netd lets none but the host's own machines reach: it is no open resolver even for one packet. Each
//! host answers its machines itself ([`mashines_fleet::resolver`]), from the replica, whatever becomes of others.

mod forward;
pub mod names;
mod serve;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mashines_fleet::id::AccountId;
use tokio::sync::watch;

use crate::kind;
use crate::message::{Header, Message, bare_reply, count_one, put_record};
use crate::name::Name;
use crate::shares::{Share, Shares};
use crate::update::rcode;
use names::{Directory, Said, TTL};

pub use serve::{Sockets, run};

/// Questions that are forwarded at once: each has a socket of its own.
const FORWARDED: Most = Most { in_all: 256, of_account: 64, of_address: 16 };
/// The largest answer over UDP.
const MAX_UDP: usize = 1232;
const CLASS_IN: u16 = 1;

/// What answers machines. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    directory: watch::Receiver<Directory>,
    resolvers: Vec<SocketAddr>,
    forwarded: Places,
}

impl Resolver {
    /// For who is in the directory; `resolvers` are asked for the rest.
    pub fn new(directory: watch::Receiver<Directory>, resolvers: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner { directory, resolvers, forwarded: Places::new(FORWARDED) }))
    }

    /// The answer; none where silence is right.
    pub async fn answer(&self, packet: &[u8], source: IpAddr, is_tcp: bool) -> Option<Vec<u8>> {
        match self.at_once(packet, source, is_tcp) {
            AtOnce::Silence => None,
            AtOnce::Reply(reply) => Some(reply),
            AtOnce::Forward(question) => self.forward(packet, question, is_tcp).await,
        }
    }

    /// What another says.
    async fn forward(&self, packet: &[u8], question: Forwarded, is_tcp: bool) -> Option<Vec<u8>> {
        let said = forward::forward(packet, question.end, is_tcp, &self.0.resolvers).await;
        said.or_else(|| Message::parse(packet).ok().map(|message| failed(&message)))
    }

    /// Whose machine that is.
    fn asker(&self, source: IpAddr) -> Option<AccountId> {
        self.0.directory.borrow().asker(source).cloned()
    }

    fn at_once(&self, packet: &[u8], source: IpAddr, is_tcp: bool) -> AtOnce {
        let Some(header) = Header::read(packet).filter(|header| !header.is_response()) else {
            return AtOnce::Silence;
        };
        let directory = self.0.directory.borrow();
        let Some(account) = directory.asker(source) else {
            return AtOnce::Reply(bare_reply(header, rcode::REFUSED));
        };
        if header.opcode() != 0 {
            return AtOnce::Reply(bare_reply(header, rcode::NOTIMP));
        }
        let Ok(message) = Message::parse(packet) else {
            return AtOnce::Reply(bare_reply(header, rcode::FORMERR));
        };
        let [question] = message.questions.as_slice() else {
            return AtOnce::Reply(bare_reply(header, rcode::FORMERR));
        };
        if question.class != CLASS_IN || matches!(question.kind, kind::AXFR | kind::IXFR) {
            return AtOnce::Reply(reply(&message, rcode::REFUSED, false));
        }
        let Some(name) = Name::from_wire(&question.name) else {
            return AtOnce::Reply(bare_reply(header, rcode::FORMERR));
        };
        let said = directory.say(account, &name, question.kind);
        if said == Said::NotOurs {
            return match self.0.forwarded.take(account.clone(), source) {
                Some(place) => AtOnce::Forward(Forwarded { end: message.questions_end, _place: place }),
                None => AtOnce::Reply(failed(&message)),
            };
        }
        AtOnce::Reply(told(&message, question.kind, &said, is_tcp))
    }
}

enum AtOnce {
    Silence,
    Reply(Vec<u8>),
    Forward(Forwarded),
}

/// A question for another, with its place among those that are forwarded at once.
struct Forwarded {
    /// Where the question ends in its packet.
    end: usize,
    _place: Place,
}

/// How many there may be at once.
#[derive(Clone, Copy)]
struct Most {
    in_all: usize,
    of_account: usize,
    /// A machine has two, so that one of them never takes more than half of its account's.
    of_address: usize,
}

/// Places that machines share.
struct Places {
    by_account: Shares<AccountId>,
    by_address: Shares<IpAddr>,
}

/// One of them; given back when dropped.
type Place = (Share<AccountId>, Share<IpAddr>);

impl Places {
    fn new(most: Most) -> Self {
        Self {
            by_account: Shares::new(most.in_all, most.of_account),
            by_address: Shares::new(most.in_all, most.of_address),
        }
    }

    fn take(&self, account: AccountId, source: IpAddr) -> Option<Place> {
        self.by_account.take(account).zip(self.by_address.take(source.to_canonical()))
    }
}

fn failed(message: &Message<'_>) -> Vec<u8> {
    reply(message, rcode::SERVFAIL, false)
}

/// A response of a resolver: recursion is available.
fn reply(message: &Message<'_>, code: u8, authoritative: bool) -> Vec<u8> {
    let mut reply = message.reply(code, authoritative);
    if let Some(flags) = reply.get_mut(3) {
        *flags |= 0x80;
    }
    reply
}

fn told(message: &Message<'_>, kind: u16, said: &Said, is_tcp: bool) -> Vec<u8> {
    let opt = message.sections[2].iter().find(|record| record.kind == kind::OPT);
    let limit = match (is_tcp, opt) {
        (true, _) => usize::from(u16::MAX),
        (false, Some(opt)) => usize::from(opt.class).clamp(512, MAX_UDP),
        (false, None) => 512,
    };
    let code = if *said == Said::NoName { rcode::NXDOMAIN } else { rcode::NOERROR };
    let mut bytes = reply(message, code, true);
    match said {
        Said::Records(all) => {
            for data in all {
                // The name is that of the question, which is right behind the header.
                put_record(&mut bytes, &[0xc0, 12], kind, CLASS_IN, TTL, data);
                count_one(&mut bytes, 1);
            }
        }
        Said::Nothing | Said::NoName | Said::NotOurs => {
            put_record(&mut bytes, b"\x08internal\x00", kind::SOA, CLASS_IN, TTL, &soa());
            count_one(&mut bytes, 2);
        }
    }
    let with_opt = |mut bytes: Vec<u8>| {
        if opt.is_some() {
            put_record(&mut bytes, &[0], kind::OPT, 1232, 0, &[]);
            count_one(&mut bytes, 3);
        }
        bytes
    };
    let whole = with_opt(bytes);
    if whole.len() <= limit {
        return whole;
    }
    let mut short = reply(message, code, true);
    if let Some(flags) = short.get_mut(2) {
        *flags |= 0x02;
    }
    with_opt(short)
}

fn soa() -> Vec<u8> {
    let mut data = b"\x02ns\x08internal\x00\x0ahostmaster\x08internal\x00".to_vec();
    for number in [1, TTL, TTL, TTL, TTL] {
        data.extend(number.to_be_bytes());
    }
    data
}
