//! A question in, an answer out: a pure function of the packet, who asks, the names of this moment and the settings.
//!
//! | RFC | what | here |
//! | --- | --- | --- |
//! | 1034 §4.3.2, 6672 | bounded chains of CNAME; what is known of the last is told too | [`Answering::resolve`] |
//! | 1035 §4.1 | one question a message; a response is never answered | `query.rs` |
//! | 1035 §4.2.1, 6891 §6.2.5 | 512 bytes over UDP without EDNS, the client's size with it, never above 1232 | [`limit_of`] |
//! | 2181 §9, 9471 | what does not fit truncates; glue that is a courtesy is left out, that of a referral is not | [`Answering::refer`] |
//! | 2308 | NXDOMAIN and NODATA carry the SOA with the negative TTL | [`Answering::deny`] |
//! | 4035 §3.1 | signatures for who wants them; DS at the parent | [`Answering::put`], `zone/` |
//! | 5001, 7828, 7830, 8467, 7873 | NSID, keepalive, padding, cookies | [`Answering::options`] |
//! | 5936, 1995 | no zone transfer here: REFUSED | [`answer`] |
//! | 6891 §6.1.3, §7 | BADVERS; OPT in the answer exactly when in the question; unknown options ignored | [`answer`] |
//! | 8020, 4592 | an empty non-terminal is not NXDOMAIN; wildcards | `zone/` |
//! | 8482 | ANY, and RRSIG, get one set | [`Answering::resolve`] |
//! | 8914 | what is wrong, where a code alone does not say it | [`Answering::finish`] |
//! | 9824 | compact denial of existence | [`Answering::deny`], `denial.rs` |
//! | draft-vixie-dnsext-dns0x20 | the question is echoed in the letter case it came in | `reply.rs` |

use std::hash::{Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use crate::cookie::{CLIENT, Cookies, Standing};
use crate::denial::{Exists, nsec};
use crate::kind;
use crate::limit::Class;
use crate::name::{Labels, Name, Path};
use crate::query::{CLASS_CH, CLASS_IN, Edns, HEADER, Parsed, Query, id_and_flags, option, parse, rcode};
use crate::reply::{Full, Section, Writer, put_option, put_padding};
use crate::rrset::{Data, RrSet};
use crate::sign::KeySet;
use crate::signer::{OnlineSigner, Origin, Unsigned};
use crate::zone::{Lookup, NEGATIVE_TTL, Node, Zone, Zones};

/// The largest answer over UDP: it fits the smallest IPv6 MTU, so it is never fragmented (DNS flag day 2020).
pub const MAX_UDP: u16 = 1232;

/// The largest answer over UDP to a client without EDNS (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;

/// CNAMEs that are followed for one question.
const MAX_CHAIN: usize = 8;

/// Answers to who pads end on a multiple of this (RFC 8467 §4.1).
const PADDING_BLOCK: usize = 468;

/// The length of an OPT without options.
const OPT: usize = 11;

/// Extended errors (RFC 8914, RFC 9824 §6).
mod error {
    pub const NOT_READY: u16 = 14;
    pub const NOT_AUTHORITATIVE: u16 = 20;
    pub const INVALID_QUERY_TYPE: u16 = 30;
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Answers are cut to what the client can take, and the source may be forged.
    Udp,
    /// Answers are whole.
    Tcp,
    /// Whole, and nobody on the way sees more than their length.
    Tls,
}

/// Who asks, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// From where.
    pub address: IpAddr,
    /// How.
    pub transport: Transport,
    /// Seconds since 1970.
    pub now: u64,
}

/// What changes: names, and what cookies are made with.
#[derive(Debug)]
pub struct Moment {
    /// The names.
    pub zones: Zones,
    /// The cookies.
    pub cookies: Arc<Cookies>,
}

/// What stays as it was configured.
#[derive(Debug)]
pub struct Authority {
    /// This server's name, for NSID and `hostname.bind`; not told when empty.
    pub identity: String,
    /// What `version.bind` says; not told when empty.
    pub version: String,
    /// How long a connection may rest, for RFC 7828.
    pub idle: std::time::Duration,
    /// Makes signatures.
    pub signer: OnlineSigner,
}

/// What was said, as far as limits on answers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The client showed a good cookie: it is where it says it is.
    pub is_known: bool,
    /// What kind of answer.
    pub class: Class,
    /// What it is about: equal answers have equal numbers.
    pub identity: u64,
    /// How long the OPT at the answer's end is; 0 where there is none.
    pub opt_length: usize,
}

/// Writes the answer to `packet` into `out`; `None` where silence is right.
pub fn answer(
    packet: &[u8],
    asker: Asker,
    moment: &Moment,
    authority: &Authority,
    out: &mut Vec<u8>,
) -> Option<Told> {
    let (id, flags) = id_and_flags(packet)?;
    let error = Told { is_known: false, class: Class::Error, identity: 0, opt_length: 0 };
    let reject = |code, out: &mut Vec<u8>| {
        Writer::begin(out, id, flags, &[], Path::new(&[0]), usize::from(PLAIN_UDP)).set_rcode(code);
        Some(error)
    };
    let query = match parse(packet) {
        Parsed::Silence => return None,
        Parsed::Reject(code) => return reject(code, out),
        Parsed::Operation(_) => return reject(rcode::NOTIMP, out),
        Parsed::CookieOnly(edns) => {
            let writer = Writer::begin(out, id, flags, &[], Path::new(&[0]), usize::from(PLAIN_UDP));
            let (options, is_known) = options(&edns, asker, moment, authority);
            let opt_length = finish(writer, asker, Some(&edns), rcode::NOERROR, &options, None);
            return Some(Told { is_known, opt_length, ..error });
        }
        Parsed::Query(query) => query,
    };
    let path = Path::new(query.name());
    let limit = limit_of(&query, asker.transport);
    let mut writer = Writer::begin(out, id, flags, query.question(), path.clone(), limit);
    let (options, is_known) = match &query.edns {
        Some(edns) => options(edns, asker, moment, authority),
        None => (Vec::new(), false),
    };
    let room = if query.edns.is_some() { OPT + options.len() } else { 0 };
    writer.reserve(room);
    let mut answering =
        Answering { asker, moment, authority, query: &query, writer, told: Told { is_known, ..error } };
    let ended = answering.run(&path);
    let Answering { mut writer, mut told, .. } = answering;
    writer.release(room);
    let (code, why) = match ended {
        Ok(code) => (code, None),
        Err(Stop::Code(code, why)) => (code, Some(why)),
        Err(Stop::Full) => {
            Answering::truncate(&mut writer, &query);
            (rcode::NOERROR, None)
        }
        Err(Stop::Exhausted) if asker.transport == Transport::Udp => {
            Answering::truncate(&mut writer, &query);
            (rcode::NOERROR, None)
        }
        Err(Stop::Exhausted | Stop::Failed) => {
            writer.back_to_question(query.question().len());
            (rcode::SERVFAIL, Some(error::NOT_READY))
        }
    };
    if why.is_some() {
        told = Told { class: Class::Error, identity: 0, ..told };
    }
    let opt_length = finish(writer, asker, query.edns.as_ref(), code, &options, why);
    Some(Told { opt_length, ..told })
}

/// How long the answer may be.
fn limit_of(query: &Query<'_>, transport: Transport) -> usize {
    match (transport, &query.edns) {
        (Transport::Tcp | Transport::Tls, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => usize::from(PLAIN_UDP),
        (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PLAIN_UDP, MAX_UDP)),
    }
}

/// The options that are answered with, and whether the client is known by its cookie.
fn options(edns: &Edns<'_>, asker: Asker, moment: &Moment, authority: &Authority) -> (Vec<u8>, bool) {
    let mut options = Vec::new();
    if edns.wants_nsid && !authority.identity.is_empty() {
        put_option(&mut options, option::NSID, &[authority.identity.as_bytes()]);
    }
    // RFC 7828 §3.3.2: not over UDP. In tenths of a second.
    if edns.wants_keepalive && asker.transport != Transport::Udp {
        let tenths = u16::try_from(authority.idle.as_millis() / 100).unwrap_or(u16::MAX);
        put_option(&mut options, option::KEEPALIVE, &[&tenths.to_be_bytes()]);
    }
    let mut is_known = false;
    if let Some((cookie, client)) = edns.cookie.and_then(|cookie| Some((cookie, cookie.get(..CLIENT)?))) {
        is_known = moment.cookies.check(cookie, asker.address, asker.now) == Standing::Known;
        let server = moment.cookies.server_part(client, asker.address, asker.now);
        put_option(&mut options, option::COOKIE, &[client, &server]);
    }
    (options, is_known)
}

/// Writes the response code, and the OPT where the client sent one; returns the length of that.
fn finish(
    mut writer: Writer<'_>,
    asker: Asker,
    edns: Option<&Edns<'_>>,
    code: u16,
    options: &[u8],
    why: Option<u16>,
) -> usize {
    writer.set_rcode(code);
    let Some(edns) = edns else { return 0 };
    let mut options = options.to_vec();
    if let Some(why) = why {
        put_option(&mut options, option::ERROR, &[&why.to_be_bytes()]);
    }
    // RFC 7830 §6: padding where nobody can see through is of use, elsewhere it is waste.
    if edns.is_padded && asker.transport == Transport::Tls {
        let length = writer.length() + OPT + options.len();
        put_padding(&mut options, length, PADDING_BLOCK);
    }
    writer.opt(MAX_UDP, code, edns.dnssec_ok, &options);
    OPT + options.len()
}

/// Why an answer ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It does not fit.
    Full,
    /// Too many signatures were made.
    Exhausted,
    /// A signature could not be made.
    Failed,
    /// An error, and the extended code that says more.
    Code(u16, u16),
}

impl From<Full> for Stop {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl From<Unsigned> for Stop {
    fn from(unsigned: Unsigned) -> Self {
        match unsigned {
            Unsigned::Exhausted => Self::Exhausted,
            Unsigned::Failed => Self::Failed,
        }
    }
}

struct Answering<'a> {
    asker: Asker,
    moment: &'a Moment,
    authority: &'a Authority,
    query: &'a Query<'a>,
    writer: Writer<'a>,
    told: Told,
}

impl<'a> Answering<'a> {
    fn run(&mut self, path: &Path<'_>) -> Result<u16, Stop> {
        let query = self.query;
        if query.edns.as_ref().is_some_and(|edns| edns.version > 0) {
            return Ok(rcode::BADVERS);
        }
        match (query.class, query.kind) {
            (CLASS_CH, kind::TXT | kind::ANY) => self.about_this_server(),
            (CLASS_IN, kind::AXFR | kind::IXFR) => Err(Stop::Code(rcode::REFUSED, error::NOT_AUTHORITATIVE)),
            // RFC 9824 §3.4: nobody has such records.
            (CLASS_IN, kind::NXNAME) => Err(Stop::Code(rcode::FORMERR, error::INVALID_QUERY_TYPE)),
            (CLASS_IN, _) => self.resolve(path),
            _ => Err(Stop::Code(rcode::REFUSED, error::NOT_AUTHORITATIVE)),
        }
    }

    /// Follows aliases until something is known.
    fn resolve(&mut self, asked: &Path<'_>) -> Result<u16, Stop> {
        let moment = self.moment;
        let mut target: Option<Box<[u8]>> = None;
        for hop in 0..=MAX_CHAIN {
            let path = target.as_ref().map_or_else(|| asked.clone(), |wire| Path::new(wire));
            match moment.zones.lookup(&path, self.query.kind) {
                Lookup::OffZone if hop == 0 => {
                    return Err(Stop::Code(rcode::REFUSED, error::NOT_AUTHORITATIVE));
                }
                // The rest of the chain is somebody else's to tell.
                Lookup::OffZone => return Ok(rcode::NOERROR),
                Lookup::Delegation { .. } if hop > 0 => return Ok(rcode::NOERROR),
                Lookup::Delegation { zone, depth, .. } => {
                    Self::unlocked(zone)?;
                    self.tell(Class::Referral, path.suffix(depth));
                    return self.refer(zone, path.suffix(depth));
                }
                Lookup::NoName(zone) => {
                    Self::unlocked(zone)?;
                    self.writer.set_authoritative(true);
                    self.tell(Class::NoName, zone.apex().as_wire());
                    return self.deny(zone, &path, None, Origin::MadeUp);
                }
                Lookup::Found { zone, node, by_wildcard } => {
                    Self::unlocked(zone)?;
                    self.writer.set_authoritative(true);
                    let origin = if by_wildcard { Origin::MadeUp } else { Origin::Ours };
                    let about = if by_wildcard { path.suffix(path.labels() - 1) } else { path.wire() };
                    self.tell(Class::Name, about);
                    match self.found(zone, &path, node, origin)? {
                        Some(alias) => target = Some(alias),
                        None => return Ok(rcode::NOERROR),
                    }
                }
            }
        }
        Ok(rcode::NOERROR)
    }

    /// Keys that cannot be opened: whatever is said unsigned would be taken for forged, so another server is to be asked.
    fn unlocked(zone: &Zone) -> Result<(), Stop> {
        if zone.is_locked() { Err(Stop::Code(rcode::SERVFAIL, error::NOT_READY)) } else { Ok(()) }
    }

    /// Tells what is at a name; the target where that is an alias.
    fn found(
        &mut self,
        zone: &'a Zone,
        path: &Path<'_>,
        node: Node<'a>,
        origin: Origin,
    ) -> Result<Option<Box<[u8]>>, Stop> {
        let wanted = self.query.kind;
        let keys = zone.keys();
        let set = match wanted {
            kind::ANY | kind::RRSIG => node.sets().into_iter().next(),
            kind::NSEC if keys.is_some() => Some(nsec_of(path.wire(), &node)),
            _ => node.rrset(wanted),
        };
        if let (kind::RRSIG, Some(set), Some(keys)) = (wanted, &set, keys) {
            self.put_signatures(Section::Answer, keys, path.wire(), set, set.ttl, origin)?;
            return Ok(None);
        }
        if let Some(set) = set.filter(|_| wanted != kind::RRSIG) {
            self.put(Section::Answer, zone, path.wire(), &set, set.ttl, origin)?;
            self.add_glue(&set);
            return Ok(None);
        }
        if let Some(alias) = node.rrset(kind::CNAME) {
            self.put(Section::Answer, zone, path.wire(), &alias, alias.ttl, origin)?;
            return Ok(alias.data.iter().next().map(Into::into));
        }
        self.deny(zone, path, Some(node), origin).map(|_| None)
    }

    /// A set, and its signatures where they are wanted.
    fn put(
        &mut self,
        section: Section,
        zone: &Zone,
        owner: &[u8],
        set: &RrSet<'_>,
        ttl: u32,
        origin: Origin,
    ) -> Result<(), Stop> {
        for data in set.data.iter() {
            self.writer.record(section, owner, set.kind, ttl, data)?;
        }
        match zone.keys() {
            Some(keys) if self.query.dnssec_ok() => {
                self.put_signatures(section, keys, owner, set, ttl, origin)
            }
            _ => Ok(()),
        }
    }

    fn put_signatures(
        &mut self,
        section: Section,
        keys: &KeySet,
        owner: &[u8],
        set: &RrSet<'_>,
        ttl: u32,
        origin: Origin,
    ) -> Result<(), Stop> {
        let writer = &mut self.writer;
        let signer = &self.authority.signer;
        signer.sign(keys, owner, set, self.asker.now, origin, |data| {
            writer.record(section, owner, kind::RRSIG, ttl, data).map_err(Stop::from)
        })
    }

    /// No such name (`node` is none) or no such type. Both carry the SOA, or resolvers do not keep them and some take them for failures.
    fn deny(
        &mut self,
        zone: &Zone,
        path: &Path<'_>,
        node: Option<Node<'_>>,
        origin: Origin,
    ) -> Result<u16, Stop> {
        let soa = zone.negative_soa();
        // Signed with its own TTL, told with the negative one: RRSIG carries the former.
        self.put(Section::Authority, zone, zone.apex().as_wire(), &zone.soa(), soa.ttl, Origin::Ours)?;
        let is_signed = zone.keys().is_some() && self.query.dnssec_ok();
        if is_signed {
            let denial = match &node {
                Some(node) => nsec_of(path.wire(), node),
                None => made_nsec(path.wire(), &Exists::Nothing),
            };
            self.put(Section::Authority, zone, path.wire(), &denial, denial.ttl, origin)?;
        }
        let compact_ok = self.query.edns.as_ref().is_some_and(|edns| edns.compact_ok);
        // RFC 9824 §3.1, §5: the NSEC says that the name exists without any type, which does not go with NXDOMAIN for who does not know better.
        let hidden = is_signed && !compact_ok;
        Ok(if node.is_some() || hidden { rcode::NOERROR } else { rcode::NXDOMAIN })
    }

    /// Another server knows: its name, that it may be trusted or not, and where it is.
    fn refer(&mut self, zone: &'a Zone, cut: &[u8]) -> Result<u16, Stop> {
        let sets = zone.fixed().get(cut).unwrap_or_default();
        let of = |kind| sets.iter().find(|set| set.kind == kind).map(crate::rrset::OwnedSet::borrowed);
        let Some(servers) = of(kind::NS) else { return Ok(rcode::NOERROR) };
        for data in servers.data.iter() {
            self.writer.record(Section::Authority, cut, kind::NS, servers.ttl, data)?;
        }
        if zone.keys().is_some() && self.query.dnssec_ok() {
            match of(kind::DS) {
                Some(signer) => self.put(Section::Authority, zone, cut, &signer, signer.ttl, Origin::Ours)?,
                None => {
                    let denial = made_nsec(cut, &Exists::Types(&[kind::NS]));
                    self.put(Section::Authority, zone, cut, &denial, denial.ttl, Origin::Ours)?;
                }
            }
        }
        let below = Name::from_wire(cut);
        for server in servers.data.iter() {
            let inside =
                Name::from_wire(server).zip(below.as_ref()).is_some_and(|(name, cut)| name.is_within(cut));
            for (kind, ttl, data) in self.addresses_of(server) {
                let mark = self.writer.mark();
                match self.writer.record(Section::Additional, server, kind, ttl, &data) {
                    Ok(()) => {}
                    // RFC 9471 §2.1: without the addresses of servers below the cut the referral is of no use.
                    Err(Full) if inside => return Err(Stop::Full),
                    Err(Full) => self.writer.back_to(mark),
                }
            }
        }
        Ok(rcode::NOERROR)
    }

    /// Addresses of name servers of ours beside their names: a courtesy, and left out where it does not fit (RFC 2181 §9).
    fn add_glue(&mut self, set: &RrSet<'_>) {
        if set.kind != kind::NS {
            return;
        }
        for server in set.data.iter() {
            for (kind, ttl, data) in self.addresses_of(server) {
                let mark = self.writer.mark();
                if self.writer.record(Section::Additional, server, kind, ttl, &data).is_err() {
                    self.writer.back_to(mark);
                }
            }
        }
    }

    /// What we know of a server's addresses, glue below a delegation too.
    fn addresses_of(&self, server: &[u8]) -> Vec<(u16, u32, Box<[u8]>)> {
        let path = Path::new(server);
        let zones = &self.moment.zones;
        let node = match zones.lookup(&path, kind::A) {
            Lookup::Found { node, .. } => node,
            Lookup::Delegation { zone, .. } => Node::Sets(zone.fixed().get(server).unwrap_or_default()),
            Lookup::OffZone | Lookup::NoName(_) => return Vec::new(),
        };
        let sets = [kind::A, kind::AAAA].into_iter().filter_map(|kind| node.rrset(kind));
        sets.flat_map(|set| {
            set.data.iter().map(|data| (set.kind, set.ttl, Box::from(data))).collect::<Vec<_>>()
        })
        .collect()
    }

    /// `version.bind` and the like.
    fn about_this_server(&mut self) -> Result<u16, Stop> {
        let text = match self.query.name() {
            b"\x07version\x04bind\x00" | b"\x07version\x06server\x00" => &self.authority.version,
            b"\x08hostname\x04bind\x00" | b"\x02id\x06server\x00" => &self.authority.identity,
            _ => return Err(Stop::Code(rcode::REFUSED, error::NOT_AUTHORITATIVE)),
        };
        if text.is_empty() {
            return Err(Stop::Code(rcode::REFUSED, error::NOT_AUTHORITATIVE));
        }
        self.writer.set_authoritative(true);
        let data = crate::zone::machine::text_data(text);
        self.writer.chaos_text(self.query.name(), &data)?;
        Ok(rcode::NOERROR)
    }

    fn tell(&mut self, class: Class, about: &[u8]) {
        let mut hasher = SipHasher13::new();
        about.hash(&mut hasher);
        self.told = Told { class, identity: hasher.finish(), ..self.told };
    }

    fn truncate(writer: &mut Writer<'_>, query: &Query<'_>) {
        writer.back_to_question(query.question().len());
        writer.set_truncated();
    }
}

fn nsec_of(owner: &[u8], node: &Node<'_>) -> RrSet<'static> {
    let types: Vec<u16> = node.sets().iter().map(|set| set.kind).collect();
    made_nsec(owner, &Exists::Types(&types))
}

/// RFC 9077: no longer than the SOA says that a denial is good.
fn made_nsec(owner: &[u8], exists: &Exists<'_>) -> RrSet<'static> {
    RrSet { kind: kind::NSEC, ttl: NEGATIVE_TTL, data: Data::Made(nsec(owner, exists)) }
}

/// Makes of a reply the answer that says nothing but "ask over TCP", for who is told too much. What belongs to EDNS stays: a cookie in it is
/// the way to be told more.
pub fn truncated(reply: &mut Vec<u8>, told: &Told) {
    let has_question = reply.get(5).is_some_and(|count| *count == 1);
    let name: usize = Labels::of(reply.get(HEADER..).unwrap_or_default()).map(|label| label.len() + 1).sum();
    let end = HEADER + if has_question { name + 5 } else { 0 };
    let opt = reply.len().saturating_sub(told.opt_length).max(end);
    reply.drain(end..opt);
    if let Some([_, _, flags, code, _, _, counts @ .., additionals]) = reply.get_mut(..HEADER) {
        *flags |= 0x02;
        *code &= 0xf0;
        counts.fill(0);
        *additionals = u8::from(told.opt_length > 0);
    }
}
