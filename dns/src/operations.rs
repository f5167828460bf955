//! What is more than a question: transfers to secondaries, dynamic updates, and whatever is signed with a shared key.
//!
//! ```text
//! packet ── concerns? ──no──▶ answer (as ever)
//!              │ yes
//!              ▼
//!           handle ──▶ Reply, Silence      at once
//!                  ──▶ Question            without its signature; the answer is to be signed
//!                  ──▶ Transfer            over TCP, message by message
//!                  ──▶ Pending             an update: control changes the record, this server's replica shows it, then there is an answer
//! ```
//!
//! Everything here is bounded: updates and transfers at once, how long each may take, and what is remembered of updates.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mashines_fleet::dns_update::{self, Update, Updated};
use mashines_fleet::key::Key as RecordKey;
use mashines_fleet::record::{Desired, Machine};
use mashines_fleet::rpc::Client;
use mashines_fleet::sealed::EntrySecret;
use mashines_fleet::view::View;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::kind;
use crate::message::{HEADER, Header, Message, bare_reply, count_one, put_record, shown};
use crate::name::Name;
use crate::transfer::Board;
use crate::transfer::journal::Since;
use crate::transfer::secondary::Secondaries;
use crate::transfer::stream::Transfer;
use crate::tsig::{self, Algorithm, Conversation, Key};
use crate::update::{self, Owner, rcode};

/// Updates at once: each waits for control.
const MOST_UPDATES: usize = 64;

/// Transfers at once.
const MOST_TRANSFERS: usize = 16;

/// A transfer that is not done by then is cut: a secondary that takes a byte a minute must not keep a place.
pub const LONGEST_TRANSFER: Duration = Duration::from_secs(600);

/// How long control and the replica may take for an update. Clients ask again after some seconds.
const PATIENCE: Duration = Duration::from_secs(8);

/// Updates that are remembered, so that none happens twice.
const MOST_SEEN: usize = 8192;

/// The largest answer over UDP.
const MAX_UDP: usize = 1232;

const CLASS_IN: u16 = 1;

/// Machines with a key for updates, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateKeys(BTreeMap<String, Arc<Machine>>);

impl UpdateKeys {
    /// Goes from those of the view `before` to those of `view`.
    pub fn follow(&mut self, before: &View, view: &View) {
        let has_key =
            |machine: &&Arc<Machine>| machine.update_key.is_some() && machine.desired != Desired::Destroyed;
        let changed = view.changed_machines(before);
        // What goes, goes first: a name may have a new owner in the same change.
        for old in changed.iter().filter_map(|(old, _)| old.filter(has_key)) {
            if self.0.get(old.slug.as_str()).is_some_and(|known| known.id == old.id) {
                self.0.remove(old.slug.as_str());
            }
        }
        let new = changed.iter().filter_map(|(_, new)| new.filter(has_key));
        self.0.extend(new.map(|machine| (machine.slug.to_string(), Arc::clone(machine))));
    }

    fn get(&self, slug: &str) -> Option<&Arc<Machine>> {
        self.0.get(slug)
    }
}

/// What this server does for secondaries and for owners' programs. Cheap to clone.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

/// What [`Operations`] works with.
pub struct Parts {
    /// Who may have copies.
    pub secondaries: Secondaries,
    /// The copies.
    pub board: watch::Receiver<Arc<Board>>,
    /// Machines with a key.
    pub update_keys: watch::Receiver<UpdateKeys>,
    /// What opens the keys.
    pub secret: watch::Receiver<Option<EntrySecret>>,
    /// The fleet's zone, which machines' names are in.
    pub domain: watch::Receiver<Option<Name>>,
    /// The revision of the facts that this server answers from.
    pub served: watch::Receiver<u64>,
    /// Control, by each of its addresses.
    pub control: Vec<Client>,
}

struct Inner {
    parts: Parts,
    updates: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    seen: Mutex<Seen>,
}

/// What is to be done about a packet.
pub enum Handled {
    /// This is the answer.
    Reply(Vec<u8>),
    /// There is none.
    Silence,
    /// A question after all: the packet without its signature, and what signs the answer where there was one.
    Question(Vec<u8>, Option<Box<Conversation>>),
    /// An update.
    Update(Box<Pending>),
    /// A transfer, and its place among those at once.
    Transfer(Box<Transfer>, OwnedSemaphorePermit),
}

impl Operations {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            updates: Arc::new(Semaphore::new(MOST_UPDATES)),
            transfers: Arc::new(Semaphore::new(MOST_TRANSFERS)),
            seen: Mutex::default(),
        }))
    }

    /// Whether a packet is for [`Operations::handle`] and not a plain question. It looks at few bytes of a plain question.
    pub fn concerns(&self, packet: &[u8], peer: IpAddr) -> bool {
        let Some(header) = Header::read(packet).filter(|header| !header.is_response()) else { return false };
        if header.opcode() == update::OPCODE {
            return true;
        }
        let Some((kind, end)) = question_kind(packet).filter(|_| header.opcode() == 0) else { return false };
        match kind {
            kind::AXFR | kind::IXFR => true,
            kind::SOA if self.0.parts.secondaries.knows(peer) => true,
            _ => has_tsig(packet, header, end),
        }
    }

    /// What is to be done about such a packet. `now` is in seconds since 1970.
    pub fn handle(&self, packet: &[u8], peer: IpAddr, is_tcp: bool, now: u64) -> Handled {
        let Some(header) = Header::read(packet) else { return Handled::Silence };
        let Ok(message) = Message::parse(packet) else {
            return Handled::Reply(bare_reply(header, rcode::FORMERR));
        };
        let found = match tsig::find(&message) {
            Ok(found) => found,
            Err(_) => return Handled::Reply(bare_reply(header, rcode::FORMERR)),
        };
        let Some(found) = found else { return self.unsigned(&message, peer, is_tcp) };
        let (key_name, mac) = (found.key.clone(), found.mac.clone());
        let secondary = self.0.parts.secondaries.key(&key_name);
        let owner = match &secondary {
            Some(_) => None,
            None => self.owner(&key_name),
        };
        let key = secondary.or_else(|| owner.as_ref().map(|(_, key)| key.clone()));
        let conversation = match tsig::verify(&message, found, key, now) {
            Ok(conversation) => conversation,
            Err(refusal) => {
                info!(%peer, key = shown(&key_name), why = refusal.word(), "a signed message was refused");
                return Handled::Reply(refusal.reply(&message, now));
            }
        };
        if header.opcode() == update::OPCODE {
            let Some((machine, _)) = owner else {
                return signed(&message, rcode::REFUSED, conversation, now);
            };
            return self.update(&message, &machine, mac, conversation, now);
        }
        match message.questions.first().map(|question| question.kind) {
            Some(kind::AXFR | kind::IXFR) => self.transfer(&message, peer, is_tcp, Some(conversation), now),
            Some(kind::SOA) if self.0.parts.secondaries.may_have(peer, Some(&key_name)) => {
                match self.soa(&message) {
                    Some(reply) => Handled::Reply(sign_answer(reply, conversation, is_tcp, now)),
                    None => Handled::Question(without_tsig(&message), Some(Box::new(conversation))),
                }
            }
            _ => Handled::Question(without_tsig(&message), Some(Box::new(conversation))),
        }
    }

    fn unsigned(&self, message: &Message<'_>, peer: IpAddr, is_tcp: bool) -> Handled {
        if message.header.opcode() == update::OPCODE {
            return Handled::Reply(message.reply(rcode::REFUSED, false));
        }
        match message.questions.first().map(|question| question.kind) {
            Some(kind::SOA) => match self.soa(message) {
                Some(reply) => Handled::Reply(reply),
                None => Handled::Question(message.bytes.to_vec(), None),
            },
            _ => self.transfer(message, peer, is_tcp, None, 0),
        }
    }

    /// The SOA for a secondary: that of the copies.
    fn soa(&self, message: &Message<'_>) -> Option<Vec<u8>> {
        let board = Arc::clone(&self.0.parts.board.borrow());
        let apex = message.questions.first().and_then(|question| Name::from_wire(&question.name));
        let published = board.get(&apex?)?;
        let mut reply = message.reply(rcode::NOERROR, true);
        let opt = message.sections[2].iter().find(|record| record.kind == kind::OPT);
        let wants_signatures = opt.is_some_and(|opt| opt.ttl & 0x8000 != 0);
        let signatures = published.copy().soa_signatures().iter().filter(|_| wants_signatures);
        for record in published.copy().soa().into_iter().chain(signatures) {
            reply.extend_from_slice(record);
            count_one(&mut reply, 1);
        }
        if let Some(opt) = opt {
            // Version 0, the flag as it came; 1232 bytes.
            put_record(&mut reply, &[0], kind::OPT, 1232, opt.ttl & 0x8000, &[]);
            count_one(&mut reply, 3);
        }
        Some(reply)
    }

    fn transfer(
        &self,
        message: &Message<'_>,
        peer: IpAddr,
        is_tcp: bool,
        conversation: Option<Conversation>,
        now: u64,
    ) -> Handled {
        let refuse = |code, conversation: Option<Conversation>| match conversation {
            Some(conversation) => signed(message, code, conversation, now),
            None => Handled::Reply(message.reply(code, false)),
        };
        let [question] = message.questions.as_slice() else { return refuse(rcode::FORMERR, conversation) };
        let key = conversation.as_ref().map(|conversation| conversation.key().name.as_slice());
        if question.class != CLASS_IN || !self.0.parts.secondaries.may_have(peer, key) {
            info!(%peer, zone = shown(&question.name), "is not among [dns] secondaries, or has not signed with its key: no transfer");
            return refuse(rcode::REFUSED, conversation);
        }
        let board = Arc::clone(&self.0.parts.board.borrow());
        let Some(published) = Name::from_wire(&question.name).and_then(|apex| board.get(&apex)) else {
            return refuse(rcode::NOTAUTH, conversation);
        };
        let Ok(place) = Arc::clone(&self.0.transfers).try_acquire_owned() else {
            warn!(%peer, "too many transfers at once: this one is refused");
            return refuse(rcode::SERVFAIL, conversation);
        };
        let copy = || Arc::clone(published.copy());
        let transfer = match (question.kind, is_tcp) {
            (kind::AXFR, true) => Transfer::all(copy(), message, conversation),
            (kind::AXFR, false) => return refuse(rcode::REFUSED, conversation),
            // RFC 1995 §2: the SOA alone says that it does not fit, if there is something.
            (_, false) => Transfer::soa(copy(), message, conversation),
            (_, true) => {
                let soa = message.sections[1].iter().find(|record| record.kind == kind::SOA);
                let Some(serial) = soa.and_then(|soa| message.serial(soa)) else {
                    return refuse(rcode::FORMERR, conversation);
                };
                match published.since(serial) {
                    Since::Nothing => Transfer::soa(copy(), message, conversation),
                    Since::Changes(records) => Transfer::changes(copy(), records, message, conversation),
                    Since::Everything => Transfer::all(copy(), message, conversation),
                }
            }
        };
        info!(%peer, zone = shown(&question.name), serial = published.copy().serial(), kind = question.kind, "transfer");
        if is_tcp {
            return Handled::Transfer(Box::new(transfer), place);
        }
        let mut transfer = transfer;
        transfer.next_message(now).map_or(Handled::Silence, Handled::Reply)
    }

    /// The machine whose key has this name, and the key.
    fn owner(&self, key_name: &[u8]) -> Option<(Arc<Machine>, Key)> {
        let domain = self.0.parts.domain.borrow().clone()?;
        let name = Name::from_wire(key_name)?;
        let relative = name.relative_to(&domain)?;
        let (length, label) = relative.split_first()?;
        let slug = std::str::from_utf8(label).ok().filter(|slug| slug.len() == usize::from(*length))?;
        let machine = self.0.parts.update_keys.borrow().get(slug).cloned()?;
        let sealed = &machine.update_key.as_ref()?.secret;
        let secret = self.0.parts.secret.borrow().clone()?;
        let opened = secret.open(&RecordKey::Machine(machine.id.clone()), sealed);
        let bytes = opened.map_err(|error| warn!(machine = %machine.id, %error, "an update key")).ok()?;
        Some((machine, Key::new(key_name, Algorithm::Sha256, &bytes)))
    }

    fn update(
        &self,
        message: &Message<'_>,
        machine: &Machine,
        mac: Vec<u8>,
        conversation: Conversation,
        now: u64,
    ) -> Handled {
        let zone = self.0.parts.domain.borrow().clone();
        let Some(zone) = zone else { return signed(message, rcode::SERVFAIL, conversation, now) };
        let Ok(name) = zone.child(machine.slug.as_str().as_bytes()) else {
            return signed(message, rcode::SERVFAIL, conversation, now);
        };
        let owner = Owner { machine: &machine.id, name: name.as_wire(), zone: zone.as_wire() };
        let update = match update::read(message, owner) {
            Ok(update) => update,
            Err(code) => {
                info!(machine = %machine.id, code, "an update was refused");
                return signed(message, code, conversation, now);
            }
        };
        let Ok(place) = Arc::clone(&self.0.updates).try_acquire_owned() else {
            return signed(message, rcode::SERVFAIL, conversation, now);
        };
        match self.seen().begin(&mac, now) {
            Begin::New => {}
            // The client asks again: it gets the same answer, and nothing happens twice.
            Begin::Done(code) => return signed(message, code, conversation, now),
            Begin::UnderWay => return Handled::Silence,
            Begin::Full => return signed(message, rcode::SERVFAIL, conversation, now),
        }
        Handled::Update(Box::new(Pending {
            operations: self.clone(),
            update,
            head: message.bytes.to_vec(),
            mac,
            conversation,
            _place: place,
        }))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an update to control, and waits until this server shows it.
    async fn bring(&self, update: &Update) -> u8 {
        let mut updated: Option<Updated> = None;
        for control in &self.0.parts.control {
            match control.post::<Update, Updated>(dns_update::PATH, update).await {
                Ok(answer) => {
                    updated = Some(answer);
                    break;
                }
                Err(error) => warn!(%error, machine = %update.machine, "control did not take an update"),
            }
        }
        let Some(updated) = updated else { return rcode::SERVFAIL };
        let code = update::code(updated.outcome);
        if code == rcode::NOERROR {
            let mut served = self.0.parts.served.clone();
            if served.wait_for(|revision| *revision >= updated.revision).await.is_err() {
                return rcode::SERVFAIL;
            }
        }
        code
    }
}

/// An update that is under way.
pub struct Pending {
    operations: Operations,
    update: Update,
    head: Vec<u8>,
    mac: Vec<u8>,
    conversation: Conversation,
    _place: OwnedSemaphorePermit,
}

impl Pending {
    /// The answer: once the update is so, or when that takes too long.
    pub async fn answer(self, now: impl Fn() -> u64) -> Vec<u8> {
        let code = timeout(PATIENCE, self.operations.bring(&self.update)).await.unwrap_or(rcode::SERVFAIL);
        debug!(machine = %self.update.machine, code, "an update");
        self.operations.seen().end(&self.mac, code);
        let Self { head, mut conversation, .. } = self;
        let reply = Message::parse(&head).map(|message| message.reply(code, false));
        let mut reply = reply.unwrap_or_default();
        conversation.sign(&mut reply, now());
        reply
    }
}

/// The updates of the last minutes, by their MACs.
#[derive(Default)]
struct Seen(HashMap<Vec<u8>, (u64, Option<u8>)>);

enum Begin {
    New,
    Done(u8),
    UnderWay,
    Full,
}

impl Seen {
    fn begin(&mut self, mac: &[u8], now: u64) -> Begin {
        match self.0.get(mac) {
            Some((_, Some(code))) => return Begin::Done(*code),
            Some((_, None)) => return Begin::UnderWay,
            None => {}
        }
        if self.0.len() >= MOST_SEEN {
            self.0.retain(|_, (until, _)| *until >= now);
            if self.0.len() >= MOST_SEEN {
                return Begin::Full;
            }
        }
        // Both ends of the window: a message may come from its future.
        let until = now + 2 * u64::from(tsig::LONGEST_FUDGE_S) + 1;
        self.0.insert(mac.to_vec(), (until, None));
        Begin::New
    }

    /// What failed may be tried again.
    fn end(&mut self, mac: &[u8], code: u8) {
        if code == rcode::SERVFAIL {
            self.0.remove(mac);
        } else if let Some((_, known)) = self.0.get_mut(mac) {
            *known = Some(code);
        }
    }
}

/// Signs the answer to a question that was signed.
pub fn signed_like(
    answer: Vec<u8>,
    conversation: Option<Box<Conversation>>,
    is_tcp: bool,
    now: u64,
) -> Vec<u8> {
    match conversation {
        Some(conversation) => sign_answer(answer, *conversation, is_tcp, now),
        None => answer,
    }
}

/// Signs an answer. One that does not fit then goes by TCP.
fn sign_answer(mut answer: Vec<u8>, mut conversation: Conversation, is_tcp: bool, now: u64) -> Vec<u8> {
    let unsigned = answer.clone();
    let mut signer = conversation.clone();
    signer.sign(&mut answer, now);
    if is_tcp || answer.len() <= MAX_UDP {
        return answer;
    }
    let mut short = Message::parse(&unsigned).map(|message| message.reply(0, true)).unwrap_or_default();
    if let Some(flags) = short.get_mut(2) {
        *flags |= 0x02;
    }
    conversation.sign(&mut short, now);
    short
}

fn signed(message: &Message<'_>, code: u8, mut conversation: Conversation, now: u64) -> Handled {
    let mut reply = message.reply(code, false);
    conversation.sign(&mut reply, now);
    Handled::Reply(reply)
}

fn without_tsig(message: &Message<'_>) -> Vec<u8> {
    let at = message.sections[2].last().map_or(message.bytes.len(), |last| last.at);
    let mut bytes = message.bytes.get(..at).unwrap_or_default().to_vec();
    if let Some(place) = bytes.get_mut(10..12) {
        let count = u16::from_be_bytes([place[0], place[1]]).saturating_sub(1);
        place.copy_from_slice(&count.to_be_bytes());
    }
    bytes
}

/// The type of the first question, and where it ends. Its name is not compressed: there is nothing before it.
fn question_kind(packet: &[u8]) -> Option<(u16, usize)> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        match length {
            0 => break,
            1..=63 => at += 1 + length,
            _ => return None,
        }
    }
    let kind = packet.get(at + 1..at + 3)?;
    Some((u16::from_be_bytes([kind[0], kind[1]]), at + 5))
}

/// Whether there is a signature. A plain question has at most the one record of EDNS behind it.
fn has_tsig(packet: &[u8], header: Header, question_end: usize) -> bool {
    let [questions, answers, authorities, additionals] = header.counts;
    if additionals == 0 {
        return false;
    }
    let plain = questions == 1 && answers == 0 && authorities == 0 && additionals == 1;
    if plain && packet.get(question_end..question_end + 3) == Some(&[0, 0, 41]) {
        return false;
    }
    Message::parse(packet)
        .is_ok_and(|message| message.sections[2].iter().any(|record| record.kind == tsig::TSIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: u16) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x04test\x00");
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    fn operations() -> Operations {
        Operations::new(Parts {
            secondaries: Secondaries::default(),
            board: watch::channel(Arc::default()).1,
            update_keys: watch::channel(UpdateKeys::default()).1,
            secret: watch::channel(None).1,
            domain: watch::channel(None).1,
            served: watch::channel(0).1,
            control: vec![],
        })
    }

    fn refusal(packet: &[u8]) -> u8 {
        let here = "192.0.2.1".parse().unwrap();
        let operations = operations();
        assert!(operations.concerns(packet, here));
        match operations.handle(packet, here, true, 1) {
            Handled::Reply(reply) => Header::read(&reply).unwrap().rcode(),
            _ => panic!("it was taken"),
        }
    }

    #[test]
    fn a_stranger_gets_no_zone_and_changes_nothing() {
        assert_eq!(refusal(&question(kind::AXFR)), rcode::REFUSED);
        assert_eq!(refusal(&question(kind::IXFR)), rcode::REFUSED);
        let mut update = question(kind::SOA);
        update[2] = 0x28;
        assert_eq!(refusal(&update), rcode::REFUSED);
        let mut with_key = update.clone();
        Conversation::ask(Key::new(b"\x01k\x00", Algorithm::Sha256, b"x"), &mut with_key, 1);
        assert_eq!(refusal(&with_key), rcode::NOTAUTH);
        update.push(0);
        assert_eq!(refusal(&update), rcode::FORMERR);
    }

    #[test]
    fn plain_questions_are_nothing_of_this() {
        let here = "192.0.2.1".parse().unwrap();
        let with = |mut bytes: Vec<u8>, record: &[u8]| {
            bytes.extend(record);
            bytes[11] = 1;
            bytes
        };
        let opt = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00";
        for plain in [question(1), question(kind::SOA), with(question(1), opt), b"\x00".to_vec(), vec![]] {
            assert!(!operations().concerns(&plain, here));
        }
        let mut signed = with(question(1), opt);
        Conversation::ask(Key::new(b"\x01k\x00", Algorithm::Sha256, b"x"), &mut signed, 1);
        assert!(operations().concerns(&signed, here));
        let Ok(message) = Message::parse(&signed) else { panic!() };
        assert_eq!(without_tsig(&message), with(question(1), opt));
    }

    #[test]
    fn an_update_happens_once_however_often_it_comes() {
        let mut seen = Seen::default();
        assert!(matches!(seen.begin(b"a", 1), Begin::New));
        assert!(matches!(seen.begin(b"a", 2), Begin::UnderWay));
        seen.end(b"a", 0);
        assert!(matches!(seen.begin(b"a", 3), Begin::Done(0)));
        assert!(matches!(seen.begin(b"b", 1), Begin::New));
        seen.end(b"b", rcode::SERVFAIL);
        assert!(matches!(seen.begin(b"b", 1), Begin::New), "what failed is tried again");
        for n in 0..MOST_SEEN {
            let _ = seen.begin(&n.to_be_bytes(), 1);
        }
        assert!(matches!(seen.begin(b"c", 2), Begin::Full));
        assert!(matches!(seen.begin(b"c", 1000), Begin::New), "old ones are forgotten");
    }
}
