//! DNS as the world sees it: customers' zones as the test writes them, the fleet's own machines at the loopback, and challenges as the
//! fleet's name server answers them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NULL, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

/// The fleet's zone.
pub const APEX: &str = "mashine.test";

type Table = Arc<Mutex<BTreeMap<String, Vec<RData>>>>;

#[derive(Clone)]
pub struct Names {
    pub address: SocketAddr,
    table: Table,
    fleets: Arc<Mutex<Option<SocketAddr>>>,
    silent: Arc<std::sync::atomic::AtomicBool>,
}

impl Names {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let names = Self {
            address: socket.local_addr().unwrap(),
            table: Table::default(),
            fleets: Arc::default(),
            silent: Arc::default(),
        };
        let own = names.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let socket = socket.into_std().unwrap();
            runtime.block_on(async move {
                let socket = UdpSocket::from_std(socket).unwrap();
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                    if let Some(reply) = own.answer(&buffer[..length]).await {
                        let _sent = socket.send_to(&reply, peer).await;
                    }
                }
            });
        });
        names
    }

    /// Asks the fleet's name server for challenges.
    pub fn delegate(&self, server: SocketAddr) {
        *self.fleets.lock().unwrap() = Some(server);
    }

    pub fn text(&self, name: &str, text: &str) {
        self.put(name, RData::TXT(TXT::new(vec![text.to_owned()])));
    }

    pub fn address(&self, name: &str, address: &str) {
        self.put(name, RData::A(A(address.parse().unwrap())));
    }

    /// The address of a machine's own name, in place of the loopback.
    pub fn address_of_machine(&self, slug: &str, address: &str) {
        self.address(&format!("{slug}.{APEX}"), address);
    }

    pub fn alias(&self, name: &str, target: &str) {
        self.put(name, RData::CNAME(CNAME(Name::from_ascii(format!("{target}.")).unwrap())));
    }

    /// The parent's DS, in place of what it had: as zone files write them.
    pub fn ds(&self, zone: &str, lines: &[&str]) {
        self.forget(zone);
        for line in lines {
            let fields: Vec<&str> = line.split(' ').collect();
            let mut data = fields[0].parse::<u16>().unwrap().to_be_bytes().to_vec();
            data.extend([fields[1].parse::<u8>().unwrap(), fields[2].parse::<u8>().unwrap()]);
            data.extend(hex::decode(fields[3]).unwrap());
            self.put(zone, RData::Unknown { code: RecordType::DS, rdata: NULL::with(data) });
        }
    }

    pub fn forget(&self, name: &str) {
        self.table.lock().unwrap().remove(name);
    }

    /// Does not answer any more, or again.
    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, std::sync::atomic::Ordering::SeqCst);
    }

    fn put(&self, name: &str, data: RData) {
        self.table.lock().unwrap().entry(name.to_owned()).or_default().push(data);
    }

    async fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        if self.silent.load(std::sync::atomic::Ordering::SeqCst) {
            return None;
        }
        let request = Message::from_vec(packet).ok()?;
        let question = request.queries.first()?.clone();
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.authoritative = true;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        let mut name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let server = *self.fleets.lock().unwrap();
        if let Some(server) = server.filter(|_| name.starts_with("_acme-challenge.") && name.ends_with(APEX))
        {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
            socket.send_to(packet, server).await.ok()?;
            let mut buffer = vec![0; 4096];
            let answered =
                tokio::time::timeout(std::time::Duration::from_secs(2), socket.recv(&mut buffer)).await;
            buffer.truncate(answered.ok()?.ok()?);
            return Some(buffer);
        }
        let mut there = false;
        for _ in 0..8 {
            let data = self.at(&name);
            there |= !data.is_empty();
            let owner = Name::from_ascii(format!("{name}.")).ok()?;
            let fits =
                |d: &&RData| d.record_type() == question.query_type() || d.record_type() == RecordType::CNAME;
            for data in data.iter().filter(fits) {
                reply.add_answer(Record::from_rdata(owner.clone(), 1, data.clone()));
            }
            match data
                .iter()
                .find_map(|d| if let RData::CNAME(to) = d { Some(to.0.to_ascii()) } else { None })
            {
                Some(target) => name = target.trim_end_matches('.').to_ascii_lowercase(),
                None => break,
            }
        }
        if !there {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.to_vec().ok()
    }

    fn at(&self, name: &str) -> Vec<RData> {
        let mut data = self.table.lock().unwrap().get(name).cloned().unwrap_or_default();
        // Machines and entries of the fleet are at the loopback.
        if data.is_empty() && name.ends_with(APEX) && !name.starts_with('_') {
            data.push(RData::A(A(Ipv4Addr::LOCALHOST)));
        }
        data
    }
}
