//! The resolver for machines: `.internal` names of their own account, everything else forwarded.
//!
//! ```text
//! machine ──▶ who asks? (source address) ── nobody's ──▶ REFUSED
//!                      │
//!                      ├─ .internal, private addresses ──▶ names.rs, at once
//!                      └─ the rest ──▶ forward.rs, bounded in all and for each account ──▶ resolvers of the configuration
//! ```
//!
//! It listens at addresses of its own (`[dns] internal_listen`), never at the public ones: it is no open resolver even for one packet.

mod forward;
pub mod names;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::id::AccountId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::kind;
use crate::message::{HEADER, Header, Message, bare_reply, count_one, put_record};
use crate::name::Name;
use crate::update::rcode;
use names::{Directory, Said, TTL};

/// Questions that are forwarded at once.
const MOST_FORWARDED: usize = 1024;
/// Of these, for one account.
const MOST_OF_ONE: usize = 64;
/// TCP connections at once.
const MOST_CONNECTIONS: usize = 256;
/// A connection that has not finished its next question by then is closed; one that does not take its answer, too.
const IDLE: Duration = Duration::from_secs(10);
/// The longest question that is read over UDP.
const LONGEST_QUESTION: usize = 2048;
/// The largest answer over UDP.
const MAX_UDP: usize = 1232;
const CLASS_IN: u16 = 1;

/// What answers machines. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    directory: watch::Receiver<Directory>,
    resolvers: Vec<SocketAddr>,
    forwarded: Semaphore,
    of_one: Mutex<HashMap<AccountId, usize>>,
}

impl Resolver {
    /// For who is in the directory; `resolvers` are asked for the rest.
    pub fn new(directory: watch::Receiver<Directory>, resolvers: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner {
            directory,
            resolvers,
            forwarded: Semaphore::new(MOST_FORWARDED),
            of_one: Mutex::default(),
        }))
    }

    /// The answer; none where silence is right.
    pub async fn answer(&self, packet: &[u8], source: IpAddr, is_tcp: bool) -> Option<Vec<u8>> {
        let (account, end) = match self.at_once(packet, source, is_tcp) {
            AtOnce::Silence => return None,
            AtOnce::Reply(reply) => return Some(reply),
            AtOnce::Forward { account, question_end } => (account, question_end),
        };
        let failed = || Message::parse(packet).map(|message| reply(&message, rcode::SERVFAIL, false)).ok();
        let (Ok(_place), Some(_of_one)) = (self.0.forwarded.try_acquire(), Place::take(self, account)) else {
            return failed();
        };
        forward::forward(packet, end, is_tcp, &self.0.resolvers).await.or_else(failed)
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
            return AtOnce::Forward { account: account.clone(), question_end: message.questions_end };
        }
        AtOnce::Reply(told(&message, question.kind, &said, is_tcp))
    }
}

enum AtOnce {
    Silence,
    Reply(Vec<u8>),
    Forward { account: AccountId, question_end: usize },
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

/// An account's place among the questions that are forwarded; given back when dropped.
struct Place {
    resolver: Resolver,
    account: AccountId,
}

impl Place {
    fn take(resolver: &Resolver, account: AccountId) -> Option<Self> {
        let mut all = resolver.0.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(account.clone()).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Self { resolver: resolver.clone(), account })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.resolver.0.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.account) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.account);
            }
        }
    }
}

/// Answers on `socket` until it fails. Nobody waits for what is forwarded for another.
pub async fn serve_udp(socket: UdpSocket, resolver: Resolver) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LONGEST_QUESTION];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier answer is reported here. It says nothing about the socket.
            Err(error) => {
                debug!(%error, "receiving a machine's question");
                continue;
            }
        };
        let packet = buffer.get(..length).unwrap_or_default();
        if packet.len() < HEADER {
            continue;
        }
        match resolver.at_once(packet, peer.ip(), false) {
            AtOnce::Silence => {}
            AtOnce::Reply(reply) => {
                let _ = socket.try_send_to(&reply, peer);
            }
            AtOnce::Forward { .. } => {
                let (socket, resolver, packet) = (Arc::clone(&socket), resolver.clone(), packet.to_vec());
                if resolver.0.forwarded.available_permits() == 0 {
                    continue;
                }
                tokio::spawn(async move {
                    if let Some(reply) = resolver.answer(&packet, peer.ip(), false).await {
                        let _ = socket.send_to(&reply, peer).await;
                    }
                });
            }
        }
    }
}

/// Accepts on `listener` for ever.
pub async fn serve_tcp(listener: TcpListener, resolver: Resolver) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a machine's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Strangers are not even read.
        let known = resolver.0.directory.borrow().asker(peer.ip()).is_some();
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else { continue };
        if !known {
            continue;
        }
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, peer, &resolver).await {
                debug!(%error, %peer, "a machine's connection");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, resolver: &Resolver) -> io::Result<()> {
    loop {
        let packet = timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await.map(|_| packet)
        });
        let Ok(Ok(packet)) = packet.await else { return Ok(()) };
        let Some(reply) = resolver.answer(&packet, peer.ip(), true).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await??;
    }
}
