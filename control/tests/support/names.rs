//! DNS of the test: the fleet's zone as far as challenges go, and customers' zones as the test writes them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mashines_fleet::record::Show;
use mashines_fleet::view::View;
use tokio::net::UdpSocket;
use tokio::sync::watch;

/// The fleet's zone.
pub const APEX: &str = "mashine.test";

type Table = Arc<Mutex<BTreeMap<String, Vec<RData>>>>;
type Views = Arc<Mutex<Option<watch::Receiver<Arc<View>>>>>;

#[derive(Clone)]
pub struct Names {
    pub address: SocketAddr,
    table: Table,
    views: Views,
    silent: Arc<std::sync::atomic::AtomicBool>,
    blind: Arc<std::sync::atomic::AtomicBool>,
}

impl Names {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let names = Self {
            address: socket.local_addr().unwrap(),
            table: Table::default(),
            views: Views::default(),
            silent: Arc::default(),
            blind: Arc::default(),
        };
        let own = names.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let socket = socket.into_std().unwrap();
            runtime.block_on(async move {
                let socket = UdpSocket::from_std(socket).unwrap();
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                    if let Some(reply) = own.answer(&buffer[..length]) {
                        let _sent = socket.send_to(&reply, peer).await;
                    }
                }
            });
        });
        names
    }

    /// Serves the challenges of these views.
    pub fn show(&self, views: watch::Receiver<Arc<View>>) {
        *self.views.lock().unwrap() = Some(views);
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

    pub fn forget(&self, name: &str) {
        self.table.lock().unwrap().remove(name);
    }

    /// Does not answer any more, or again.
    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, std::sync::atomic::Ordering::SeqCst);
    }

    /// Shows no challenge any more, or again.
    pub fn blind(&self, blind: bool) {
        self.blind.store(blind, std::sync::atomic::Ordering::SeqCst);
    }

    fn put(&self, name: &str, data: RData) {
        self.table.lock().unwrap().entry(name.to_owned()).or_default().push(data);
    }

    fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
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
        let views = self.views.lock().unwrap().clone();
        let blind = self.blind.load(std::sync::atomic::Ordering::SeqCst);
        if let (Some(views), Some(of), false) = (views, name.strip_prefix("_acme-challenge."), blind) {
            let view = Arc::clone(&views.borrow());
            data.extend(view.challenges.values().filter(|c| c.name.as_str() == of).filter_map(|c| {
                match &c.show {
                    Show::Dns01 { value } => Some(RData::TXT(TXT::new(vec![value.clone()]))),
                    Show::Http01 { .. } | Show::TlsAlpn01 { .. } => None,
                }
            }));
        }
        data
    }
}
