//! Questions of clients, and what is in the answers.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};

/// Asks once, for signatures too.
pub fn ask(at: SocketAddr, name: &str, kind: RecordType, wait: Duration) -> Option<Message> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question.metadata.recursion_desired = true;
    question.metadata.authentic_data = true;
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    edns.set_max_payload(1232);
    question.set_edns(edns);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(at).unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    // A port where nobody listens is told by an error at once.
    socket.send(&question.to_vec().unwrap()).ok()?;
    let mut reply = [0; 4096];
    let length = socket.recv(&mut reply).ok()?;
    let reply = Message::from_vec(&reply[..length]).ok()?;
    (reply.metadata.id == question.metadata.id).then_some(reply)
}

/// The data in the answer that are no signatures, in some order that is always the same.
pub fn data(reply: &Message) -> Vec<String> {
    let records = reply.answers.iter().filter(|record| record.record_type() != RecordType::RRSIG);
    let mut data: Vec<String> =
        records.map(|record| format!("{} {}", record.record_type(), record.data)).collect();
    data.sort();
    data
}
