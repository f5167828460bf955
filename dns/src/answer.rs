//! A question in, an answer out: a pure function of the packet and the [`Zone`].
//!
//! | RFC | what | here |
//! | --- | --- | --- |
//! | 1035 §4.1 | one question a message; a response is never answered | [`answer`], [`screen`] |
//! | 1035 §4.2.1, 6891 §6.2.5 | 512 bytes over UDP without EDNS, the client's size with it, never above 1232 | [`encode`] |
//! | 2308 | NXDOMAIN and NODATA carry the SOA with the negative TTL | [`negative`] |
//! | 5936, 1995 | no zone transfer: REFUSED | [`answer`] |
//! | 6891 §6.1.3, §7 | BADVERS; OPT in the answer exactly when in the question; unknown options ignored | [`answer`] |
//! | 8020 | an empty non-terminal is not NXDOMAIN | [`Zone::lookup`] |
//! | 8482 | ANY gets one RRset | [`select`] |
//! | draft-vixie-dnsext-dns0x20 | the question is echoed in the letter case it came in | by keeping the name |

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::zone::{APEX_TTL, Apex, Lookup, NEGATIVE_TTL, TTL, Zone};

/// The largest answer over UDP: it fits the smallest IPv6 MTU, so it is never fragmented (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

/// The largest answer over UDP to a client without EDNS (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;

/// How the question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Answers are cut to what the client can take.
    Udp,
    /// Answers are whole.
    Tcp,
}

/// The answer to `packet`; `None` where silence is right: no header, a response, or an answer that does not fit a message.
pub fn answer(packet: &[u8], zone: &Zone, transport: Transport) -> Option<Vec<u8>> {
    let request = match screen(packet)? {
        Screened::Request(request) => request,
        Screened::Reject(reject) => return reject.to_vec().ok(),
    };
    let [question] = request.queries.as_slice() else { return None };
    let mut reply = reply_to(&request.metadata);
    reply.add_query(question.clone());
    let limit = match transport {
        Transport::Udp => udp_limit(request.edns.as_ref()),
        Transport::Tcp => u16::MAX,
    };
    if let Some(edns) = &request.edns {
        reply.set_edns(edns_reply(edns));
    }
    if request.version() > 0 {
        reply.metadata.response_code = ResponseCode::BADVERS;
    } else {
        resolve(question, zone, &mut reply);
    }
    encode(reply, limit)
}

enum Screened {
    Request(Box<Message>),
    Reject(Box<Message>),
}

/// Decides from the header alone what can be, before anything is allocated on the sender's word (a count of 65,535
/// questions costs the sender 12 bytes), then decodes.
fn screen(packet: &[u8]) -> Option<Screened> {
    let header = Header::read(&mut BinDecoder::new(packet)).ok()?;
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    let reject = |code| {
        let mut reply = reply_to(&header.metadata);
        reply.metadata.response_code = code;
        Some(Screened::Reject(Box::new(reply)))
    };
    if header.metadata.op_code != OpCode::Query {
        return reject(ResponseCode::NotImp);
    }
    let counts = header.counts;
    if counts.queries != 1 || counts.answers != 0 || counts.authorities > 1 || counts.additionals > 4 {
        return reject(ResponseCode::FormErr);
    }
    match Message::from_vec(packet) {
        Ok(request) => Some(Screened::Request(Box::new(request))),
        Err(_) => reject(ResponseCode::FormErr),
    }
}

fn reply_to(request: &Metadata) -> Message {
    let mut reply = Message::response(request.id, request.op_code);
    reply.metadata.recursion_desired = request.recursion_desired;
    reply
}

fn edns_reply(request: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns.set_dnssec_ok(request.flags().dnssec_ok);
    edns
}

fn udp_limit(edns: Option<&Edns>) -> u16 {
    edns.map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP))
}

fn resolve(question: &Query, zone: &Zone, reply: &mut Message) {
    let wanted = question.query_type();
    if question.query_class() != DNSClass::IN || matches!(wanted, RecordType::AXFR | RecordType::IXFR) {
        reply.metadata.response_code = ResponseCode::Refused;
        return;
    }
    match zone.lookup(question.name()) {
        Lookup::OffZone => reply.metadata.response_code = ResponseCode::Refused,
        Lookup::NoName(apex) => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            negative(apex, reply);
        }
        Lookup::Name(apex, data) => {
            let data = select(wanted, data);
            if data.is_empty() {
                negative(apex, reply);
            } else {
                positive(question.name(), data, zone, reply);
            }
        }
    }
}

/// The records of the wanted type; for ANY those of the first type (RFC 8482 §4.1).
fn select(wanted: RecordType, data: Vec<RData>) -> Vec<RData> {
    let wanted = match (wanted, data.first()) {
        (RecordType::ANY, Some(first)) => first.record_type(),
        _ => wanted,
    };
    data.into_iter().filter(|data| data.record_type() == wanted).collect()
}

fn positive(name: &Name, data: Vec<RData>, zone: &Zone, reply: &mut Message) {
    reply.metadata.authoritative = true;
    for data in data {
        if let RData::NS(server) = &data {
            let glue = zone.addresses_of(&server.0);
            reply.add_additionals(
                glue.into_iter().map(|data| Record::from_rdata(server.0.clone(), TTL, data)),
            );
        }
        reply.add_answer(Record::from_rdata(name.clone(), ttl_of(&data), data));
    }
}

fn ttl_of(data: &RData) -> u32 {
    match data {
        RData::SOA(_) | RData::NS(_) => APEX_TTL,
        _ => TTL,
    }
}

/// No such name or no such type. Both carry the SOA, or resolvers do not keep them and some take them for failures.
fn negative(apex: &Apex, reply: &mut Message) {
    reply.metadata.authoritative = true;
    // RFC 2308 §3: the lesser of the SOA's own TTL and its MINIMUM.
    let ttl = NEGATIVE_TTL.min(APEX_TTL);
    reply.add_authority(Record::from_rdata(apex.name.clone(), ttl, RData::SOA(apex.soa.clone())));
}

/// Bytes of at most `limit`: without the additional records where those do not fit, else empty and marked as truncated.
fn encode(mut reply: Message, limit: u16) -> Option<Vec<u8>> {
    let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(limit);
    let whole = reply.to_vec().ok();
    if let Some(bytes) = whole.filter(fits) {
        return Some(bytes);
    }
    // Glue beside an authoritative answer is a courtesy: leaving it out is not a truncation (RFC 2181 §9).
    reply.additionals.clear();
    if let Some(bytes) = reply.to_vec().ok().filter(fits) {
        return Some(bytes);
    }
    reply.truncate().to_vec().ok().filter(fits)
}
