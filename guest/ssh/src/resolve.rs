//! Names to addresses, without the C library: a static one would load the image's modules for that.
//!
//! `/etc/hosts` first, then the servers of `/etc/resolv.conf` in turn, AAAA and A.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const HOSTS: &str = "/etc/hosts";
const RESOLVERS: &str = "/etc/resolv.conf";
const DNS: u16 = 53;
/// For one answer of one server.
const PATIENCE: Duration = Duration::from_secs(3);

/// The addresses of a name, at least one.
pub async fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let mut found = in_hosts(&std::fs::read_to_string(HOSTS).unwrap_or_default(), name);
    if found.is_empty() && name == "localhost" {
        found = vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
    }
    let servers = resolvers(&std::fs::read_to_string(RESOLVERS).unwrap_or_default());
    for server in servers {
        if !found.is_empty() {
            break;
        }
        for kind in [RecordType::AAAA, RecordType::A] {
            found.extend(ask(SocketAddr::new(server, DNS), name, kind).await.unwrap_or_default());
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address known here")));
    }
    Ok(found)
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let named =
        lines.filter(|line| line.split_whitespace().skip(1).any(|word| word.eq_ignore_ascii_case(name)));
    named.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn resolvers(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|address| address.trim().parse().ok()).take(3).collect()
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let mut name = Name::from_utf8(name).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut question = Message::new(rand_id()?, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, kind));
    let any: IpAddr =
        if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    // A port of the kernel's choice, connected: only the server's answers reach us.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec().map_err(io::Error::other)?).await?;
    let mut buffer = [0; 4096];
    let answer = timeout(PATIENCE, async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
            if let Some(answer) = answer.filter(|answer| answer.metadata.id == question.metadata.id) {
                return io::Result::Ok(answer);
            }
        }
    });
    let answer = answer.await.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut))??;
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::from(address.0)),
        RData::AAAA(address) => Some(IpAddr::from(address.0)),
        _ => None,
    });
    Ok(addresses.collect())
}

fn rand_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_the_c_library_reads_them() {
        let text = "127.0.0.1 localhost # me\n2001:db8::7\tquiet-otter otter\n# 192.0.2.1 off\n";
        assert_eq!(in_hosts(text, "OTTER"), ["2001:db8::7".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts(text, "off").is_empty() && in_hosts(text, "me").is_empty());
    }

    #[test]
    fn resolvers_are_those_of_the_file() {
        let text = "search x\nnameserver 2001:db8::53\nnameserver 192.0.2.53\n";
        assert_eq!(resolvers(text).len(), 2);
    }

    #[tokio::test]
    async fn a_name_is_asked_of_the_server() {
        use hickory_proto::rr::Record;
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let mut answer = Message::from_vec(&buffer[..length]).unwrap();
            answer.metadata.message_type = MessageType::Response;
            let name = answer.queries[0].name().clone();
            let data = RData::A(hickory_proto::rr::rdata::A(Ipv4Addr::new(192, 0, 2, 7)));
            answer.add_answer(Record::from_rdata(name, 60, data));
            server.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        });
        let found = ask(address, "db.internal", RecordType::A).await.unwrap();
        assert_eq!(found, [IpAddr::from([192, 0, 2, 7])]);
    }
}
